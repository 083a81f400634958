# SPDX-License-Identifier: BSD-3-Clause
"""Comparisons, selections and logic of predicates in the machine code."""

from __future__ import annotations

from typing import Any

import numpy as np

from tools.cuda_report.sass.decode import Instruction
from tools.cuda_report.sass.lanes import (
    FALSE,
    NONE,
    TRUE,
    WARP,
    Lanes,
    Truth,
    conjunction,
    disjunction,
    exclusive,
    joined,
)
from tools.cuda_report.sass.operands import UNIFORM_PREDICATES, Operand
from tools.cuda_report.sass.warp import Warp, operation, predicates, values

_COMBINE = {"AND": conjunction, "OR": disjunction, "XOR": exclusive}


def compare(name: str, a: Any, b: Any) -> Any:
    """Compares arrays by the modifier's name. The U of GEU and others: true if unordered."""
    ordered = {"LT": a < b, "LE": a <= b, "GT": a > b, "GE": a >= b, "EQ": a == b, "NE": a != b}
    if name in ("T", "F"):
        return np.full(WARP, name == "T")
    with np.errstate(invalid="ignore"):
        nan = np.isnan(a) | np.isnan(b) if a.dtype.kind == "f" else np.zeros(WARP, bool)
    if name in ("NUM", "NAN"):
        return nan if name == "NAN" else ~nan
    if name.endswith("U") and name[:-1] in ordered:
        return ordered[name[:-1]] | nan
    return ordered[name] & ~nan


def _write_pair(warp: Warp, i: Instruction, found: Truth, operands: list[Operand]) -> None:
    """Writes a comparison and its opposite, each combined with the predicate that is read."""
    combine = _COMBINE[next(m for m in i.modifiers if m in _COMBINE)]
    first, second, read, *_ = operands
    other = warp.truth(read)
    results = combine(found, other), combine(~found, other)
    lanes = executing(warp, i)
    warp.registers.write_predicate(first, results[0], lanes)
    warp.registers.write_predicate(second, results[1], lanes)


def executing(warp: Warp, i: Instruction) -> Truth:
    """The lanes that execute an instruction."""
    active = TRUE if warp.active.all() else Truth(warp.active)
    return active if i.predicate is None else conjunction(active, warp.truth(i.predicate))


@operation("ISETP", "UISETP")
def compare_integers(warp: Warp, i: Instruction, lanes: Truth) -> None:
    a, b = values(i.operands)
    wide = "64" in i.modifiers or "U64" in i.modifiers or "S64" in i.modifiers
    x, y = (warp.wide(o, sign_extend=True) if wide else warp.integer(o) for o in (a, b))
    unsigned = "U32" in i.modifiers or "U64" in i.modifiers
    left: Any
    right: Any
    if unsigned:
        left, right = x.bits, y.bits
    elif wide:
        left, right = x.bits.view(np.int64), y.bits.view(np.int64)
    else:
        left, right = x.signed, y.signed
    name = i.modifiers[0]
    known, origin = joined(x, y)
    found = Truth(compare(name, left, right), known, origin)
    operands = predicates(i.operands)
    if "EX" in i.modifiers:  # the upper words; the last predicate is of the lower ones
        lower = warp.truth(operands.pop())
        equal = Truth(left == right, known, origin)
        if name == "EQ":
            found = conjunction(equal, lower)
        elif name == "NE":
            found = disjunction(~equal, lower)
        else:
            strict = Truth(compare(name[0] + "T", left, right), known, origin)
            found = disjunction(strict, conjunction(equal, lower))
    _write_pair(warp, i, found, operands)


@operation("FSETP")
def compare_floats(warp: Warp, i: Instruction, lanes: Truth) -> None:
    a, b = values(i.operands)
    x, y = warp.floating(a), warp.floating(b)
    known, origin = joined(x, y)
    found = Truth(compare(i.modifiers[0], x.floats, y.floats), known, origin)
    _write_pair(warp, i, found, predicates(i.operands))


@operation("HSETP2", "DSETP")
def compare_unknown(warp: Warp, i: Instruction, lanes: Truth) -> None:
    _write_pair(warp, i, Truth(NONE, NONE, f"{i.name} at {i.address:#x}"), predicates(i.operands))


@operation("PLOP3", "UPLOP3")
def predicate_logic(warp: Warp, i: Instruction, lanes: Truth) -> None:
    """Two functions of three predicates, by tables; known where the unknown ones do not matter."""
    first, second, *read = predicates(i.operands)
    tables = [o.value for o in values(i.operands)]
    truths = [warp.truth(o) for o in read]
    for target, table in zip((first, second), tables, strict=False):
        may = {False: np.zeros(WARP, bool), True: np.zeros(WARP, bool)}
        for n in range(8):
            fits = np.ones(WARP, bool)
            for place, truth in enumerate(truths):
                wanted = bool(n >> (2 - place) & 1)
                fits &= ~truth.known | (truth.true == wanted)
            may[bool(table >> n & 1)] |= fits
        known = may[False] ^ may[True]
        origin = "" if known.all() else joined(*truths)[1]
        warp.registers.write_predicate(target, Truth(may[True] & known, known, origin), lanes)


