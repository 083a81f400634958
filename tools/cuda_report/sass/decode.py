# SPDX-License-Identifier: BSD-3-Clause
"""Decodes what ``nvdisasm -c -hex`` prints: instructions, operands and control codes.

From sm_70 on an instruction has 128 bits, of which bits 105 to 125 are the control code: ptxas's
schedule, which the hardware does not check.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tools.cuda_report.sass.operands import Operand, parse_operand, split_operands

NO_BARRIER = 7
_CODE = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s+/\* 0x([0-9a-f]{16}) \*/")
_HIGH_WORD = re.compile(r"\s+/\* 0x([0-9a-f]{16}) \*/\s*$")
_LABEL = re.compile(r"^\s*([.$\w]+):\s*$")
_TABLE = re.compile(r"(\w+)\s+(-?0x[0-9a-f]+)\s+\(\*\"BRANCH_TARGETS (.*)\"\*\)")
_REMARK = re.compile(r"\s*\(\*.*?\*\)\s*")  # (*"SpillRefill"*)
_PREDICATE = re.compile(r"@(!?U?P[T0-9])\s+")


@dataclass(frozen=True)
class Control:
    """The control code of an instruction."""

    stall: int  # cycles before the warp's next instruction may issue
    may_yield: bool
    write_barrier: int  # scoreboard that is released when the result is there; 7: none
    read_barrier: int  # scoreboard that is released when the operands have been read; 7: none
    waits: tuple[int, ...]  # scoreboards that must be released before this instruction issues
    reuse: int  # operands kept in the register file's cache, a bit each


def decode_control(high_word: int) -> Control:
    """The control code in the upper 64 bits of an instruction."""
    code = high_word >> 41
    return Control(
        stall=code & 15,
        may_yield=not code >> 4 & 1,
        write_barrier=code >> 5 & 7,
        read_barrier=code >> 8 & 7,
        waits=tuple(i for i in range(6) if code >> 11 + i & 1),
        reuse=code >> 17 & 15,
    )


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: Operand | None
    base: str  # the name without modifiers: LDG
    modifiers: tuple[str, ...]  # E, 128, STRONG, GPU
    operands: tuple[Operand, ...]
    control: Control
    text: str  # of all, without the semicolon
    targets: tuple[str, ...] = ()  # labels to which a jump by a table may go

    @property
    def name(self) -> str:
        return ".".join((self.base, *self.modifiers))

    @property
    def label(self) -> str | None:
        """The label that a branch names."""
        return next((o.label for o in self.operands if o.kind == "label"), None)

    @property
    def is_jump(self) -> bool:
        """Whether it goes to a label for good. NOTE: ptxas may leave a loop by a CALL of a label of
        the kernel's own, which never returns; functions have other names."""
        return self.base == "BRA" or (self.base == "CALL" and (self.label or "").startswith(".L_"))


@dataclass
class Listing:
    """The machine code of one kernel."""

    symbol: str
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # to places in `instructions`

    def place_of(self, address: int) -> int:
        """The place of the instruction at an address: all have 16 bytes."""
        place = address // 16
        if self.instructions[place].address != address:
            raise ValueError(f"{self.symbol}: no instruction at {address:#x}")
        return place


def find_nvdisasm() -> str | None:
    """The path of nvdisasm: PyPI's nvidia-cuda-nvdisasm, or the toolkit's."""
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for found in sorted(Path(place).glob("*/bin/nvdisasm")):
            return str(found)
    return shutil.which("nvdisasm") or shutil.which("nvdisasm", path="/usr/local/cuda/bin")


def disassemble(nvdisasm: str, cubin: Path) -> dict[str, Listing]:
    """The kernels of a cubin, by symbol."""
    command = [nvdisasm, "-c", "-hex", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return read_listings(text)


def read_listings(text: str) -> dict[str, Listing]:
    """The kernels in nvdisasm's output, by symbol."""
    found = {}
    for part in re.split(r"^\s*\.section\s+\.text\.", text, flags=re.MULTILINE)[1:]:
        symbol = re.match(r'"?([^,\s"]+)', part)
        assert symbol is not None
        found[symbol[1]] = _read_listing(symbol[1], part)
    return found


def _read_listing(symbol: str, part: str) -> Listing:
    listing = Listing(symbol)
    first: tuple[int, str] | None = None  # an instruction whose second line is to come
    for line in part.splitlines():
        if first is not None:
            high = _HIGH_WORD.match(line)
            if high is None:
                raise ValueError(f"{symbol} at {first[0]:#x}: got {line!r}, wanted the upper word")
            listing.instructions.append(decode(*first, int(high[1], 16)))
            first = None
        elif label := _LABEL.match(line):
            listing.labels[label[1]] = len(listing.instructions)
        elif code := _CODE.match(line):
            first = (int(code[1], 16), code[2])
    return listing


def decode(address: int, text: str, high_word: int) -> Instruction:
    """An instruction from its text, without the semicolon, and its upper 64 bits."""
    predicate = _PREDICATE.match(text)
    body = text[predicate.end() :] if predicate else text
    name, _, rest = body.partition(" ")
    base, *modifiers = name.split(".")
    targets: tuple[str, ...] = ()
    if table := _TABLE.match(rest):  # a register and what is added to it, as an address
        rest, targets = f"[{table[1]}.64+{table[2]}]", tuple(table[3].split(","))
    rest = _REMARK.sub("", rest)
    return Instruction(
        address=address,
        predicate=parse_operand(predicate[1]) if predicate else None,
        base=base,
        modifiers=tuple(modifiers),
        operands=tuple(parse_operand(part) for part in split_operands(rest)),
        control=decode_control(high_word),
        text=text,
        targets=targets,
    )
