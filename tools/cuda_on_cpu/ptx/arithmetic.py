# SPDX-License-Identifier: BSD-3-Clause
"""Arithmetic on registers: integers and floating point."""

from .operands import CPP_TYPES, WORDS, Body, UnsupportedError
from .registry import FLOATS, HALVES, PAIRS, direction_of, handles, last_type, values_of
from .syntax import SIZES, Instruction

_WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}


def _assign(body: Body, instruction: Instruction, type_: str, expression: str) -> str:
    """Apply .ftz, .sat and .relu to a result, and store it."""
    modifiers = instruction.modifiers
    if "ftz" in modifiers and type_ == "f32":
        expression = f"flush({expression})"
    if "sat" in modifiers and type_ in FLOATS:
        expression = f"saturate({expression})"
    if type_ in (*HALVES, *PAIRS):
        for modifier, function in (("sat", "saturate"), ("relu", "rectify")):
            if modifier in modifiers:
                expression = _call(function, type_, [expression])
    return body.assign(instruction.operands[0], type_, expression)


def _call(function: str, type_: str, arguments: list[str]) -> str:
    """Call a function of one element; for a packed type, of each of the two."""
    if type_ in PAIRS:
        element = type_.removesuffix("x2")
        names = [f"{element} {name}" for name in "abc"[: len(arguments)]]
        inner = ", ".join("abc"[: len(arguments)])
        applied = f"[]({', '.join(names)}) {{ return {function}({inner}); }}"
        return f"each({applied}, {', '.join(arguments)})"
    return f"{function}({', '.join(arguments)})"


@handles("add", "sub", "mul")
def _add_sub_mul(body: Body, instruction: Instruction) -> str:
    opcode, modifiers, type_ = instruction.opcode, instruction.modifiers, last_type(instruction)
    a, b = values_of(body, instruction, type_)
    if opcode == "mul" and "wide" in modifiers:
        wide = CPP_TYPES[_WIDER[type_]]
        return body.assign(
            instruction.operands[0], _WIDER[type_], f"static_cast<{wide}>({wide}({a}) * {b})"
        )
    if opcode == "mul" and "hi" in modifiers:
        return body.assign(instruction.operands[0], type_, f"mul_hi({a}, {b})")
    if "cc" in modifiers:
        return _carry(body, instruction, type_, a, b, carry_in="false", carry_out=True)
    if type_ == "s32" and "sat" in modifiers:
        b = f"-{b}" if opcode == "sub" else b
        return body.assign(instruction.operands[0], type_, f"add_saturated({a}, {b})")
    direction = direction_of(instruction)
    if direction and type_ in FLOATS:
        b = f"-{b}" if opcode == "sub" else b
        name = "mul" if opcode == "mul" else "add"
        return _assign(body, instruction, type_, f"{name}_rounded({a}, {b}, {direction})")
    return _assign(body, instruction, type_, _call(opcode, type_, [a, b]))


def _carry(
    body: Body, instruction: Instruction, type_: str, a: str, b: str, carry_in: str, carry_out: bool
) -> str:
    body.uses_carry = True
    word = WORDS[SIZES[type_]]
    name = "sub_borrow" if instruction.opcode.startswith("sub") else "add_carry"
    out = "carry" if carry_out else "ignored"
    declare = "" if carry_out else "bool ignored; "
    expression = f"{name}<{word}>({word}({a}), {word}({b}), {carry_in}, &{out})"
    return declare + body.assign(instruction.operands[0], "u" + type_[1:], expression)


@handles("addc", "subc")
def _add_with_carry(body: Body, instruction: Instruction) -> str:
    type_ = last_type(instruction)
    a, b = values_of(body, instruction, type_)
    return _carry(body, instruction, type_, a, b, "carry", "cc" in instruction.modifiers)


@handles("mad", "fma", "madc")
def _multiply_add(body: Body, instruction: Instruction) -> str:
    opcode, modifiers, type_ = instruction.opcode, instruction.modifiers, last_type(instruction)
    if "wide" in modifiers:
        a, b = values_of(body, instruction, type_)[:2]
        wide = _WIDER[type_]
        c = body.value(instruction.operands[3], wide)
        cpp = CPP_TYPES[wide]
        return body.assign(
            instruction.operands[0], wide, f"static_cast<{cpp}>({cpp}({a}) * {b} + {c})"
        )
    a, b, c = values_of(body, instruction, type_)
    if type_ in FLOATS:
        direction = direction_of(instruction)
        call = f"fma_rounded({a}, {b}, {c}, {direction})" if direction else f"fused({a}, {b}, {c})"
        return _assign(body, instruction, type_, call)
    if type_ in (*HALVES, *PAIRS):
        return _assign(body, instruction, type_, _call("fused", type_, [a, b, c]))
    product = f"mul_hi({a}, {b})" if "hi" in modifiers else f"mul({a}, {b})"
    if opcode == "madc" or "cc" in modifiers:
        carry_in = "carry" if opcode == "madc" else "false"
        return _carry(body, instruction, type_, product, c, carry_in, "cc" in modifiers)
    return body.assign(instruction.operands[0], type_, f"add({product}, {c})")


