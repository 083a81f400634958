# SPDX-License-Identifier: BSD-3-Clause
"""Moves, exchanges between lanes, and float arithmetic in the machine code.

Floats are computed where they are known: divisions of integers are made of them. Results may differ
from the hardware's in the last bit, which these divisions allow for.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tools.cuda_report.sass.decode import Instruction
from tools.cuda_report.sass.lanes import (
    FALSE,
    NONE,
    WARP,
    Lanes,
    Truth,
    constant,
    from_floats,
    joined,
    unknown,
)
from tools.cuda_report.sass.predicate import choose
from tools.cuda_report.sass.warp import Warp, operation, predicates, values

_REDUCTIONS: dict[str, np.ufunc] = {
    **{"MAX": np.maximum, "MIN": np.minimum, "SUM": np.add},
    **{"OR": np.bitwise_or, "AND": np.bitwise_and, "XOR": np.bitwise_xor},
}


@operation("MOV", "UMOV", "S2R", "S2UR", "UR2R")
def move(warp: Warp, i: Instruction, lanes: Truth) -> None:
    result, source = i.operands[:2]
    if "64" in i.modifiers:
        warp.registers.write_pair(result.index, warp.wide(source), lanes)
    else:
        warp.registers.write(result.index, warp.integer(source), lanes)


@operation("CS2R")
def move_special(warp: Warp, i: Instruction, lanes: Truth) -> None:
    result, source = i.operands
    value = constant(0) if source.text == "SRZ" else unknown(source.text)
    if "32" in i.modifiers:
        warp.registers.write(result.index, value, lanes)
    else:
        warp.registers.write_pair(result.index, value, lanes)


@operation("LDC", "ULDC", "LDCU")
def load_constant(warp: Warp, i: Instruction, lanes: Truth) -> None:
    result, source = i.operands
    words = next((int(m) // 32 for m in i.modifiers if m in ("64", "128")), 1)
    small = {"U8": 1, "S8": 1, "U16": 2, "S16": 2}
    size = next((small[m] for m in i.modifiers if m in small), 4)
    assert source.address is not None
    parts = []
    for n in range(words):
        address = replace(source.address, offset=source.address.offset + 4 * n)
        parts.append(warp.constant_at(replace(source, address=address), size))
    for n, part in enumerate(parts):  # the result may lie where the address was
        warp.registers.write(result.index + n, part, lanes)


@operation("R2UR")
def to_uniform(warp: Warp, i: Instruction, lanes: Truth) -> None:
    """The first lane's value, for all."""
    result, source = values(i.operands)[:2]
    value = warp.integer(source)
    found = np.flatnonzero(warp.active)
    first = int(found[0]) if len(found) else 0
    known = np.full(WARP, value.known[first])
    value = Lanes(np.full(WARP, value.bits[first]), known, "" if known.all() else value.origin)
    warp.registers.write(result.index, value, lanes)
    for predicate in predicates(i.operands)[:-1]:
        warp.registers.write_predicate(predicate, Truth(NONE, NONE, i.name), lanes)


@operation("SHFL")
def shuffle(warp: Warp, i: Instruction, lanes: Truth) -> None:
    (result, source, distance, limits), written = values(i.operands), predicates(i.operands)
    value, by, bounds = (warp.integer(o) for o in (source, distance, limits))
    lane = np.arange(WARP, dtype=np.int64)
    segment = bounds.bits.view(np.int64) >> 8 & 31
    clamp, step = bounds.bits.view(np.int64) & 31, by.bits.view(np.int64) & 31
    low = lane & segment
    high = low | (clamp & ~segment)
    way = next(m for m in i.modifiers if m in ("IDX", "UP", "DOWN", "BFLY"))
    other = {"UP": lane - step, "DOWN": lane + step, "BFLY": lane ^ step}.get(
        way, low | (step & ~segment)
    )
    inside = other >= high if way == "UP" else other <= high
    other = np.where(inside, other, lane)
    sure, origin = joined(by, bounds)
    known = value.known[other] & sure
    origin = "" if known.all() else value.origin or origin
    warp.registers.write(result.index, Lanes(value.bits[other], known, origin), lanes)
    for predicate in written:
        warp.registers.write_predicate(predicate, Truth(inside, sure, origin), lanes)


@operation("REDUX", "CREDUX")
def reduce(warp: Warp, i: Instruction, lanes: Truth) -> None:
    result, source = values(i.operands)[:2]
    value = warp.integer(source)
    if not value.known[lanes.surely].all() or not lanes.surely.any():
        warp.registers.write(result.index, unknown(value.origin or i.name), lanes)
        return
    numbers = (value.signed if "S32" in i.modifiers else value.bits)[lanes.surely]
    way = next((_REDUCTIONS[m] for m in i.modifiers if m in _REDUCTIONS), np.bitwise_or)
    warp.registers.write(result.index, constant(int(way.reduce(numbers)) & 0xFFFFFFFF), lanes)


