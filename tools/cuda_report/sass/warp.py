# SPDX-License-Identifier: BSD-3-Clause
"""What a warp computes with: registers, constants, special registers; reading of operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from tools.cuda_report.sass.decode import Instruction
from tools.cuda_report.sass.lanes import (
    MASK32,
    WARP,
    Flags,
    Lanes,
    Registers,
    Truth,
    constant,
    joined,
    unknown,
)
from tools.cuda_report.sass.operands import Address, Operand

_SIGN = np.uint64(0x80000000)
_MASK64 = (1 << 64) - 1


@dataclass(frozen=True)
class Constants:
    """Bank 0: the launch and the kernel's parameters. Others: the compiler's tables."""

    data: bytes
    known: bytes  # 1 for each known byte
    others: Mapping[int, bytes] = field(default_factory=dict)

    def load(self, bank: int, place: int, size: int) -> int | None:
        data = self.data if bank == 0 else self.others.get(bank, b"")
        if not 0 <= place <= len(data) - size:
            return None
        if bank == 0 and not all(self.known[place : place + size]):
            return None
        return int.from_bytes(data[place : place + size], "little")


@dataclass
class Warp:
    constants: Constants
    special: Mapping[str, Lanes]  # by name: SR_TID.X
    registers: Registers = field(default_factory=Registers)
    active: Flags = field(default_factory=lambda: np.ones(WARP, bool))  # lanes that execute now

    def integer(self, operand: Operand) -> Lanes:
        """32 bits, negated as an integer."""
        value = self.raw(operand)
        if not (operand.negated or operand.inverted or operand.absolute):
            return value
        bits = value.bits
        if operand.absolute:
            bits = np.where(bits & _SIGN, (~bits + np.uint64(1)) & MASK32, bits)
        if operand.inverted:
            bits = ~bits & MASK32
        if operand.negated:
            bits = (~bits + np.uint64(1)) & MASK32
        return Lanes(bits, value.known, value.origin)

    def floating(self, operand: Operand) -> Lanes:
        """32 bits, negated as a float."""
        value = self.raw(operand)
        bits = value.bits & ~_SIGN if operand.absolute else value.bits
        return Lanes(bits ^ _SIGN if operand.negated else bits, value.known, value.origin)

    def raw(self, operand: Operand) -> Lanes:
        """32 bits, without the operand's sign."""
        if operand.kind == "register":
            return self.registers.read(operand.index)
        if operand.kind in ("integer", "float"):
            return constant(operand.value)
        if operand.kind == "constant":
            return self.constant_at(operand, 4)
        if operand.kind == "special":
            return self.special.get(operand.text, unknown(operand.text))
        return unknown(f"operand {operand.text}")

    def wide(self, operand: Operand, sign_extend: bool = False) -> Lanes:
        """64 bits: of two registers, of a constant; of an integer, extended."""
        if operand.kind == "register":
            value = self.registers.read_pair(operand.index)
        elif operand.kind == "constant":
            value = self.constant_at(operand, 8)
        else:
            bits = operand.value
            high = 0xFFFFFFFF if sign_extend and bits >> 31 else 0
            value = constant(high << 32 | bits)
        bits64 = value.bits
        if operand.inverted:
            bits64 = ~bits64
        if operand.negated:
            bits64 = ~bits64 + np.uint64(1)
        return Lanes(bits64, value.known, value.origin)

    def constant_at(self, operand: Operand, size: int) -> Lanes:
        assert operand.address is not None
        origin = f"constant {operand.text}"
        if operand.address.register is None and operand.address.uniform is None:
            value = self.constants.load(operand.index, operand.address.offset, size)
            return unknown(origin) if value is None else constant(value)
        places = self.address(operand.address)
        if not places.known.all():
            return unknown(origin)
        found = {int(p): self.constants.load(operand.index, int(p), size) for p in places.bits}
        values = [found[int(p)] for p in places.bits]
        known = np.array([v is not None for v in values])
        bits = np.array([v or 0 for v in values], np.uint64)
        return Lanes(bits, known, "" if known.all() else origin)

    def address(self, address: Address) -> Lanes:
        """The sum of an address's parts."""
        registers = self.registers
        total = constant(address.offset & _MASK64)
        if address.register is not None:
            read = registers.read_pair if address.wide else registers.read
            base = read(address.register)
            total = Lanes(total.bits + base.bits * np.uint64(address.scale), *joined(total, base))
        if address.uniform is not None:
            read = registers.read_pair if address.uniform_wide else registers.read
            base = read(address.uniform)
            total = Lanes(total.bits + base.bits, *joined(total, base))
        if address.register is not None and not address.wide and not address.uniform_wide:
            return Lanes(total.bits & MASK32, total.known, total.origin)
        return total

    def truth(self, operand: Operand) -> Truth:
        return self.registers.predicate(operand)


# What an instruction does to a warp, in these lanes.
Operation = Callable[[Warp, Instruction, Truth], None]
OPERATIONS: dict[str, Operation] = {}


def operation(*names: str) -> Callable[[Operation], Operation]:
    """Registers the meaning of instructions, by their names without modifiers."""

    def add(function: Operation) -> Operation:
        for name in names:
            OPERATIONS[name] = function
        return function

    return add


def predicates(operands: tuple[Operand, ...]) -> list[Operand]:
    return [o for o in operands if o.kind == "predicate"]


def values(operands: tuple[Operand, ...]) -> list[Operand]:
    return [o for o in operands if o.kind != "predicate"]
