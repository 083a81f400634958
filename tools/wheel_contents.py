# SPDX-License-Identifier: BSD-3-Clause
"""What a wheel is to hold, and how large it may be::

python -m tools.wheel_contents dist/*.whl
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Products of a build that a wheel holds, beside all files of the package's folder that are none.
BUILT = (
    "lstm_fused/_C.*.so",
    "lstm_fused/liblstm_fused_ops.so",
    "lstm_fused/lib/liblstm_fused.so",
    "lstm_fused/lib/cmake/lstm_fused/lstm_fused-config.cmake",
    "lstm_fused/lib/cmake/lstm_fused/lstm_fused-config-version.cmake",
)
BUILT_WITH_CUDA = "lstm_fused/_C_cuda.*.so"
# Metadata that users look for; a wheel may hold more, as the build wants it.
METADATA = ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE")
MAX_CPU_BYTES = 5_000_000


def package_files() -> list[str]:
    """The files of the source package, as they stand in the tree."""
    found = (path.relative_to(ROOT) for path in (ROOT / "lstm_fused").rglob("*") if path.is_file())
    return sorted(
        path.as_posix()
        for path in found
        if "__pycache__" not in path.parts
        and path.parts[:2] != ("lstm_fused", "lib")
        and path.suffix != ".so"
    )


def content_faults(names: Iterable[str]) -> list[str]:
    """What the names of a wheel's files lack, and what they have too many.

    Every file is accounted for, so that no test, tool or foreign library slips in.
    """
    left = {name for name in names if not name.endswith("/")}
    faults = []
    for pattern in (*package_files(), *BUILT):
        found = {name for name in left if fnmatchcase(name, pattern)}
        if len(found) != 1:
            faults.append(f"{pattern}: wanted one file, got {len(found)}")
        left -= found
    left -= {name for name in left if fnmatchcase(name, BUILT_WITH_CUDA)}
    metadata = {name for name in left if name.split("/")[0].endswith(".dist-info")}
    inside = {name.split("/", 1)[1] for name in metadata}
    faults += [f"*.dist-info/{name} is missing" for name in METADATA if name not in inside]
    return faults + [f"{name} does not belong into a wheel" for name in sorted(left - metadata)]


def wheel_faults(wheel: Path) -> list[str]:
    """What is wrong with a wheel: its contents, and without CUDA's kernels its size."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    faults = content_faults(names)
    with_cuda = any(fnmatchcase(name, BUILT_WITH_CUDA) for name in names)
    size = wheel.stat().st_size
    if not with_cuda and size > MAX_CPU_BYTES:
        faults.append(f"{size} bytes, at most {MAX_CPU_BYTES} wanted")
    return faults


def describe(wheel: Path) -> str:
    """A line: the wheel's size, and the libraries' in it, packed and unpacked."""
    with zipfile.ZipFile(wheel) as archive:
        infos = [info for info in archive.infolist() if info.filename.endswith(".so")]
    libraries = ", ".join(
        f"{Path(info.filename).name} {info.compress_size / 1e6:.2f} ({info.file_size / 1e6:.2f})"
        for info in infos
    )
    size = wheel.stat().st_size / 1e6
    return f"{wheel.name}: {size:.2f} MB, of which packed (unpacked): {libraries}"


def main(arguments: Sequence[str]) -> int:
    status = 0
    for wheel in map(Path, arguments):
        print(describe(wheel))
        for fault in wheel_faults(wheel):
            print(f"{wheel.name}: {fault}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
