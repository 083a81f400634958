# SPDX-License-Identifier: BSD-3-Clause
"""Bits, comparisons, selections, moves and conversions."""

from .operands import CPP_TYPES, WORDS, Body, UnsupportedError, types_of
from .registry import (
    DIRECTIONS,
    FLOATS,
    HALVES,
    INTEGRAL,
    PAIRS,
    direction_of,
    handles,
    last_type,
    values_of,
)
from .syntax import SIZES, Instruction, split_operands


@handles("and", "or", "xor", "not", "cnot")
def _logic(body: Body, instruction: Instruction) -> str:
    opcode, type_ = instruction.opcode, last_type(instruction)
    values = values_of(body, instruction, type_)
    if opcode == "not":
        text = f"!{values[0]}" if type_ == "pred" else f"~{values[0]}"
    elif opcode == "cnot":
        text = f"{values[0]} == 0"
    else:
        sign = {"and": "&", "or": "|", "xor": "^"}[opcode]
        text = f"{values[0]} {sign} {values[1]}"
    return body.assign(instruction.operands[0], type_, f"static_cast<{CPP_TYPES[type_]}>({text})")


@handles("shl", "shr")
def _shift(body: Body, instruction: Instruction) -> str:
    type_ = last_type(instruction)
    a = body.value(instruction.operands[1], type_)
    n = body.value(instruction.operands[2], "u32")
    name = "shift_left" if instruction.opcode == "shl" else "shift_right"
    return body.assign(instruction.operands[0], type_, f"{name}({a}, {n})")


_BIT_FUNCTIONS = {
    # opcode -> function, and the operands that are 32-bit whatever the type
    "bfi": ("bit_insert", (2, 3)),
    "bfe": ("bit_extract", (1, 2)),
    "prmt": ("permute_bytes", ()),
    "lop3": ("logic3", ()),
    "sad": ("sum_abs_difference", ()),
    "copysign": ("copy_sign", ()),
}


@handles(*_BIT_FUNCTIONS)
def _bits(body: Body, instruction: Instruction) -> str:
    type_ = last_type(instruction)
    name, fixed = _BIT_FUNCTIONS[instruction.opcode]
    if instruction.opcode == "prmt" and instruction.modifiers != ("b32",):
        raise UnsupportedError("a mode of prmt")
    if instruction.opcode == "lop3" and "|" in instruction.operands[0]:
        raise UnsupportedError("lop3 with a predicate")
    values = [
        body.value(operand, "u32" if i in fixed else type_)
        for i, operand in enumerate(instruction.operands[1:])
    ]
    return body.assign(instruction.operands[0], type_, f"{name}({', '.join(values)})")


@handles("shf")
def _funnel_shift(body: Body, instruction: Instruction) -> str:
    values = ", ".join(values_of(body, instruction, "u32"))
    name = "funnel_left" if "l" in instruction.modifiers else "funnel_right"
    wrap = "true" if "wrap" in instruction.modifiers else "false"
    return body.assign(instruction.operands[0], "b32", f"{name}({values}, {wrap})")


@handles("bfind")
def _find(body: Body, instruction: Instruction) -> str:
    value = body.value(instruction.operands[1], last_type(instruction))
    amount = "true" if "shiftamt" in instruction.modifiers else "false"
    return body.assign(instruction.operands[0], "u32", f"find_leading({value}, {amount})")


@handles("dp4a")
def _dot(body: Body, instruction: Instruction) -> str:
    types = types_of(instruction)
    result = "s32" if "s32" in types else "u32"
    elements = [t.replace("32", "8") for t in types]
    a, b = (body.value(operand, "u32") for operand in instruction.operands[1:3])
    c = body.value(instruction.operands[3], result)
    kinds = f"{CPP_TYPES[elements[0]]}, {CPP_TYPES[elements[1]]}"
    return body.assign(instruction.operands[0], result, f"dot4<{kinds}>({a}, {b}, {c})")


