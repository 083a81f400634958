# SPDX-License-Identifier: BSD-3-Clause
"""Values of a warp's 32 lanes, some of them unknown, and a warp's registers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tools.cuda_report.sass.operands import (
    PREDICATES,
    REGISTERS,
    TRUE_PREDICATE,
    UNIFORM_PREDICATES,
    UNIFORM_REGISTERS,
    ZERO_REGISTER,
    Operand,
)

WARP = 32
Bits = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]
ALL = np.ones(WARP, bool)
NONE = np.zeros(WARP, bool)
MASK32 = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_ZERO = np.zeros(WARP, np.uint64)


class Lanes(NamedTuple):
    """32 or 64 bits of each lane. Where `known` is false the bits mean nothing, and `origin` says
    what the value came from."""

    bits: Bits
    known: Flags = ALL
    origin: str = ""

    @property
    def signed(self) -> npt.NDArray[np.int64]:
        """32 bits as signed numbers."""
        return self.bits.astype(np.uint32).view(np.int32).astype(np.int64)

    @property
    def floats(self) -> npt.NDArray[np.float32]:
        return self.bits.astype(np.uint32).view(np.float32)


class Truth(NamedTuple):
    """A predicate of each lane."""

    true: Flags
    known: Flags = ALL
    origin: str = ""

    def __invert__(self) -> Truth:
        return Truth(~self.true, self.known, self.origin)

    @property
    def surely(self) -> Flags:
        return self.true & self.known

    @property
    def surely_not(self) -> Flags:
        return ~self.true & self.known


TRUE, FALSE = Truth(ALL), Truth(NONE)


def constant(value: int) -> Lanes:
    return Lanes(np.full(WARP, value, np.uint64))


def unknown(origin: str) -> Lanes:
    return Lanes(_ZERO, NONE, origin)


def from_floats(values: npt.NDArray[Any], *sources: Lanes) -> Lanes:
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return Lanes(bits, *joined(*sources))


def joined(*sources: Lanes | Truth) -> tuple[Flags, str]:
    """Where all sources are known, and the origin of the first that is not."""
    known, origin = ALL, ""
    for source in sources:
        if source.origin:
            known = known & source.known
            origin = origin or source.origin
    return known, origin


def conjunction(a: Truth, b: Truth) -> Truth:
    """a and b: known to be false as soon as one of them is."""
    known = (a.known & b.known) | a.surely_not | b.surely_not
    return Truth(a.true & b.true & known, known, _origin(known, a, b))


def disjunction(a: Truth, b: Truth) -> Truth:
    return ~conjunction(~a, ~b)


def exclusive(a: Truth, b: Truth) -> Truth:
    known = a.known & b.known
    return Truth(a.true ^ b.true, known, _origin(known, a, b))


def _origin(known: Flags, *sources: Truth) -> str:
    return "" if known.all() else next((s.origin for s in sources if s.origin), "")


class Registers:
    """Registers and predicates of a warp. A uniform register has the same value in all lanes.

    They begin as zeros: what was never written does not matter, as the bits in which the compiler
    collects predicates, setting one after the other.
    """

    def __init__(self) -> None:
        self.bits = np.zeros((REGISTERS, WARP), np.uint64)
        self.known = np.ones((REGISTERS, WARP), bool)
        self.origin = [""] * REGISTERS
        self.true = np.zeros((PREDICATES, WARP), bool)
        self.true_known = np.ones((PREDICATES, WARP), bool)
        self.true_origin = [""] * PREDICATES
        for true in (TRUE_PREDICATE, TRUE_PREDICATE + UNIFORM_PREDICATES):
            self.true[true] = True

    def read(self, index: int) -> Lanes:
        return Lanes(self.bits[index].copy(), self.known[index].copy(), self.origin[index])

    def read_pair(self, index: int) -> Lanes:
        """64 bits of two registers; of the zero register, zero."""
        if index % UNIFORM_REGISTERS == ZERO_REGISTER:
            return constant(0)
        low, high = self.read(index), self.read(index + 1)
        return Lanes(low.bits | high.bits << _SHIFT, *joined(low, high))

    def write(self, index: int, value: Lanes, lanes: Truth) -> None:
        """Writes 32 bits in the lanes that execute; where that is unknown, so is the register."""
        if index % UNIFORM_REGISTERS == ZERO_REGISTER:
            return
        if index >= UNIFORM_REGISTERS:  # one thread writes for all
            lanes = TRUE if lanes.surely.any() else lanes
        if lanes is TRUE:
            self.bits[index] = value.bits & MASK32
            self.known[index] = value.known
            self.origin[index] = value.origin
            return
        sure, unsure = lanes.surely, ~lanes.known
        np.copyto(self.bits[index], value.bits & MASK32, where=sure)
        np.copyto(self.known[index], value.known, where=sure)
        self.known[index] &= ~unsure
        origins = (value.origin, self.origin[index], lanes.origin)
        self.origin[index] = _first(origins) if not self.known[index].all() else ""

    def write_pair(self, index: int, value: Lanes, lanes: Truth) -> None:
        self.write(index, value, lanes)
        if index % UNIFORM_REGISTERS != ZERO_REGISTER:
            self.write(index + 1, Lanes(value.bits >> _SHIFT, value.known, value.origin), lanes)

    def predicate(self, operand: Operand) -> Truth:
        i = operand.index
        truth = Truth(self.true[i].copy(), self.true_known[i].copy(), self.true_origin[i])
        return ~truth if operand.negated else truth

    def write_predicate(self, operand: Operand, value: Truth, lanes: Truth) -> None:
        i = operand.index
        if i % UNIFORM_PREDICATES == TRUE_PREDICATE:
            return
        if i >= UNIFORM_PREDICATES:
            lanes = TRUE if lanes.surely.any() else lanes
        np.copyto(self.true[i], value.true, where=lanes.surely)
        np.copyto(self.true_known[i], value.known, where=lanes.surely)
        self.true_known[i] &= lanes.known
        origins = (value.origin, self.true_origin[i], lanes.origin)
        self.true_origin[i] = _first(origins) if not self.true_known[i].all() else ""


def _first(origins: tuple[str, ...]) -> str:
    return next((origin for origin in origins if origin), "?")
