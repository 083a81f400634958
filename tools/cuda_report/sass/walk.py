# SPDX-License-Identifier: BSD-3-Clause
"""Walks the warps of a block through a kernel: which instructions each of them issues.

Integers are computed, for all 32 lanes, from the launch and its arguments; what comes from memory
is unknown, and branches on it go as branches.py says. Lanes that part at a branch are walked one
part after the other, until they meet again: at a BSYNC, a WARPSYNC, a barrier of the block, or by
chance at the same instruction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from tools.cuda_report.sass import integer, moves, predicate  # noqa: F401
from tools.cuda_report.sass.branches import Branches, Decision
from tools.cuda_report.sass.decode import Instruction
from tools.cuda_report.sass.flow import Flow
from tools.cuda_report.sass.lanes import (
    ALL,
    NONE,
    TRUE,
    WARP,
    Flags,
    Lanes,
    Truth,
    conjunction,
    constant,
    unknown,
)
from tools.cuda_report.sass.memory import SPACES, Access, Memory, access_bytes
from tools.cuda_report.sass.predicate import executing
from tools.cuda_report.sass.warp import OPERATIONS, Constants, Warp, predicates, values

# Without effect on registers that the walk follows.
_NOTHING = {
    *("NOP", "BAR", "MEMBAR", "ERRBAR", "CGAERRBAR", "CCTL", "CCTLL", "DEPBAR", "LDGDEPBAR"),
    *("YIELD", "NANOSLEEP", "FENCE", "PREEXIT", "ACQBULK", "BMOV", "LEPC", "ENDCOLLECTIVE"),
    *("BSSY", "BSYNC", "BREAK", "WARPSYNC", "BRA", "BRX", "BRXU", "CALL", "RET", "EXIT"),
}
# What computes data, on which no branch depends whose way must be known. NOTE: a branch on any
# other instruction without a meaning here is refused, lest it goes by a rule made for data.
_DATA = {
    *("HMMA", "IMMA", "F2F", "F2FP", "FRND", "I2IP", "FSWZADD", "FADD2", "FMUL2", "FFMA2"),
    *("DADD", "DMUL", "DFMA", "LDTM", "UTCHMMA", "MATCH", "B2R", "HMNMX2", "FMNMX3"),
}
NO_MEANING = "no meaning is known of"
_LIMIT = 300_000


@dataclass(frozen=True)
class Step:
    """An instruction that a warp issued."""

    place: int
    executes: bool  # in at least one lane
    access: Access | None


@dataclass
class Walk:
    """The instructions of each warp of a block, and how unknown branches were decided."""

    warps: list[list[Step]]
    decisions: dict[int, tuple[Decision, str]]  # by place: the decision, and what it depended on


@dataclass(eq=False)
class _Group:
    """Lanes of a warp that are at the same instruction."""

    place: int
    lanes: Flags


@dataclass
class _Walker:
    """A warp on its way."""

    warp: Warp
    memory: Memory
    branches: Branches
    decisions: dict[int, tuple[Decision, str]]
    steps: list[Step] = field(default_factory=list)
    alive: Flags = field(default_factory=lambda: ALL.copy())
    groups: list[_Group] = field(default_factory=lambda: [_Group(0, ALL.copy())])
    joins: dict[str, Flags] = field(default_factory=dict)  # by BSSY's register: lanes to wait for
    waiting: dict[tuple[str, int], Flags] = field(
        default_factory=dict
    )  # arrived, by what and where

    def run(self) -> Iterator[Instruction]:
        """Runs to the end; yields at each barrier of the block."""
        instructions = self.branches.flow.listing.instructions
        while self.groups or self.waiting:
            if not self.groups:
                self._release_stuck()
            group = self._next_group()
            i = instructions[group.place]
            if len(self.steps) > _LIMIT:
                raise RuntimeError(f"no end: {i.text} at {i.address:#x} after {_LIMIT} steps")
            self.warp.active = group.lanes
            lanes = executing(self.warp, i)
            access = None
            if i.base in SPACES:
                access = self.memory.execute(self.warp, i, lanes)
            elif i.base in OPERATIONS:
                OPERATIONS[i.base](self.warp, i, lanes)
            elif i.base not in _NOTHING:
                self._forget_results(i, lanes)
            self.steps.append(Step(group.place, bool((~lanes.surely_not).any()), access))
            if self._advance(group, i, lanes):
                yield i

    def _next_group(self) -> _Group:
        """The group that is furthest behind, with all that are at the same place."""
        if len(self.groups) == 1:
            return self.groups[0]
        first = min(self.groups, key=lambda g: g.place)
        for other in [g for g in self.groups if g is not first and g.place == first.place]:
            first.lanes = first.lanes | other.lanes
            self.groups.remove(other)
        return first

    def _advance(self, group: _Group, i: Instruction, lanes: Truth) -> bool:
        """Moves a group on; whether it is at a barrier of the block."""
        base = i.base
        if base == "BRA" or (base == "CALL" and i.label in self.branches.flow.listing.labels):
            self._branch(group, i)
        elif i.targets:
            self._jump_by_table(group, i, lanes)
        elif base == "EXIT":
            self._leave(group, lanes.surely)
        elif base == "RET":
            self._return(group, i)
        elif base == "BSSY":
            self.joins[i.operands[0].text] = group.lanes.copy()
            group.place += 1
        elif base == "BREAK":
            name = i.operands[-1].text
            self.joins[name] = self.joins.get(name, NONE) & ~lanes.surely
            group.place += 1
        elif base == "BSYNC":
            self._wait(group, i.operands[-1].text, self.joins.get(i.operands[-1].text, ALL))
        elif base == "WARPSYNC":
            self._wait(group, "warp", ALL)
        elif base == "BAR":
            return self._wait(group, "block", ALL)
        else:
            group.place += 1
        return False

    def _branch(self, group: _Group, i: Instruction) -> None:
        target = self.branches.flow.listing.labels[i.label or ""]
        condition = TRUE if i.predicate is None else self.warp.truth(i.predicate)
        for operand in predicates(i.operands):
            condition = conjunction(condition, self.warp.truth(operand))
        if "DIV" in i.modifiers or "CONV" in i.modifiers:
            condition = ~TRUE  # lanes that belong together are taken to be together
        taken = group.lanes & condition.surely
        unsure = group.lanes & ~condition.known
        if unsure.any():
            if condition.origin.startswith(NO_MEANING):
                raise NotImplementedError(f"{i.text} at {i.address:#x}: {condition.origin}")
            decision = self.branches.decide(group.place)
            self.decisions[group.place] = (decision, condition.origin)
            taken = taken | unsure if decision.taken else taken
        rest = group.lanes & ~taken
        if taken.any() and rest.any():
            self.groups.append(_Group(target, taken))
            group.place, group.lanes = group.place + 1, rest
        else:
            group.place = target if taken.any() else group.place + 1

    def _jump_by_table(self, group: _Group, i: Instruction, lanes: Truth) -> None:
        """Each lane goes to the address that it has: a register's, counted from the next
        instruction."""
        address = i.operands[0].address
        assert address is not None
        goals = self.warp.address(address)
        going = group.lanes & ~lanes.surely_not
        if not goals.known[going].all():
            raise ValueError(f"{i.text} at {i.address:#x}: where to go is not known")
        places = (goals.bits + np.uint64(i.address + 16)) // np.uint64(16)
        places = np.where(going, places, np.uint64(group.place + 1))
        self.groups.remove(group)
        for place in np.unique(places[group.lanes]):
            self.groups.append(_Group(int(place), group.lanes & (places == place)))

    def _leave(self, group: _Group, lanes: Flags) -> None:
        self.alive = self.alive & ~lanes
        group.lanes = group.lanes & ~lanes
        group.place += 1
        if not group.lanes.any():
            self.groups.remove(group)
        for key in list(self.waiting):
            self._release(*key)

    def _return(self, group: _Group, i: Instruction) -> None:
        goal = self.warp.registers.read(values(i.operands)[0].index)
        first = int(np.flatnonzero(group.lanes)[0])
        if not goal.known[first]:
            raise ValueError(f"{i.text} at {i.address:#x}: where to return is not known")
        group.place = self.branches.flow.listing.place_of(int(goal.bits[first]))

    def _wait(self, group: _Group, name: str, for_lanes: Flags) -> bool:
        """Lets a group wait for other lanes; whether all of them are there now."""
        key = (name, group.place)
        self.waiting[key] = self.waiting.get(key, NONE) | group.lanes
        self.groups.remove(group)
        if name not in ("warp", "block"):
            self.joins[name] = for_lanes
        return self._release(*key)

    def _release(self, name: str, place: int) -> bool:
        wanted = ALL if name in ("warp", "block") else self.joins[name]
        arrived = self.waiting[name, place]
        if (wanted & self.alive & ~arrived).any():
            return False
        del self.waiting[name, place]
        if (arrived & self.alive).any():
            self.groups.append(_Group(place + 1, arrived & self.alive))
        return True

    def _release_stuck(self) -> None:
        """Lanes wait for others that never come by: those of a branch that joins elsewhere."""
        (_, place), lanes = min(self.waiting.items(), key=lambda item: item[0][1])
        self.waiting = {key: value for key, value in self.waiting.items() if key[1] != place}
        self.groups.append(_Group(place + 1, lanes & self.alive))

    def _forget_results(self, i: Instruction, lanes: Truth) -> None:
        """Marks as unknown what an instruction without a meaning here may write."""
        origin = f"{i.name} at {i.address:#x}"
        if i.base not in _DATA:
            origin = f"{NO_MEANING} {origin}"
        for operand in i.operands:
            if operand.kind == "predicate":
                self.warp.registers.write_predicate(operand, Truth(NONE, NONE, origin), lanes)
            else:
                break
        result = next((o for o in i.operands if o.kind == "register"), None)
        if result is not None:
            for n in range(_result_registers(i)):
                if result.index % 256 + n < 255:
                    self.warp.registers.write(result.index + n, unknown(origin), lanes)


def _result_registers(i: Instruction) -> int:
    """Registers that an instruction writes."""
    if i.base in ("HMMA", "IMMA", "QMMA", "OMMA"):
        return 4 if "F32" in i.modifiers or i.base != "HMMA" else 2
    if i.base in ("DADD", "DMUL", "DFMA", "DMMA") or "F64" in i.modifiers:
        return 2
    return max(1, access_bytes(i) // 4)


@dataclass(frozen=True)
class Launch:
    """What is known of a launch."""

    threads: int
    grid: tuple[int, int, int]
    block: tuple[int, int, int] = (0, 0, 0)  # the block that is walked


def walk(flow: Flow, constants: Constants, launch: Launch, memory: Memory) -> Walk:
    """Walks all warps of a block through a kernel, from barrier to barrier."""
    branches = Branches(flow)
    decisions: dict[int, tuple[Decision, str]] = {}
    walkers = [
        _Walker(Warp(constants, _special(launch, n)), memory, branches, decisions)
        for n in range(-(-launch.threads // WARP))
    ]
    running = [walker.run() for walker in walkers]
    while running:
        running = [warp for warp in running if next(warp, None) is not None]
    return Walk([walker.steps for walker in walkers], decisions)


def _special(launch: Launch, warp: int) -> Mapping[str, Lanes]:
    lane = np.arange(WARP, dtype=np.uint64)
    found = {"SR_TID.X": Lanes(lane + np.uint64(warp * WARP)), "SR_LANEID": Lanes(lane)}
    found |= {f"SR_TID.{axis}": constant(0) for axis in "YZ"}
    for axis, block, size in zip("XYZ", launch.block, launch.grid, strict=True):
        found[f"SR_CTAID.{axis}"] = constant(block)
        found[f"SR_NCTAID.{axis}"] = constant(size)
    found["SR_NTID.X"] = constant(launch.threads)
    found["SR_CgaCtaId"] = constant(0)
    return found
