# SPDX-License-Identifier: BSD-3-Clause
"""Compile the microbenchmarks for the GPU of this machine, run them, and print what they found.

Writes micro.json: "facts" of the device and the build, and "measures", by name. A measure has
cycles of an SM and nanoseconds, with the least and the most cycles of its launches; or a count, or
microseconds; or "failed".
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.machine import commit
from tools.nvcc import find_nvcc, nvcc_release

HERE = Path(__file__).resolve().parent


def build(nvcc: str, arch: str, directory: Path) -> Path:
    """The program, compiled for one architecture, as "90"; each source by an nvcc of its own."""
    sources = sorted(HERE.glob("*.cu"))

    def compile_one(source: Path) -> str:
        target = str(directory / f"{source.stem}.o")
        code = f"arch=compute_{arch},code=sm_{arch}"
        flags = ["-std=c++17", "-O3", "-gencode", code]
        subprocess.run([nvcc, *flags, "-c", str(source), "-o", target], check=True)
        return target

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compile_one, sources))
    program = directory / "micro"
    subprocess.run([nvcc, *objects, "-o", str(program)], check=True)
    return program


def parse(text: str) -> dict[str, Any]:
    """What the program printed: a line with the device's facts, then one for each measure."""
    records = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    facts = [record for record in records if "name" not in record]
    measures = {record.pop("name"): record for record in records if "name" in record}
    return {"facts": facts[0] if facts else {}, "measures": measures}


def table(found: dict[str, Any]) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in found["facts"].items())
    lines = [facts, f"{'name':36} {'cycles':>9} {'ns':>9}  {'cycles, least to most':>21}  what"]
    for name, row in found["measures"].items():
        if "cycles" in row:
            values = f"{row['cycles']:9.1f} {row['ns']:9.2f}"
            spread = f"{row['least']:.1f} to {row['most']:.1f}"
        else:
            unit = next(iter(row))
            values, spread = f"{unit}: {row[unit]}".rjust(19), ""
        lines.append(f"{name:36} {values}  {spread:>21}  {row.get('what', '')}".rstrip())
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.micro", description=__doc__)
    parser.add_argument("--arch", required=True, help="of the device, as 90")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for micro.json")
    options = parser.parse_args(arguments)
    nvcc = find_nvcc(packages=False)
    if nvcc is None:
        parser.error("nvcc must be there (see CUDA_HOME), found none")
    with tempfile.TemporaryDirectory() as directory:
        try:
            program = build(nvcc, options.arch, Path(directory))
        except subprocess.CalledProcessError as error:  # it has said why
            text = f"nvcc must compile for sm_{options.arch}, ended with {error.returncode}"
            print(text, file=sys.stderr)
            return 1
        done = subprocess.run([str(program)], stdout=subprocess.PIPE, text=True)
    found = parse(done.stdout)
    release = nvcc_release(nvcc)
    found["facts"] |= {"nvcc": ".".join(map(str, release or ())), "commit": commit()}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "micro.json").write_text(json.dumps(found, indent=2) + "\n")
    print(table(found), flush=True)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
