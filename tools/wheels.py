# SPDX-License-Identifier: BSD-3-Clause
"""Make wheels::

    python -m tools.wheels                           # the sdist, and from it each Python's wheel
    python -m tools.wheels repair WHEEL --to FOLDER  # a wheel that was built, for other machines

`make wheel` runs the first, cibuildwheel the second. Both print sizes, and fail where a wheel holds
what tools/wheel_contents.py does not want. Imports the standard library only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools import wheel_contents

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "wheel"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
# Libraries that come with torch. In the wheel they would be second copies, in one process with
# torch's own; auditwheel leaves them to the torch that is installed.
TORCHS_LIBRARIES = ("libtorch*.so", "libc10*.so", "libcu*.so*", "libnv*.so*")
# Whether a Python can build: it runs, makes environments and has its headers.
CAN_BUILD = (
    "import ensurepip, os, sys, sysconfig, venv; "
    "sys.exit(not os.path.exists(os.path.join(sysconfig.get_path('include'), 'Python.h')))"
)


def run(*command: object, environment: Mapping[str, str] | None = None) -> None:
    words = list(map(str, command))
    print("$", *words, flush=True)
    subprocess.run(words, cwd=ROOT, env={**os.environ, **(environment or {})}, check=True)


def find_pythons() -> dict[str, str]:
    """The interpreters of PATH, by name, that can build; and this one for its own version."""
    found = {}
    for version in PYTHONS:
        own = version == ".".join(map(str, sys.version_info[:2]))
        program = sys.executable if own else shutil.which(f"python{version}")
        if program is None:
            continue
        tried = subprocess.run([program, "-c", CAN_BUILD], capture_output=True, check=False)
        if tried.returncode == 0:
            found[version] = program
    return found


def make_environment(program: str, folder: Path) -> Path:
    """An environment that can build, kept between runs; gives its folder of programs.

    torch comes without its dependencies: a build reads its headers and links with its libraries,
    and runs nothing of it.
    """
    programs = folder / "bin"
    stamp, pins = folder / "complete", ROOT / "requirements-wheel.txt"
    if stamp.exists() and stamp.stat().st_mtime > pins.stat().st_mtime:
        return programs
    run(program, "-m", "venv", "--clear", folder)
    pip = (programs / "python", "-m", "pip", "install", "--disable-pip-version-check", "-q")
    run(*pip, "-r", pins)
    run(*pip, "--no-deps", "-c", ROOT / "requirements-dev.txt", "torch")
    stamp.touch()
    return programs


def repair(wheel: Path, to: Path, environment: Mapping[str, str] | None = None) -> list[str]:
    """Gives a wheel the lowest tag that its libraries allow; returns what is wrong with it.

    Symbols are not stripped: they are a tenth of the size, and name the functions in a report of a
    crash.
    """
    excluded = (word for name in TORCHS_LIBRARIES for word in ("--exclude", name))
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        command = ("auditwheel", "repair", *excluded, "--wheel-dir", folder, wheel)
        run(*command, environment=environment)
        (made,) = Path(folder).glob("*.whl")
        repaired = Path(shutil.copy2(made, to))
    print(wheel_contents.describe(repaired), flush=True)
    return [f"{repaired.name}: {fault}" for fault in wheel_contents.wheel_faults(repaired)]


def build_all() -> list[str]:
    """The sdist into dist/, and from it, unpacked, a wheel for every Python; returns faults."""
    pythons = find_pythons()
    if not pythons:
        sys.exit(f"lstm_fused: wheels need a Python of {', '.join(PYTHONS)} with headers and venv")
    dist, built = ROOT / "dist", WORK / "built"
    for folder in (dist, built):
        shutil.rmtree(folder, ignore_errors=True)
    # Without CUDA unless it is asked for: a wheel must not depend on the machine's nvcc.
    environment = {"LSTM_FUSED_CUDA": os.environ.get("LSTM_FUSED_CUDA", "0"), "PYTHONPATH": ""}
    faults = []
    source = None
    for version, program in pythons.items():
        programs = make_environment(program, WORK / f"python{version}")
        python = programs / "python"
        environment["PATH"] = os.pathsep.join([str(programs), os.environ.get("PATH", "")])
        if source is None:
            source = make_sdist(python, dist)
        to = ("--wheel-dir", built / version)
        flags = ("--disable-pip-version-check", "--no-cache-dir", "--no-deps")
        run(
            python,
            "-m",
            "pip",
            "wheel",
            *flags,
            "--no-build-isolation",
            *to,
            source,
            environment=environment,
        )
        (wheel,) = (built / version).glob("*.whl")
        faults += repair(wheel, dist, environment)
    return faults


def make_sdist(python: Path, dist: Path) -> Path:
    """Makes the sdist, and unpacks it in a place that every wheel is built in; gives that."""
    flags = ("--sdist", "--no-isolation", "--skip-dependency-check")
    run(python, "-m", "build", *flags, "--outdir", dist)
    (sdist,) = dist.glob("*.tar.gz")
    source = WORK / "source"
    shutil.rmtree(source, ignore_errors=True)
    with tarfile.open(sdist) as archive:
        archive.extractall(source, filter="data")
    return source / sdist.name.removesuffix(".tar.gz")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.wheels", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    command = commands.add_parser("repair")
    command.add_argument("wheel", type=Path)
    command.add_argument("--to", type=Path, required=True)
    options = parser.parse_args(arguments)
    faults = repair(options.wheel, options.to) if options.command else build_all()
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