@handles("mul24", "mad24")
def _multiply_24(body: Body, instruction: Instruction) -> str:
    type_ = last_type(instruction)
    values = values_of(body, instruction, type_)
    high = "true" if "hi" in instruction.modifiers else "false"
    product = f"mul24({values[0]}, {values[1]}, {high})"
    if instruction.opcode == "mad24":
        product = f"add({product}, {values[2]})"
    return body.assign(instruction.operands[0], type_, product)


@handles("div", "rem")
def _divide(body: Body, instruction: Instruction) -> str:
    type_ = last_type(instruction)
    a, b = values_of(body, instruction, type_)
    direction = direction_of(instruction)
    if direction:
        return _assign(body, instruction, type_, f"div_rounded({a}, {b}, {direction})")
    name = "divide" if instruction.opcode == "div" else "remainder"
    return _assign(body, instruction, type_, f"{name}({a}, {b})")


@handles("min", "max")
def _min_max(body: Body, instruction: Instruction) -> str:
    type_, modifiers = last_type(instruction), instruction.modifiers
    values = values_of(body, instruction, type_)
    if "xorsign" in modifiers or len(values) != 2:
        raise UnsupportedError("this form of min or max")
    name = {"min": "minimum", "max": "maximum"}[instruction.opcode]
    if type_ in FLOATS or type_ in HALVES:
        nan = "true" if "NaN" in modifiers else "false"
        return _assign(body, instruction, type_, f"float_{name}({', '.join(values)}, {nan})")
    if type_ in PAIRS:
        element = type_.removesuffix("x2")
        nan = "true" if "NaN" in modifiers else "false"
        call = f"float_{name}(a, b, {nan})"
        if "relu" in modifiers:
            call = f"rectify({call})"
        expression = f"each([]({element} a, {element} b) {{ return {call}; }}, {', '.join(values)})"
        return body.assign(instruction.operands[0], type_, expression)
    if type_ in ("s16x2", "u16x2"):
        raise UnsupportedError("packed integers")
    return body.assign(instruction.operands[0], type_, f"{name}({', '.join(values)})")


_UNARY = {
    "neg": "negate",
    "abs": "absolute",
    "clz": "leading_zeros",
    "popc": "population",
    "brev": "reverse_bits",
    "sin": "sin_of",
    "cos": "cos_of",
    "ex2": "exp2_of",
    "lg2": "log2_of",
    "tanh": "tanh_of",
    "sqrt": "root",
}


@handles(*_UNARY, "rcp", "rsqrt")
def _unary(body: Body, instruction: Instruction) -> str:
    opcode, type_ = instruction.opcode, last_type(instruction)
    (value,) = values_of(body, instruction, type_)
    direction = direction_of(instruction)
    if opcode in ("clz", "popc"):
        return body.assign(instruction.operands[0], "u32", f"{_UNARY[opcode]}({value})")
    if opcode in ("rcp", "rsqrt"):
        one = CPP_TYPES[type_] + "(1)"
        if direction and opcode == "rcp":
            return _assign(body, instruction, type_, f"div_rounded({one}, {value}, {direction})")
        denominator = value if opcode == "rcp" else f"root({value})"
        return _assign(body, instruction, type_, f"{one} / {denominator}")
    if opcode == "sqrt" and direction:
        return _assign(body, instruction, type_, f"sqrt_rounded({value}, {direction})")
    if type_ in (*HALVES, *PAIRS) and opcode in ("ex2", "tanh"):
        element = type_.removesuffix("x2")
        convert = f"from_double<{element}>({_UNARY[opcode]}(to_float(a)))"
        if type_ in HALVES:
            expression = f"[]({element} a) {{ return {convert}; }}({value})"
        else:
            expression = f"each([]({element} a) {{ return {convert}; }}, {value})"
        return body.assign(instruction.operands[0], type_, expression)
    return _assign(body, instruction, type_, _call(_UNARY[opcode], type_, [value]))
