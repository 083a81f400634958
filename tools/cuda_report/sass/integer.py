# SPDX-License-Identifier: BSD-3-Clause
"""Integer arithmetic of the machine code, with the uniform variants of the instructions."""

from __future__ import annotations

import numpy as np

from tools.cuda_report.sass.decode import Instruction
from tools.cuda_report.sass.lanes import MASK32, WARP, Bits, Flags, Lanes, Truth, constant, joined
from tools.cuda_report.sass.operands import Operand
from tools.cuda_report.sass.warp import Warp, operation, predicates, values

_32, _1, _0 = np.uint64(32), np.uint64(1), np.uint64(0)


def _carry(truth: Truth) -> Lanes:
    return Lanes(truth.true.astype(np.uint64), truth.known, truth.origin)


def _split(i: Instruction) -> tuple[Operand, list[Operand], list[Operand], list[Operand]]:
    """The result, predicates that are written, sources, predicates that are read."""
    result, *rest = i.operands
    first = next((n for n, o in enumerate(rest) if o.kind != "predicate"), len(rest))
    written = rest[:first]
    read = predicates(tuple(rest[first:]))
    return result, written, values(tuple(rest[first:])), read


def _addend(warp: Warp, operand: Operand) -> Lanes:
    """A summand, so that the carry of a difference is right: -x is ~x + 1, in 33 bits."""
    value = warp.integer(operand)
    if not operand.negated:
        return value
    raw = warp.raw(operand)
    return Lanes((~raw.bits & MASK32) + _1, value.known, value.origin)


@operation("IADD3", "UIADD3", "IADD", "UIADD", "VIADD", "UVIADD")
def add(warp: Warp, i: Instruction, lanes: Truth) -> None:
    result, written, sources, read = _split(i)
    if "64" in i.modifiers:
        wide = [warp.wide(o, sign_extend=True) for o in sources]
        bits = sum((v.bits for v in wide), np.zeros(WARP, np.uint64))
        warp.registers.write_pair(result.index, Lanes(bits, *joined(*wide)), lanes)
        return
    terms = [_addend(warp, o) for o in sources]
    if "X" in i.modifiers:
        terms += [_carry(warp.truth(p)) for p in read]
    total = sum((t.bits for t in terms), np.zeros(WARP, np.uint64))
    known, origin = joined(*terms)
    warp.registers.write(result.index, Lanes(total, known, origin), lanes)
    for n, predicate in enumerate(written):
        carry = Truth(total >> _32 > np.uint64(n), known, origin)
        warp.registers.write_predicate(predicate, carry, lanes)


@operation("IMAD", "UIMAD")
def multiply_add(warp: Warp, i: Instruction, lanes: Truth) -> None:
    result, written, (a, b, c), read = _split(i)
    x, y = warp.integer(a), warp.integer(b)
    if "WIDE" in i.modifiers or "HI" in i.modifiers:
        unsigned = "U32" in i.modifiers
        product = x.bits * y.bits if unsigned else (x.signed * y.signed).view(np.uint64)
        z = warp.wide(c, sign_extend=not unsigned)
        total = product + z.bits
        overflow = total < product
        known, origin = joined(x, y, z)
        if "X" in i.modifiers and read:
            carry = _carry(warp.truth(read[0]))
            total = total + carry.bits
            overflow = overflow | (total < carry.bits)
            known, origin = joined(x, y, z, carry)
        value = Lanes(total, known, origin)
        if "HI" in i.modifiers:
            warp.registers.write(result.index, Lanes(total >> _32, known, origin), lanes)
        else:
            warp.registers.write_pair(result.index, value, lanes)
        for predicate in written[:1]:
            warp.registers.write_predicate(predicate, Truth(overflow, known, origin), lanes)
        return
    z = _addend(warp, c)
    terms = [z]
    if "X" in i.modifiers and read:
        terms.append(_carry(warp.truth(read[0])))
    product = x.bits * y.bits & MASK32
    total = product + sum((t.bits for t in terms), np.zeros(WARP, np.uint64))
    known, origin = joined(x, y, *terms)
    warp.registers.write(result.index, Lanes(total, known, origin), lanes)
    for predicate in written[:1]:
        carry_out = Truth(total >> _32 > _0, known, origin)
        warp.registers.write_predicate(predicate, carry_out, lanes)


@operation("LEA", "ULEA")
def shift_and_add(warp: Warp, i: Instruction, lanes: Truth) -> None:
    result, written, sources, read = _split(i)
    a, b, shift = warp.integer(sources[0]), _addend(warp, sources[1]), sources[-1].value
    terms = [a, b]
    if "HI" in i.modifiers:
        high = a.signed.view(np.uint64) >> _32  # SX32: the sign of a
        if "SX32" not in i.modifiers:
            upper = warp.integer(sources[2])
            high = upper.bits
            terms.append(upper)
        shifted = ((high << _32 | a.bits) >> np.uint64(32 - shift)) & MASK32
    else:
        shifted = a.bits << np.uint64(shift) & MASK32
    total = shifted + b.bits
    if "X" in i.modifiers:
        carry = _carry(warp.truth(read[0]))
        total = total + carry.bits
        terms.append(carry)
    known, origin = joined(*terms)
    warp.registers.write(result.index, Lanes(total, known, origin), lanes)
    for predicate in written[:1]:
        carry_out = Truth(total >> _32 > _0, known, origin)
        warp.registers.write_predicate(predicate, carry_out, lanes)


