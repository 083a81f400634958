# SPDX-License-Identifier: BSD-3-Clause
"""Broken variants of a module, each with one synchronising instruction removed or weakened.

A checked library holds all of them: the setting ``mutation`` picks one at run time, by its number.
``mutations`` yields them as PTX texts too.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from .syntax import Function, Instruction, Label, Module, parse_module

_STRONG = {"volatile", "relaxed", "acquire", "acq_rel"}
_ORDERS = {"acquire", "release", "acq_rel"}
_LONGEST_WAIT = 40  # instructions in a loop that does nothing but wait


@dataclass(frozen=True)
class Mutation:
    line: int
    function: str  # mangled
    # "remove" the instruction, "weaken" it to relaxed, or leave the wait loop: "fall through" its
    # branch back, or "take" its branch out.
    kind: str
    text: str

    def number(self, module: str, target: int) -> int:
        """Return what the setting ``mutation`` calls this one: unlike for every other module."""
        return zlib.crc32(f"{module}:{target}:{self.line}".encode()) & 0x7FFFFFFF


def _is_synchronisation(instruction: Instruction) -> bool:
    opcode, modifiers = instruction.opcode, instruction.modifiers
    if opcode in ("bar", "barrier"):
        return "red" not in modifiers
    if opcode in ("fence", "membar"):
        return True
    return opcode == "cp" and ("wait_group" in modifiers or "wait_all" in modifiers)


def _waits(region: list[Instruction | Label]) -> bool:
    """Whether the loop only waits: it reads a flag, and writes nothing."""
    instructions = [item for item in region if isinstance(item, Instruction)]
    if len(instructions) > _LONGEST_WAIT:
        return False
    if any(i.opcode in ("st", "bar", "barrier", "mma", "call", "red") for i in instructions):
        return False
    return any(i.opcode in ("ld", "atom") and _STRONG & set(i.modifiers) for i in instructions)


def _way_out(function: Function, begin: int, end: int) -> tuple[Instruction, str] | None:
    """Return the branch that decides over another turn of a loop, and what to do with it."""
    back = function.body[end]
    assert isinstance(back, Instruction)
    if back.guard is not None:
        return back, "fall through"
    inside = {item.name for item in function.body[begin:end] if isinstance(item, Label)}
    for item in reversed(function.body[begin:end]):
        if isinstance(item, Instruction) and item.opcode == "bra" and item.guard is not None:
            return None if item.operands[0] in inside else (item, "take")
    return None


def find_mutations(module: Module) -> list[Mutation]:
    found: dict[int, Mutation] = {}

    def add(function: Function, instruction: Instruction, kind: str) -> None:
        mutation = Mutation(instruction.line, function.name, kind, instruction.text)
        found.setdefault(instruction.line, mutation)

    for function in module.functions:
        places: dict[str, int] = {}
        for index, item in enumerate(function.body):
            if isinstance(item, Label):
                places[item.name] = index
                continue
            if _is_synchronisation(item):
                add(function, item, "remove")
            elif item.opcode in ("ld", "st", "atom", "red") and _ORDERS & set(item.modifiers):
                add(function, item, "weaken")
            elif item.opcode == "bra" and item.operands[0] in places:
                begin = places[item.operands[0]]
                way_out = _way_out(function, begin, index)
                if way_out and _waits(function.body[begin:index]):
                    add(function, *way_out)
    return sorted(found.values(), key=lambda mutation: mutation.line)


def _apply(line: str, mutation: Mutation) -> str:
    opcode = re.escape(mutation.text.split()[0 if mutation.text[0] != "@" else 1])
    statement = re.compile(rf"(?:@!?[%\w]+\s+)?{opcode}[^;]*;")
    if mutation.kind in ("remove", "fall through"):
        return statement.sub("", line, count=1)
    if mutation.kind == "take":
        return re.sub(r"@!?[%\w]+\s+", "", line, count=1)
    return re.sub(r"\.(acquire|release|acq_rel)\b", ".relaxed", line, count=1)


def mutations(ptx: str) -> Iterator[tuple[Mutation, str]]:
    """Yield each mutation, and the text with it alone applied."""
    lines = ptx.split("\n")
    for mutation in find_mutations(parse_module(ptx)):
        index = mutation.line - 1
        changed = _apply(lines[index], mutation)
        if changed == lines[index]:
            raise ValueError(f"line {mutation.line}: cannot {mutation.kind} {mutation.text!r}")
        yield mutation, "\n".join([*lines[:index], changed, *lines[index + 1 :]])
