# SPDX-License-Identifier: BSD-3-Clause
"""What ptxas says a kernel uses on the real target: registers, stack and shared memory."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class KernelResources:
    registers: int
    stack_bytes: int
    spill_bytes: int


@dataclass(frozen=True)
class Resources:
    kernels: dict[str, KernelResources]


_ENTRY = re.compile(r"Compiling entry function '([\w$]+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


def parse_ptxas_log(text: str) -> Resources:
    """Parse what `ptxas -v` prints."""
    kernels: dict[str, KernelResources] = {}
    name, stack, spills = "", 0, 0
    for line in text.splitlines():
        if match := _ENTRY.search(line):
            name, stack, spills = match[1], 0, 0
        elif (match := _STACK.search(line)) and name not in kernels:
            stack, spills = int(match[1]), int(match[2]) + int(match[3])
        elif (match := _REGISTERS.search(line)) and name:
            kernels[name] = KernelResources(int(match[1]), stack, spills)
    return Resources(kernels)