@operation("SHF", "USHF")
def funnel_shift(warp: Warp, i: Instruction, lanes: Truth) -> None:
    """Shifts 64 bits, of which one half is kept."""
    result, _, (a, s, c), _ = _split(i)
    low, shift, high = warp.integer(a), warp.integer(s), warp.integer(c)
    wide_shift = "U64" in i.modifiers or "S64" in i.modifiers
    limit = np.uint64(63 if wide_shift else 31)
    pair = high.bits << _32 | low.bits
    if "W" in i.modifiers:
        amount, over = shift.bits & limit, np.zeros(WARP, bool)
    else:
        amount, over = np.minimum(shift.bits, limit), shift.bits > limit
    if "L" in i.modifiers:
        moved, beyond = pair << amount, np.where(wide_shift, _0, pair << _32)
    elif "S32" in i.modifiers or "S64" in i.modifiers:
        signed = pair.view(np.int64)
        moved = (signed >> amount.view(np.int64)).view(np.uint64)
        beyond = (signed >> np.int64(63 if wide_shift else 32)).view(np.uint64)
    else:
        moved, beyond = pair >> amount, np.where(wide_shift, _0, pair >> _32)
    moved = np.where(over, beyond, moved)
    half = moved >> _32 if "HI" in i.modifiers else moved
    warp.registers.write(result.index, Lanes(half, *joined(low, shift, high)), lanes)


@operation("PRMT", "UPRMT")
def permute_bytes(warp: Warp, i: Instruction, lanes: Truth) -> None:
    result, _, (a, s, b), _ = _split(i)
    low, selector, high = warp.integer(a), warp.integer(s), warp.integer(b)
    pair = high.bits << _32 | low.bits
    bits = np.zeros(WARP, np.uint64)
    for byte in range(4):
        choice = selector.bits >> np.uint64(4 * byte) & np.uint64(15)
        found = pair >> ((choice & np.uint64(7)) * np.uint64(8)) & np.uint64(255)
        sign = np.where(found & np.uint64(128), np.uint64(255), _0)
        bits |= np.where(choice & np.uint64(8), sign, found) << np.uint64(8 * byte)
    warp.registers.write(result.index, Lanes(bits, *joined(low, selector, high)), lanes)


@operation("SGXT", "USGXT")
def extend_sign(warp: Warp, i: Instruction, lanes: Truth) -> None:
    result, _, (a, n), _ = _split(i)
    value, width = warp.integer(a), warp.integer(n)
    unused = np.uint64(64) - np.minimum(width.bits, _32)
    unused = np.minimum(unused, np.uint64(63))
    up = np.where(width.bits == _0, _0, value.bits << unused)
    signed = (up.view(np.int64) >> unused.view(np.int64)).view(np.uint64)
    bits = up >> unused if "U32" in i.modifiers else signed
    warp.registers.write(result.index, Lanes(bits, *joined(value, width)), lanes)


@operation("BMSK", "UBMSK")
def make_mask(warp: Warp, i: Instruction, lanes: Truth) -> None:
    result, _, (a, n), _ = _split(i)
    first, width = warp.integer(a), warp.integer(n)
    ones = (_1 << np.minimum(width.bits, _32)) - _1
    bits = ones << np.minimum(first.bits, _32)
    warp.registers.write(result.index, Lanes(bits, *joined(first, width)), lanes)


@operation("IABS", "UIABS")
def absolute(warp: Warp, i: Instruction, lanes: Truth) -> None:
    value = warp.integer(i.operands[1])
    negative = value.signed < 0
    bits: Bits = np.where(negative, (~value.bits & MASK32) + _1, value.bits)
    warp.registers.write(i.operands[0].index, Lanes(bits, value.known, value.origin), lanes)


@operation("POPC", "UPOPC", "BREV", "UBREV", "FLO", "UFLO")
def count_bits(warp: Warp, i: Instruction, lanes: Truth) -> None:
    result, _, (a,), _ = _split(i)
    value = warp.integer(a)
    found = []
    for bits in value.bits.tolist():
        if i.base.endswith("POPC"):
            found.append(bits.bit_count())
        elif i.base.endswith("BREV"):
            found.append(int(f"{bits:032b}"[::-1], 2))
        else:
            first = bits.bit_length() - 1
            found.append((31 - first if "SH" in i.modifiers else first) & 0xFFFFFFFF)
    if "FLO" in i.base:
        found = [f if bits else 0xFFFFFFFF for f, bits in zip(found, value.bits, strict=True)]
    bits_ = np.array(found, np.uint64)
    warp.registers.write(result.index, Lanes(bits_, value.known, value.origin), lanes)


@operation("LOP3", "ULOP3")
def logic(warp: Warp, i: Instruction, lanes: Truth) -> None:
    operands = list(i.operands)
    written = [operands.pop(0)] if operands[0].kind == "predicate" else []
    result, *sources = values(tuple(operands))
    *inputs, table = sources
    read = [warp.integer(o) for o in inputs]
    bits = np.zeros(WARP, np.uint64)
    for n in range(8):
        if table.value >> n & 1:
            term = constant(0xFFFFFFFF).bits
            for place, value in enumerate(read):
                term = term & (value.bits if n >> (2 - place) & 1 else ~value.bits)
            bits = bits | term
    known, origin = joined(*read)
    masked = _masked_out(table.value, read)
    bits = np.where(known, bits, _0)
    known = known | masked
    value = Lanes(bits & MASK32, known, "" if known.all() else origin)
    warp.registers.write(result.index, value, lanes)
    for predicate in written:
        truth = Truth(value.bits != _0, value.known, value.origin)
        warp.registers.write_predicate(predicate, truth, lanes)


def _masked_out(table: int, read: list[Lanes]) -> Flags:
    """Where a conjunction of a and b is zero since one of them is known to be zero."""
    if table != 0xC0 or len(read) < 2:
        return np.zeros(WARP, bool)
    zeros = [v.known & (v.bits == _0) for v in read[:2]]
    return np.asarray(zeros[0] | zeros[1])
