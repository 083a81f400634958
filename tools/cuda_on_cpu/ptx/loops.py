# SPDX-License-Identifier: BSD-3-Clause
"""Loops that wait for what another thread stores, and where they are left."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from .syntax import Function, Instruction, Label

_STRONG = {"volatile", "relaxed", "acquire", "acq_rel"}
_REGISTER = re.compile(r"%[\w$]+")
_ENDS = ("ret", "exit", "trap")
_NOT_IN_A_WAIT = ("bar", "barrier", "mma", "call")
_WITHOUT_RESULT = ("st", "red", "bra", "brx", "membar", "fence", "ret", "exit", "trap")


def polls(instruction: Instruction) -> bool:
    """Whether the instruction reads what other threads may store meanwhile."""
    return instruction.opcode in ("ld", "atom") and bool(_STRONG & set(instruction.modifiers))


def _written(instruction: Instruction) -> set[str]:
    if instruction.opcode in _WITHOUT_RESULT or not instruction.operands:
        return set()
    return set(_REGISTER.findall(instruction.operands[0]))


def _read(instruction: Instruction) -> set[str]:
    sources = instruction.operands
    if instruction.opcode not in _WITHOUT_RESULT:
        sources = sources[1:]
    read = {name for operand in sources for name in _REGISTER.findall(operand)}
    return read | ({instruction.guard} if instruction.guard else set())


@dataclass
class Loop:
    """A natural loop: the places of its instructions in the function's body."""

    header: int
    latches: set[int] = field(default_factory=set)  # branches back to the header
    places: set[int] = field(default_factory=set)


@dataclass
class _Flow:
    """The control flow of a function, by places in its body."""

    function: Function

    @cached_property
    def labels(self) -> dict[str, int]:
        body = self.function.body
        return {item.name: i for i, item in enumerate(body) if isinstance(item, Label)}

    @cached_property
    def next(self) -> list[list[int]]:
        return [list(self._next(place)) for place in range(len(self.function.body))]

    @cached_property
    def previous(self) -> list[list[int]]:
        before: list[list[int]] = [[] for _ in self.function.body]
        for place, following in enumerate(self.next):
            for other in following:
                before[other].append(place)
        return before

    def _next(self, place: int) -> Iterator[int]:
        item = self.function.body[place]
        goes_on = True
        if isinstance(item, Instruction):
            if item.opcode == "bra":
                yield self.labels[item.operands[0]]
            elif item.opcode == "brx":
                yield from (self.labels[t] for t in self.function.branch_targets[item.operands[1]])
            goes_on = item.guard is not None or item.opcode not in ("bra", "brx", *_ENDS)
        if goes_on and place + 1 < len(self.function.body):
            yield place + 1

    def reaches(self, begin: int, ends: set[int], within: set[int], without: int) -> bool:
        """Whether a way within the places leads from the first to one of the ends."""
        seen, open_ = {without}, [begin]
        while open_:
            place = open_.pop()
            if place in seen or place not in within:
                continue
            if place in ends:
                return True
            seen.add(place)
            open_ += self.next[place]
        return False

    @cached_property
    def loops(self) -> list[Loop]:
        found: dict[int, Loop] = {}
        for place, item in enumerate(self.function.body):
            if isinstance(item, Instruction) and item.opcode == "bra":
                header = self.labels[item.operands[0]]
                if header <= place and self._dominates(header, place):
                    found.setdefault(header, Loop(header)).latches.add(place)
        for loop in found.values():
            loop.places = {loop.header}
            open_ = list(loop.latches)
            while open_:
                place = open_.pop()
                if place not in loop.places:
                    loop.places.add(place)
                    open_ += self.previous[place]
        return list(found.values())

    def _dominates(self, header: int, place: int) -> bool:
        everywhere = set(range(len(self.function.body)))
        return not self.reaches(0, {place}, everywhere, without=header)


class _Wait:
    """A loop, as one that may wait."""

    def __init__(self, flow: _Flow, loop: Loop) -> None:
        self.flow, self.loop = flow, loop
        body = flow.function.body
        self.inside = {
            place: item
            for place in sorted(loop.places)
            if isinstance(item := body[place], Instruction)
        }
        inner = [other.places for other in flow.loops if other.places < loop.places]
        own = loop.places.difference(*inner)
        self.polling = [i for place, i in self.inside.items() if place in own and polls(i)]
        self.branches = {
            place: item
            for place, item in self.inside.items()
            if item.opcode == "bra" and item.guard is not None
        }

    def exit(self) -> tuple[Instruction, bool] | None:
        if not self.polling or any(i.opcode in _NOT_IN_A_WAIT for i in self.inside.values()):
            return None
        exits = [place for place in self.branches if self._decides(place)]
        for place in exits:
            if all(self._reaches({place}, without=other) for other in exits if other != place):
                return self.branches[place], self.flow.next[place][0] not in self.loop.places
        return None

    def _decides(self, place: int) -> bool:
        """Whether the branch is asked in every turn, leaves the loop, and depends on a poll."""
        stays = [after in self.loop.places for after in self.flow.next[place]]
        guard = self.branches[place].guard
        assert guard is not None
        return sum(stays) == 1 and self._is_in_every_turn(place) and self._depends(guard)

    def _reaches(self, ends: set[int], without: int) -> bool:
        return self.flow.reaches(self.loop.header, ends, self.loop.places, without)

    def _is_in_every_turn(self, place: int) -> bool:
        return not self._reaches(self.loop.latches - {place}, without=place)

    def _depends(self, register: str) -> bool:
        """Whether the value comes from a poll of this turn, by data or by a branch."""
        polled = {name for instruction in self.polling for name in _written(instruction)}
        known, open_ = set[str](), {register}
        while open_:
            name = open_.pop()
            if name in polled:
                return True
            known.add(name)
            for place, instruction in self.inside.items():
                if name in _written(instruction):
                    open_ |= _read(instruction) - known
                    if not self._is_in_every_turn(place):
                        open_ |= {b.guard for b in self.branches.values() if b.guard} - known
        return False


def wait_exits(function: Function) -> Iterator[tuple[Instruction, bool]]:
    """Yield for each loop that waits the branch that leaves it when what it waits for has come.

    True with it where the loop is left by taking the branch, False where by not taking it. A wait
    may have other ways out, as when it takes too long; this one is asked first in every turn.
    """
    flow = _Flow(function)
    for loop in flow.loops:
        if found := _Wait(flow, loop).exit():
            yield found
