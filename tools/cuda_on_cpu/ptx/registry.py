# SPDX-License-Identifier: BSD-3-Clause
"""The table of instruction handlers, and what handlers share."""

from collections.abc import Callable

from .operands import Body, UnsupportedError, types_of
from .syntax import Instruction

Handler = Callable[[Body, Instruction], str]
HANDLERS: dict[str, Handler] = {}

FLOATS = ("f32", "f64")
HALVES = ("f16", "bf16")
PAIRS = ("f16x2", "bf16x2")
DIRECTIONS = {"rz": "Rounding::kZero", "rm": "Rounding::kDown", "rp": "Rounding::kUp"}
INTEGRAL = {
    "rni": "Integral::kNearest",
    "rzi": "Integral::kZero",
    "rmi": "Integral::kDown",
    "rpi": "Integral::kUp",
}


def handles(*opcodes: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(opcodes, handler))
        return handler

    return register


def last_type(instruction: Instruction) -> str:
    types = types_of(instruction)
    if not types:
        raise UnsupportedError("no type")
    return types[-1]


def values_of(body: Body, instruction: Instruction, type_: str, first: int = 1) -> list[str]:
    values = [body.value(operand, type_) for operand in instruction.operands[first:]]
    if "ftz" in instruction.modifiers and type_ == "f32":
        values = [f"flush({value})" for value in values]
    return values


def direction_of(instruction: Instruction) -> str | None:
    return next((DIRECTIONS[m] for m in instruction.modifiers if m in DIRECTIONS), None)