_COMPARE = {
    **{"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="},
    **{"lo": "<", "ls": "<=", "hi": ">", "hs": ">="},
}


def _comparison(body: Body, instruction: Instruction, type_: str) -> str:
    modifiers = instruction.modifiers
    if type_ in PAIRS:
        raise UnsupportedError("a comparison of pairs")
    a, b = (body.value(operand, type_) for operand in instruction.operands[1:3])
    if type_ in FLOATS and "ftz" in modifiers:
        a, b = f"flush({a})", f"flush({b})"
    if type_ in HALVES:
        a, b = f"to_float({a})", f"to_float({b})"
    if type_ == "pred":
        raise UnsupportedError("a comparison of predicates")
    compare = modifiers[0]
    if compare in ("num", "nan"):
        return f"{'!' if compare == 'nan' else ''}ordered({a}, {b})"
    is_float = type_ in (*FLOATS, *HALVES)
    if compare.endswith("u") and compare[:-1] in _COMPARE:
        return f"(!ordered({a}, {b}) || {a} {_COMPARE[compare[:-1]]} {b})"
    if compare == "ne" and is_float:
        return f"(ordered({a}, {b}) && {a} != {b})"
    return f"({a} {_COMPARE[compare]} {b})"


@handles("setp")
def _set_predicate(body: Body, instruction: Instruction) -> str:
    test = _comparison(body, instruction, last_type(instruction))
    results = instruction.operands[0].split("|")
    combine = next((m for m in instruction.modifiers[1:] if m in ("and", "or", "xor")), None)
    tests = [test, f"!{test}"]
    if combine:
        sign = {"and": "&&", "or": "||", "xor": "!="}[combine]
        other = body.value(instruction.operands[3], "pred")
        tests = [f"({text}) {sign} {other}" for text in tests]
    # All operands are read before the first result is written: a result may be an operand.
    text = "".join(
        f"const bool test{i} = {tests[i]}; " for i in range(len(results)) if results[i] != "_"
    )
    return text + " ".join(
        body.assign(result, "pred", f"test{i}") for i, result in enumerate(results) if result != "_"
    )


@handles("set")
def _set(body: Body, instruction: Instruction) -> str:
    result, operand = types_of(instruction)
    test = _comparison(body, instruction, operand)
    if len(instruction.operands) > 3:
        raise UnsupportedError("set with a boolean")
    if result == "f16":
        true = "uint16_t(0x3c00)"
    elif result == "bf16":
        true = "uint16_t(0x3f80)"
    elif result == "f32":
        true = "0x3f800000u"
    else:
        true = f"{WORDS[SIZES[result]]}(-1)"
    word = "b" + str(8 * SIZES[result])
    zero = f"{WORDS[SIZES[result]]}(0)"
    return body.assign(instruction.operands[0], word, f"{test} ? {true} : {zero}")


@handles("selp")
def _select(body: Body, instruction: Instruction) -> str:
    type_ = last_type(instruction)
    a, b = (body.value(operand, type_) for operand in instruction.operands[1:3])
    test = body.value(instruction.operands[3], "pred")
    return body.assign(instruction.operands[0], type_, f"({test} ? {a} : {b})")


@handles("slct")
def _select_by_sign(body: Body, instruction: Instruction) -> str:
    type_, test_type = types_of(instruction)
    a, b = (body.value(operand, type_) for operand in instruction.operands[1:3])
    test = body.value(instruction.operands[3], test_type)
    return body.assign(instruction.operands[0], type_, f"({test} >= 0 ? {a} : {b})")


