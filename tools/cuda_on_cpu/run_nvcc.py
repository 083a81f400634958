# SPDX-License-Identifier: BSD-3-Clause
"""Compile one .cu with nvcc, and keep what the emulation needs: the host object, the PTX, the log.

``python run_nvcc.py NVCC SOURCE BASE --arch 80 --flags ...`` writes BASE.o, BASE.ptx, BASE.log
(what ptxas -v says of registers) and BASE.d (what the object depends on).
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nvcc")
    parser.add_argument("source", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--arch", required=True)
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[])
    options = parser.parse_args()
    base: Path = options.base
    base.parent.mkdir(parents=True, exist_ok=True)
    outputs = {
        suffix: base.with_name(base.name + suffix) for suffix in (".o", ".ptx", ".log", ".d")
    }
    with tempfile.TemporaryDirectory(dir=base.parent) as kept:
        command = [
            *(options.nvcc, "-std=c++17", "-O3", "-c", str(options.source), "-o", outputs[".o"]),
            *("-gencode", f"arch=compute_{options.arch},code=sm_{options.arch}"),
            *("-cudart", "none", "-Xcompiler", "-fPIC,-fno-gnu-unique", "-Xptxas", "-v"),
            *("--keep", "--keep-dir", kept, "-MD", "-MF", outputs[".d"]),
            *options.flags,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.stderr.write(done.stdout + done.stderr)
            return done.returncode
        outputs[".log"].write_text(done.stdout + done.stderr)
        shutil.copyfile(Path(kept) / f"{options.source.stem}.ptx", outputs[".ptx"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
