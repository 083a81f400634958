# SPDX-License-Identifier: BSD-3-Clause
"""Machine code for tests of tools/cuda_report: small kernels compiled, and listings by hand."""

import re
import struct
import subprocess
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

import pytest

from tools.cuda_report.arguments import Arguments
from tools.cuda_report.cubins import CACHE
from tools.cuda_report.launch import launch_constants
from tools.cuda_report.sass.decode import Listing, disassemble, find_nvdisasm, read_listings
from tools.cuda_report.sass.flow import Flow
from tools.cuda_report.sass.memory import Memory
from tools.cuda_report.sass.walk import Launch, Walk, walk
from tools.nvcc import find_nvcc


def control_word(stall: int = 1, write: int = 7, read: int = 7, waits: tuple[int, ...] = ()) -> int:
    """The upper 64 bits of an instruction, of which only the control code counts."""
    mask = sum(1 << board for board in waits)
    return (stall | 1 << 4 | write << 5 | read << 8 | mask << 11) << 41


def listing(*lines: str) -> Listing:
    """A kernel of these lines: "LABEL:", or an instruction and behind it its control code, as in
    "FADD R0, R1, R2 ; stall=4 waits=0,1"."""
    text, address = ['.section .text.kernel,"ax",@progbits'], 0
    for line in lines:
        if line.endswith(":"):
            text.append(line)
            continue
        code, _, control = line.partition(";")
        fields = {}
        for name, value in re.findall(r"(\w+)=([\d,]+)", control):
            numbers = tuple(map(int, value.split(",")))
            fields[name] = numbers if name == "waits" else numbers[0]
        word = control_word(**fields)
        text.append(f"        /*{address:04x}*/    {code.strip()} ;   /* 0x{0:016x} */")
        text.append(f"             /* 0x{word:016x} */")
        address += 16
    return read_listings("\n".join(text))["kernel"]


@dataclass(frozen=True)
class Kernel:
    """The only kernel of a cubin."""

    listing: Listing
    cubin: Path

    def walk(self, launch: Launch, parameters: bytes, arrays: list[str]) -> tuple[Walk, Memory]:
        arguments = Arguments(parameters, b"\1" * len(parameters), arrays)
        constants = launch_constants(launch, arguments, self.cubin, self.listing.symbol)
        memory = Memory(arguments, {})
        return walk(Flow(self.listing), constants, launch, memory), memory

    def steps(self, walked: Walk, warp: int = 0) -> list[str]:
        """What a warp issued, without modifiers; of what at least one lane executes."""
        instructions = self.listing.instructions
        return [instructions[step.place].base for step in walked.warps[warp] if step.executes]


@cache
def compiled(source: str, arch: int) -> Kernel:
    """A kernel compiled from CUDA."""
    nvcc, nvdisasm = find_nvcc(), find_nvdisasm()
    if nvcc is None or nvdisasm is None:
        pytest.skip("needs nvcc and nvdisasm")
    directory = CACHE / "tests"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{sha256(source.encode()).hexdigest()[:16]}_{arch}.cubin"
    if not path.exists():
        code = path.with_suffix(".cu")
        code.write_text(source)
        part = path.with_suffix(".part")
        command = [nvcc, "-std=c++17", "-O3", "-cubin", f"-arch=sm_{arch}", str(code), "-o"]
        subprocess.run([*command, str(part)], check=True, capture_output=True)
        part.replace(path)
    (found,) = disassemble(nvdisasm, path).values()
    return Kernel(found, path)


def words(*numbers: int) -> bytes:
    """Parameters of 32 bits."""
    return struct.pack(f"<{len(numbers)}i", *numbers)
