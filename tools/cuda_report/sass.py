# SPDX-License-Identifier: BSD-3-Clause
"""The machine code of a time step: the instructions of a kernel's largest loop with a barrier.

Counted as they stand: both sides of a branch, and the body of an inner loop once. What the compiler
moved out of the loop (cold paths behind the kernel's end) is not counted.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

# Address, predicate, mnemonic, and the rest.
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)(.*)")


@dataclass(frozen=True)
class Loop:
    total: int
    kinds: Counter[str]  # by mnemonic, without modifiers


def find_nvdisasm() -> str | None:
    """The path of nvdisasm: PyPI's nvidia-cuda-nvdisasm, or the toolkit's."""
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for found in sorted(Path(place).glob("*/bin/nvdisasm")):
            return str(found)
    return shutil.which("nvdisasm") or shutil.which("nvdisasm", path="/usr/local/cuda/bin")


def loops_of(nvdisasm: str, cubin: Path) -> dict[str, Loop]:
    """The loop of time steps of each kernel in a cubin, by symbol; of each that has one."""
    text = subprocess.run(
        [nvdisasm, "-c", str(cubin)], capture_output=True, text=True, check=True
    ).stdout
    return read_loops(text)


def read_loops(text: str) -> dict[str, Loop]:
    found = {}
    for part in re.split(r"^\s*\.section\s+\.text\.", text, flags=re.MULTILINE)[1:]:
        symbol = re.match(r"[^,\s]+", part)
        assert symbol is not None
        loop = _time_loop(part)
        if loop is not None:
            found[symbol[0].strip('"')] = loop
    return found


def _time_loop(part: str) -> Loop | None:
    labels: dict[str, int] = {}
    instructions: list[tuple[str, str | None]] = []  # mnemonic, target of a branch
    for line in part.splitlines():
        if label := re.match(r"\s*(\.L\w+):", line):
            labels[label[1]] = len(instructions)
        elif code := _INSTRUCTION.search(line):
            goal = re.search(r"`\((\.L\w+)\)", code[2])
            instructions.append((code[1], goal[1] if code[1] == "BRA" and goal else None))
    best: Loop | None = None
    for end, (_, target) in enumerate(instructions):
        if target is None or labels.get(target, end + 1) > end:
            continue
        body = Counter(name for name, _ in instructions[labels[target] : end + 1])
        if body["BAR"] and (best is None or body.total() > best.total):
            best = Loop(body.total(), body)
    return best
