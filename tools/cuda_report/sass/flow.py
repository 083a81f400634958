# SPDX-License-Identifier: BSD-3-Clause
"""Control flow of a kernel: where each instruction leads, loops, and the loop of time steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from tools.cuda_report.sass.decode import Instruction, Listing

_ENDS = {"EXIT", "RET", "KILL", "BPT"}


@dataclass(frozen=True)
class Loop:
    """A loop, with all code that leads back into it: cold blocks behind the kernel's end too."""

    header: int  # where it is entered
    places: frozenset[int]


class Flow:
    """Places in a listing, and the places that may come next. Calls are taken to return."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        count = len(listing.instructions)
        self.next = [self._next(place, i) for place, i in enumerate(listing.instructions)]
        self.next = [[n for n in following if n < count] for following in self.next]
        self._nested: dict[Loop, list[Loop]] = {}

    def _next(self, place: int, instruction: Instruction) -> list[int]:
        base = instruction.base
        if instruction.is_jump:
            target = self.listing.labels[instruction.label or ""]
            return [place + 1, target] if is_conditional(instruction) else [target]
        if base in _ENDS and instruction.predicate is None:
            return []
        if instruction.targets:
            fall = [] if instruction.predicate is None else [place + 1]
            return [*fall, *(self.listing.labels[target] for target in instruction.targets)]
        if base in ("BRX", "BRXU", "JMX", "JMP"):
            raise ValueError(
                f"{self.listing.symbol} at {instruction.address:#x}: {instruction.name}, whose "
                "targets are not known"
            )
        return [place + 1]

    @cached_property
    def previous(self) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in self.next]
        for place, following in enumerate(self.next):
            for n in following:
                found[n].append(place)
        return found

    @cached_property
    def loops(self) -> list[Loop]:
        """Outermost loops: strongly connected parts of the flow."""
        return self._loops_within(frozenset(range(len(self.next))))

    def _loops_within(self, places: frozenset[int]) -> list[Loop]:
        """Outermost loops of a part of the flow."""
        found = []
        for part in _strongly_connected(self.next, places):
            if len(part) == 1 and part[0] not in self.next[part[0]]:
                continue
            members = frozenset(part)
            entries = [p for p in part if any(q not in members for q in self.previous[p])]
            found.append(Loop(min(entries, default=min(part)), members))
        return found

    def innermost(self, place: int) -> Loop | None:
        """The smallest loop that a place is in."""
        loops, found = self.loops, None
        while inner := next((loop for loop in loops if place in loop.places), None):
            found = inner
            if inner not in self._nested:
                self._nested[inner] = self._loops_within(inner.places - {inner.header})
            loops = self._nested[inner]
        return found

    @cached_property
    def barrier_loops(self) -> list[Loop]:
        """Loops with a barrier of the block, the largest first."""
        instructions = self.listing.instructions
        found = [
            loop for loop in self.loops if any(instructions[p].base == "BAR" for p in loop.places)
        ]
        return sorted(found, key=lambda loop: -len(loop.places))

    @cached_property
    def time_loop(self) -> Loop | None:
        """The largest loop with a barrier."""
        return self.barrier_loops[0] if self.barrier_loops else None

    def distances(
        self, start: int, stop: Callable[[int], bool] = lambda place: False
    ) -> dict[int, int]:
        """Instructions from `start` to all that it leads to; what `stop` says leads no further."""
        found = {start: 0}
        queue = deque([start])
        while queue:
            place = queue.popleft()
            if stop(place):
                continue
            for n in self.next[place]:
                if n not in found:
                    found[n] = found[place] + 1
                    queue.append(n)
        return found

    def leading_to(self, goals: Iterable[int]) -> set[int]:
        """All places from which one of the goals may be reached."""
        found = set(goals)
        queue = deque(found)
        while queue:
            for p in self.previous[queue.popleft()]:
                if p not in found:
                    found.add(p)
                    queue.append(p)
        return found


def is_conditional(branch: Instruction) -> bool:
    """Whether a branch may fall through: by its predicate, or by a predicate among its operands."""
    return branch.predicate is not None or any(o.kind != "label" for o in branch.operands)


def _strongly_connected(following: list[list[int]], places: frozenset[int]) -> list[list[int]]:
    """Tarjan's algorithm, without recursion, on some of the places."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    parts = []
    for root in sorted(places):
        if root in index:
            continue
        work = [(root, 0)]
        while work:
            place, child = work.pop()
            if child == 0:
                index[place] = low[place] = len(index)
                stack.append(place)
                on_stack.add(place)
            descended = False
            for i in range(child, len(following[place])):
                n = following[place][i]
                if n not in places:
                    continue
                if n not in index:
                    work += [(place, i + 1), (n, 0)]
                    descended = True
                    break
                if n in on_stack:
                    low[place] = min(low[place], index[n])
            if descended:
                continue
            if low[place] == index[place]:
                part: list[int] = []
                while not part or part[-1] != place:
                    part.append(stack.pop())
                    on_stack.discard(part[-1])
                parts.append(part)
            if work:
                parent = work[-1][0]
                low[parent] = min(low[parent], low[place])
    return parts