@operation("I2F", "I2FP", "UI2F", "UI2FP")
def from_integer(warp: Warp, i: Instruction, lanes: Truth) -> None:
    value = warp.integer(i.operands[1])
    unsigned = any(m in i.modifiers for m in ("U32", "U16", "U8"))
    exact = value.bits if unsigned else value.signed
    floats = exact.astype(np.float32)
    if "RP" in i.modifiers:
        floats = np.where(floats < exact, np.nextafter(floats, np.float32(np.inf)), floats)
    warp.registers.write(i.operands[0].index, from_floats(floats, value), lanes)


@operation("F2I", "F2IP", "UF2I")
def to_integer(warp: Warp, i: Instruction, lanes: Truth) -> None:
    value = warp.floating(i.operands[1])
    number = np.nan_to_num(value.floats.astype(np.float64))
    rounded = np.trunc(number) if "TRUNC" in i.modifiers else np.rint(number)
    low, high = (0, 2**32 - 1) if "U32" in i.modifiers else (-(2**31), 2**31 - 1)
    bits = np.clip(rounded, low, high).astype(np.int64).view(np.uint64)
    warp.registers.write(i.operands[0].index, Lanes(bits, value.known, value.origin), lanes)


@operation("MUFU")
def special_function(warp: Warp, i: Instruction, lanes: Truth) -> None:
    value = warp.floating(i.operands[1])
    x = value.floats
    found = unknown(value.origin or i.name)
    with np.errstate(all="ignore"):
        if i.modifiers[0] == "RCP":
            found = from_floats(1 / x, value)
        elif i.modifiers[0] == "EX2":
            found = from_floats(np.exp2(x), value)
    warp.registers.write(i.operands[0].index, found, lanes)


@operation("FADD", "FMUL", "FFMA", "UFADD", "UFMUL", "UFFMA")
def float_arithmetic(warp: Warp, i: Instruction, lanes: Truth) -> None:
    result, *sources = values(i.operands)
    read = [warp.floating(o) for o in sources]
    if not any(v.known.any() for v in read if v.origin):
        unsure = next((v for v in read if v.origin), None)
        if unsure is not None:
            warp.registers.write(result.index, unsure, lanes)
            return
    with np.errstate(all="ignore"):
        x, y = read[0].floats, read[1].floats
        if i.base.endswith("ADD"):
            found = x + y
        else:
            found = x * y if i.base.endswith("MUL") else x * y + read[2].floats
    if "SAT" in i.modifiers:
        found = np.clip(found, 0, 1)
    warp.registers.write(result.index, from_floats(found, *read), lanes)


@operation("FMNMX", "FMNMX3")
def float_minimum(warp: Warp, i: Instruction, lanes: Truth) -> None:
    result, *sources = values(i.operands)
    read = [warp.floating(o) for o in sources]
    choice = warp.truth(predicates(i.operands)[-1])
    with np.errstate(invalid="ignore"):
        low = from_floats(np.fmin.reduce([v.floats for v in read]), *read)
        high = from_floats(np.fmax.reduce([v.floats for v in read]), *read)
    warp.registers.write(result.index, choose(choice, low, high), lanes)


@operation("HFMA2", "HADD2", "HMUL2")
def half_arithmetic(warp: Warp, i: Instruction, lanes: Truth) -> None:
    """Known only as the move that it is with zero factors: two halves, the upper one first."""
    result, *sources = values(i.operands)
    zeros = all(o.kind == "register" and o.text.lstrip("-").startswith("RZ") for o in sources[:2])
    if i.base == "HFMA2" and zeros and len(sources) == 4:
        upper, lower = (
            int(np.uint32(o.value).view(np.float32).astype(np.float16).view(np.uint16))
            for o in sources[2:]
        )
        warp.registers.write(result.index, constant(upper << 16 | lower), lanes)
        return
    read = [warp.raw(o) for o in sources]
    origin = next((v.origin for v in read if v.origin), f"{i.name} at {i.address:#x}")
    warp.registers.write(result.index, unknown(origin), lanes)


@operation("FCHK")
def check_division(warp: Warp, i: Instruction, lanes: Truth) -> None:
    """Whether a division needs its slow path: for numbers near the ends of the range only."""
    warp.registers.write_predicate(predicates(i.operands)[0], FALSE, lanes)
