# SPDX-License-Identifier: BSD-3-Clause
"""Install one wheel beside several versions of torch, and try it with each::

    python -m tools.try_wheel 2.11.0 2.14.1

`make test-wheel` runs this. The wheel is the one in dist/ for the Python that runs this, and the
very file is installed each time, by a fresh environment's pip. Of the environments, which take up
to 5 GB, there is one at a time, and none is kept. Imports the standard library only.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def find_wheel() -> Path:
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    found = sorted((ROOT / "dist").glob(f"lstm_fused-*-{tag}-{tag}-*.whl"))
    if len(found) != 1:
        sys.exit(f"dist/ must hold one wheel for {tag}, found {len(found)}: run 'make wheel'")
    return found[0]


def try_with(wheel: Path, torch: str, folder: Path) -> bool:
    """Installs and tries the wheel in an environment in this folder; whether all went well."""
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "-q"]
    commands = (
        [sys.executable, "-m", "venv", folder],
        [*pip, f"torch=={torch}", wheel],
        [python, "-E", ROOT / "tests" / "wheel_smoke.py"],
    )
    return all(
        subprocess.run(list(map(str, command)), cwd=folder, check=False).returncode == 0
        for command in commands
    )


def main(versions: Sequence[str]) -> int:
    wheel = find_wheel()
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    failed = []
    for version in versions:
        print(f"{wheel.name} ({digest[:12]}) with torch {version}", flush=True)
        with tempfile.TemporaryDirectory(prefix="lstm_fused-wheel-") as folder:
            if not try_with(wheel, version, Path(folder)):
                failed.append(version)
    if failed:
        print(f"{wheel.name} failed with torch {', '.join(failed)}", file=sys.stderr)
    return 1 if failed or not versions else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