@operation("SEL", "USEL", "FSEL")
def select(warp: Warp, i: Instruction, lanes: Truth) -> None:
    result, a, b = values(i.operands)
    choice = warp.truth(predicates(i.operands)[0])
    wide = "64" in i.modifiers
    read = warp.floating if i.base == "FSEL" else warp.wide if wide else warp.integer
    x, y = read(a), read(b)
    value = choose(choice, x, y)
    (warp.registers.write_pair if wide else warp.registers.write)(result.index, value, lanes)


def choose(choice: Truth, x: Lanes, y: Lanes) -> Lanes:
    """x where `choice`, else y; known too where both are the same."""
    same = x.known & y.known & (x.bits == y.bits)
    known = np.where(choice.true, x.known, y.known) & choice.known | same
    bits = np.where(choice.true | same, x.bits, y.bits)
    origin = "" if known.all() else next(o for o in (x.origin, y.origin, choice.origin) if o)
    return Lanes(bits, known, origin)


@operation("IMNMX", "VIMNMX", "UIMNMX", "UVIMNMX", "VIADDMNMX", "UVIADDMNMX", "VIMNMX3", "UVIMNMX3")
def minimum(warp: Warp, i: Instruction, lanes: Truth) -> None:
    result, *sources = values(i.operands)
    read = [warp.integer(o) for o in sources]
    known, origin = joined(*read)
    if "ADDMNMX" in i.base:
        total = Lanes(read[0].bits + read[1].bits & np.uint64(0xFFFFFFFF))
        read = [total, read[2]]
    unsigned = "U32" in i.modifiers
    numbers = [v.bits if unsigned else v.signed for v in read]
    low, high = np.minimum.reduce(numbers), np.maximum.reduce(numbers)
    if "RELU" in i.modifiers:
        low, high = np.maximum(low, 0), np.maximum(high, 0)
    choice = warp.truth(predicates(i.operands)[-1])
    pair = [Lanes(v.astype(np.int64).view(np.uint64), known, origin) for v in (low, high)]
    if unsigned:
        pair = [Lanes(v.astype(np.uint64), known, origin) for v in (low, high)]
    warp.registers.write(result.index, choose(choice, *pair), lanes)


@operation("VOTE", "VOTEU")
def vote(warp: Warp, i: Instruction, lanes: Truth) -> None:
    *written, read = predicates(i.operands)
    truth = warp.truth(read)
    active = lanes.surely
    if "ANY" in i.modifiers:
        true = bool((truth.surely & active).any())
        known = true or bool(truth.known[active].all())
    elif "ALL" in i.modifiers:
        true = bool(truth.true[active].all())
        false = bool((truth.surely_not & active).any())
        known = false or bool(truth.known[active].all())
        true = true and not false
    else:  # EQ
        known = bool(truth.known[active].all())
        true = bool(truth.true[active].all() or not truth.true[active].any())
    outcome = Truth((TRUE if true else FALSE).true, np.full(WARP, known), truth.origin)
    for predicate in written:
        warp.registers.write_predicate(predicate, outcome, lanes)
    for register in values(i.operands):
        ballot = sum(1 << n for n in range(WARP) if truth.surely[n] and active[n])
        known_all = np.full(WARP, bool(truth.known[active].all()))
        value = Lanes(np.full(WARP, ballot, np.uint64), known_all, truth.origin)
        warp.registers.write(register.index, value, lanes)


@operation("P2R", "UP2UR")
def predicates_to_register(warp: Warp, i: Instruction, lanes: Truth) -> None:
    result, _, base, mask = i.operands
    shift = _byte(i)
    value = warp.integer(base)
    bits = value.bits & ~np.uint64(mask.value << shift)
    read = []
    for n in range(7):
        if mask.value >> n & 1:
            read.append(warp.truth(_predicate(i, n)))
            bits = bits | read[-1].true.astype(np.uint64) << np.uint64(n + shift)
    warp.registers.write(result.index, Lanes(bits, *joined(value, *read)), lanes)


@operation("R2P", "UR2UP")
def register_to_predicates(warp: Warp, i: Instruction, lanes: Truth) -> None:
    _, source, mask = i.operands
    value = warp.integer(source)
    for n in range(7):
        if mask.value >> n & 1:
            true = value.bits >> np.uint64(n + _byte(i)) & np.uint64(1) != np.uint64(0)
            truth = Truth(true, value.known, value.origin)
            warp.registers.write_predicate(_predicate(i, n), truth, lanes)


def _predicate(i: Instruction, n: int) -> Operand:
    """The n-th predicate, of the uniform ones for an instruction of the uniform unit."""
    uniform = i.base.startswith("U")
    return Operand("predicate", f"P{n}", n + (UNIFORM_PREDICATES if uniform else 0))


def _byte(i: Instruction) -> int:
    """The first bit of the byte that a modifier names."""
    return 8 * next((int(m[1]) for m in i.modifiers if m[0] == "B" and m[1:].isdigit()), 0)
