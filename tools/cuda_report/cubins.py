# SPDX-License-Identifier: BSD-3-Clause
"""Machine code of the kernels, and what ptxas says of its registers and memory."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc" / "cuda"
CACHE = ROOT / "build" / "cuda_report"
# The architectures of cmake/cuda.cmake.
TARGETS = ("80", "86", "89", "90", "100", "120")


@dataclass(frozen=True)
class Resources:
    """What ptxas gave a kernel; bytes are those of a thread, shared memory is a block's."""

    name: str  # as in the source: persistent_forward_kernel<F16Product, 4, true, true>
    symbol: str
    source: str
    target: str
    registers: int
    static_shared: int
    stack: int
    spill_stores: int
    spill_loads: int

    @property
    def family(self) -> str:
        return self.name.split("<")[0]

    @property
    def arguments(self) -> list[str]:
        """The arguments of the template."""
        return [part.strip() for part in self.name.rstrip(">").partition("<")[2].split(",")]


def kernel_sources() -> list[Path]:
    """The .cu files that define kernels, by name."""
    return sorted(SOURCES.rglob("*.cu"))


def source_name(source: Path) -> str:
    """A source's path within csrc/cuda: "persistent/forward_bf16.cu"."""
    return source.relative_to(SOURCES).as_posix()


def compile_all(
    nvcc: str, sources: Sequence[Path], targets: Sequence[str], jobs: int = 2
) -> list[Resources]:
    """Compile each source for each target, where no earlier run has, and read ptxas's log."""
    pairs = [(source, target) for target in targets for source in sources]
    with ThreadPoolExecutor(jobs) as pool:
        logs = list(pool.map(lambda pair: _compile(nvcc, *pair), pairs))
    found = []
    for (source, target), log in zip(pairs, logs, strict=True):
        found += parse_log(log.read_text(), source_name(source), target)
    return found


def cubin_path(source: Path, target: str) -> Path:
    name = source_name(source).removesuffix(".cu").replace("/", "-")
    return CACHE / f"sm_{target}" / f"{name}.cubin"


def _compile(nvcc: str, source: Path, target: str) -> Path:
    """Write the cubin and, beside it, ptxas's log; the key says what both were made of."""
    cubin = cubin_path(source, target)
    log, stamp = cubin.with_suffix(".log"), cubin.with_suffix(".key")
    # The flags of the product's build, as far as device code depends on them.
    command = [nvcc, "-std=c++17", "-O3", "-I", str(ROOT / "csrc"), "-cubin", f"-arch=sm_{target}"]
    command += ["-Xptxas", "-v", str(source), "-o"]
    key = _key(command, source)
    if cubin.exists() and log.exists() and stamp.exists() and stamp.read_text() == key:
        return log
    cubin.parent.mkdir(parents=True, exist_ok=True)
    # NOTE: under another name first, so that two runs at once do not read half a file.
    part = cubin.with_suffix(f".{os.getpid()}.cubin")
    done = subprocess.run([*command, str(part)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    os.replace(part, cubin)
    log.write_text(done.stdout + done.stderr)
    stamp.write_text(key)
    return log


def _key(command: Sequence[str], source: Path) -> str:
    digest = hashlib.sha256(repr(command).encode())
    headers = [*SOURCES.rglob("*.h"), *SOURCES.rglob("*.cuh"), *(ROOT / "csrc/common").glob("*.h")]
    for path in [source, *sorted(headers)]:
        digest.update(path.read_bytes())
    version = subprocess.run([command[0], "--version"], capture_output=True, check=True).stdout
    digest.update(version)
    return digest.hexdigest()


def parse_log(text: str, source: str, target: str) -> list[Resources]:
    """Read the output of ``nvcc -Xptxas -v``."""
    found: list[Resources] = []
    symbol, frame = "", (0, 0, 0)
    symbols, rows = [], []
    for line in text.splitlines():
        if entry := re.search(r"Compiling entry function '(\S+)'", line):
            symbol = entry[1]
        elif memory := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            frame = (int(memory[1]), int(memory[2]), int(memory[3]))
        elif symbol and (used := re.search(r"Used (\d+) registers", line)):
            shared = re.search(r"(\d+) bytes smem", line)
            symbols.append(symbol)
            rows.append((int(used[1]), int(shared[1]) if shared else 0, *frame))
            symbol, frame = "", (0, 0, 0)
    for mangled, name, row in zip(symbols, demangle(symbols), rows, strict=True):
        found.append(Resources(name, mangled, source, target, *row))
    return found


def demangle(symbols: Iterable[str]) -> list[str]:
    """The kernels' names, without namespaces, parameters and casts."""
    symbols = list(symbols)
    if not symbols:
        return []
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None:
        raise RuntimeError("names of kernels need cu++filt (CUDA) or c++filt (binutils)")
    text = "\n".join(symbols)
    lines = subprocess.run([tool], input=text, capture_output=True, text=True, check=True).stdout
    return [_short(line) for line in lines.splitlines()]


def _short(line: str) -> str:
    line = line.removeprefix("void ").replace("(anonymous namespace)::", "")
    line = re.sub(r"\(int\)|\w+::", "", line)
    depth = 0
    for i, char in enumerate(line):
        depth += (char == "<") - (char == ">")
        if char == "(" and depth == 0:
            return line[:i]
    return line
