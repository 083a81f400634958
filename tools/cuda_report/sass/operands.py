# SPDX-License-Identifier: BSD-3-Clause
"""Operands of machine code."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace

# Registers are numbered through: R0 … R254 and RZ, then UR0 … and URZ.
ZERO_REGISTER, UNIFORM_REGISTERS, REGISTERS = 255, 256, 512
TRUE_PREDICATE, UNIFORM_PREDICATES, PREDICATES = 7, 8, 16

_REGISTER = re.compile(r"(U?)R(Z|\d+)$")
_PREDICATE = re.compile(r"(U?)P(T|\d)$")
_CONSTANT = re.compile(r"c\[0x([0-9a-f]+)\]\s*\[(.*)\]$")
_NUMBER = re.compile(r"[-+]?(\d|INF|QNAN|SNAN)")


@dataclass(frozen=True)
class Address:
    """What is between the brackets of a memory operand: the sum of its parts."""

    register: int | None  # None: no such part
    wide: bool  # the register is a pair
    scale: int
    uniform: int | None
    uniform_wide: bool
    offset: int


@dataclass(frozen=True)
class Operand:
    kind: str  # register, predicate, integer, float, constant, memory, label, special or other
    text: str
    index: int = 0  # of a register or predicate; the bank of a constant
    negated: bool = False  # -R0, or !P0
    inverted: bool = False  # ~R0
    absolute: bool = False  # |R0|
    value: int = 0  # 32 bits of an integer or float
    address: Address | None = None  # of memory, or within a constant bank
    label: str = ""


def split_operands(text: str) -> list[str]:
    """Splits at commas, and ahead of a label: ``RET.REL.NODEC R4 `(kernel)`` has no comma there."""
    return [part.strip() for part in re.split(r",|(?=`)", text) if part.strip()]


def parse_operand(text: str) -> Operand:
    plain, negated, inverted, absolute = text, False, False, False
    if re.match(r"[-!](?!\d|INF)", plain):
        plain, negated = plain[1:], True
    if plain.startswith("~"):
        plain, inverted = plain[1:], True
    if plain.startswith("|"):
        plain, absolute = plain.replace("|", ""), True
    operand = _parse_plain(plain)
    return replace(operand, text=text, negated=negated, inverted=inverted, absolute=absolute)


def _parse_plain(text: str) -> Operand:
    """An operand without a sign."""
    if label := re.match(r"`\((.*?)\)", text):
        return Operand("label", text, label=label[1])
    if constant := _CONSTANT.match(text[: text.rfind("]") + 1]):
        address = _parse_address(constant[2])
        return Operand("constant", text, index=int(constant[1], 16), address=address)
    if text.endswith("]"):
        return Operand("memory", text, address=_parse_address(text[text.rfind("[") + 1 : -1]))
    if text.startswith("SR"):
        return Operand("special", text)
    name = text.partition(".")[0]
    if found := _REGISTER.match(name):
        index = ZERO_REGISTER if found[2] == "Z" else int(found[2])
        return Operand("register", text, index=index + (UNIFORM_REGISTERS if found[1] else 0))
    if found := _PREDICATE.match(name):
        index = TRUE_PREDICATE if found[2] == "T" else int(found[2])
        return Operand("predicate", text, index=index + (UNIFORM_PREDICATES if found[1] else 0))
    if re.match(r"[-+]?0x", text):
        return Operand("integer", text, value=int(text, 16) & 0xFFFFFFFF)
    if _NUMBER.match(text):
        return Operand("float", text, value=float_bits(text))
    return Operand("other", text)


def float_bits(text: str) -> int:
    number = float(text.replace("QNAN", "nan").replace("SNAN", "nan"))
    return int(struct.unpack("<I", struct.pack("<f", number))[0])


def _parse_address(text: str) -> Address:
    register = uniform = None
    wide = uniform_wide = False
    scale, offset = 1, 0
    for part in re.findall(r"[-+]?[^-+]+", text):
        name, *modifiers = part.lstrip("+").split(".")
        if found := _REGISTER.match(name):
            index = ZERO_REGISTER if found[2] == "Z" else int(found[2])
            if found[1]:
                uniform, uniform_wide = index + UNIFORM_REGISTERS, "64" in modifiers
            else:
                register, wide = index, "64" in modifiers
                scales = [int(m[1:]) for m in modifiers if re.match(r"X\d", m)]
                scale = scales[0] if scales else 1
        elif re.match(r"[-+]?0x", part):
            offset += int(part, 16)
        else:
            raise ValueError(f"address: got [{text}], wanted registers and offsets")
    return Address(register, wide, scale, uniform, uniform_wide, offset)