@handles("mov")
def _move(body: Body, instruction: Instruction) -> str:
    type_, (to, source) = last_type(instruction), instruction.operands
    if to.startswith("{"):
        parts = split_operands(to[1:-1])
        step = SIZES[type_] // len(parts)
        word = WORDS[step]
        return f"const auto whole = {body.value(source, 'b' + str(8 * SIZES[type_]))}; " + " ".join(
            body.assign(part, f"b{8 * step}", f"static_cast<{word}>(whole >> {8 * step * i})")
            for i, part in enumerate(parts)
        )
    if source.startswith("{"):
        parts = split_operands(source[1:-1])
        step = SIZES[type_] // len(parts)
        whole = WORDS[SIZES[type_]]
        text = " | ".join(
            f"{whole}({whole}({body.value(part, f'b{8 * step}')}) << {8 * step * i})"
            for i, part in enumerate(parts)
        )
        return body.assign(to, f"b{8 * SIZES[type_]}", f"static_cast<{whole}>({text})")
    return body.assign(to, type_, body.value(source, type_))


@handles("cvt")
def _convert(body: Body, instruction: Instruction) -> str:
    types, to = types_of(instruction), instruction.operands[0]
    if len(types) != 2 or "satfinite" in instruction.modifiers:
        raise UnsupportedError("this form of cvt")
    result, source = types
    if result in PAIRS:
        return _convert_pair(body, instruction, result)
    value = body.value(instruction.operands[1], source)
    if "ftz" in instruction.modifiers and source == "f32":
        value = f"flush({value})"
    how = next((INTEGRAL[m] for m in instruction.modifiers if m in INTEGRAL), None)
    if result == "tf32":
        name = "to_tf32_away" if "rna" in instruction.modifiers else "to_tf32_even"
        return body.assign(to, "b32", f"{name}({value})")
    if source in HALVES:
        value = f"to_float({value})"
    source_is_float = source in (*FLOATS, *HALVES)
    if result in (*FLOATS, *HALVES):
        text = _to_float(instruction, result, source, value, how)
        return body.assign(to, result, f"saturate({text})" if _saturates(instruction) else text)
    if source_is_float:
        return body.assign(to, result, f"to_int<{CPP_TYPES[result]}>({value}, {how})")
    if _saturates(instruction):
        return body.assign(to, result, f"clamp_int<{CPP_TYPES[result]}>({value})")
    return body.assign(to, result, f"static_cast<{CPP_TYPES[result]}>({value})")


def _saturates(instruction: Instruction) -> bool:
    return "sat" in instruction.modifiers


def _to_float(
    instruction: Instruction, result: str, source: str, value: str, how: str | None
) -> str:
    cpp, direction = CPP_TYPES[result], direction_of(instruction)
    if how is not None:
        return f"from_double<{cpp}>(to_integral({value}, {how}))"
    if result in HALVES:
        if direction == DIRECTIONS["rz"] and source == "f32":
            return f"{cpp}{{toward_zero_{result}({value})}}"
        if direction:
            raise UnsupportedError("this rounding of cvt")
        # int64 to a 16-bit type would round twice, by way of double.
        return f"from_double<{cpp}>(static_cast<double>({value}))"
    if direction and not (source in FLOATS and result == "f64"):
        wide = {"s": "int64_t", "u": "uint64_t", "f": "double", "b": "double"}[source[0]]
        name = "to_float_rounded" if result == "f32" else "to_double_rounded"
        return f"{name}({wide}({value}), {direction})"
    text = f"static_cast<{cpp}>({value})"
    return f"flush({text})" if "ftz" in instruction.modifiers and result == "f32" else text


def _convert_pair(body: Body, instruction: Instruction, result: str) -> str:
    element = result.removesuffix("x2")
    if len(instruction.operands) != 3:
        raise UnsupportedError("this form of cvt")
    high, low = (body.value(operand, "f32") for operand in instruction.operands[1:3])
    if direction_of(instruction):
        parts = [f"{element}{{toward_zero_{element}({x})}}" for x in (low, high)]
    else:
        parts = [f"from_double<{element}>({x})" for x in (low, high)]
    if "relu" in instruction.modifiers:
        parts = [f"rectify({part})" for part in parts]
    return body.assign(instruction.operands[0], result, f"{result}{{{', '.join(parts)}}}")
