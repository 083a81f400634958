# SPDX-License-Identifier: BSD-3-Clause
"""Broken variants of a module, each with one synchronising instruction removed or weakened.

A checked library holds all of them: the setting ``mutation`` picks one at run time, by its number.
``mutations`` yields them as PTX texts too.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from .loops import wait_exits
from .syntax import Function, Instruction, Label, Module, parse_instruction, parse_module

_ORDERS = {"acquire", "release", "acq_rel"}


@dataclass(frozen=True)
class Mutation:
    line: int
    function: str  # mangled
    # "remove" the instruction; "weaken" it to relaxed; let a thread vote "alone", and not wait; or
    # leave a loop that waits: "take" its branch out, or "fall through" its branch back.
    kind: str
    text: str

    def number(self, module: str, target: int) -> int:
        """Return what the setting ``mutation`` calls this one: unlike for every other module."""
        return zlib.crc32(f"{module}:{target}:{self.line}".encode()) & 0x7FFFFFFF


def _is_synchronisation(instruction: Instruction) -> bool:
    opcode, modifiers = instruction.opcode, instruction.modifiers
    if opcode in ("bar", "barrier"):
        return True
    if opcode in ("fence", "membar"):
        return True
    return opcode == "cp" and ("wait_group" in modifiers or "wait_all" in modifiers)


def find_mutations(module: Module) -> list[Mutation]:
    found: dict[int, Mutation] = {}

    def add(function: Function, instruction: Instruction, kind: str) -> None:
        mutation = Mutation(instruction.line, function.name, kind, instruction.text)
        found.setdefault(instruction.line, mutation)

    for function in module.functions:
        for item in function.body:
            if isinstance(item, Label):
                continue
            if _is_synchronisation(item):
                add(function, item, "alone" if "red" in item.modifiers else "remove")
            elif item.opcode in ("ld", "st", "atom", "red") and _ORDERS & set(item.modifiers):
                add(function, item, "weaken")
        for item, is_taken in wait_exits(function):
            add(function, item, "take" if is_taken else "fall through")
    return sorted(found.values(), key=lambda mutation: mutation.line)


def _vote_alone(text: str) -> str:
    """Return the instruction that gives a thread its own vote for that of all."""
    instruction = parse_instruction(text, 0)
    result, vote = instruction.operands[0], instruction.operands[-1]
    guard = f"@{'!' * instruction.negated}{instruction.guard} " if instruction.guard else ""
    if "popc" in instruction.modifiers:
        ayes = "0, 1" if vote.startswith("!") else "1, 0"
        return f"{guard}selp.u32 {result}, {ayes}, {vote.lstrip('!')};"
    opcode = "not.pred" if vote.startswith("!") else "mov.pred"
    return f"{guard}{opcode} {result}, {vote.lstrip('!')};"


def _apply(line: str, mutation: Mutation) -> str:
    opcode = re.escape(mutation.text.split()[0 if mutation.text[0] != "@" else 1])
    statement = re.compile(rf"(?:@!?[%\w]+\s+)?{opcode}[^;]*;")
    if mutation.kind in ("remove", "fall through"):
        return statement.sub("", line, count=1)
    if mutation.kind == "take":
        return re.sub(r"@!?[%\w]+\s+", "", line, count=1)
    if mutation.kind == "alone":
        # The names of the line, which are not yet made unique.
        return statement.sub(lambda m: _vote_alone(" ".join(m[0].rstrip(";").split())), line, 1)
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
