# SPDX-License-Identifier: BSD-3-Clause
"""Times the instructions that the warps of a block issue, on an SM with four schedulers.

A scheduler issues one instruction a cycle, of one of its warps (every fourth of the block), each of
which issues in order: after the stall of the instruction before it, when the scoreboards that it
waits for are released, when its pipe is free. The memory unit of the SM serves one wavefront of 128
bytes a cycle; L2 gives a block so many bytes a cycle. A barrier holds until all warps have come. A
load of what blocks exchange returns `exchange_hop` cycles after the slowest warp's store: blocks
are taken to run alike.

Left out: fetching of instructions, conflicts of register banks, traffic of other blocks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tools.cuda_report.exchange import Exchange, find_exchange
from tools.cuda_report.facts import SCHEDULERS
from tools.cuda_report.latencies import Latencies
from tools.cuda_report.sass.decode import NO_BARRIER, Listing
from tools.cuda_report.sass.memory import STORES
from tools.cuda_report.sass.walk import Step
from tools.cuda_report.units import Unit, unit_of

BLOCKED = math.inf


@dataclass
class Issued:
    """When an instruction issued, and what it had waited for last."""

    time: int
    cause: str
    warp: int  # of the instruction that released it
    step: int


@dataclass
class _Scoreboard:
    """What is on its way under one of a warp's six scoreboards."""

    pending: list[tuple[float, str, int, int]] = field(default_factory=list)  # done, cause, by whom

    def latest(self, left: int = 0) -> tuple[float, str, int, int] | None:
        """What is done last, if so many others may be left on their way."""
        ordered = sorted(self.pending, key=lambda entry: -entry[0])
        return ordered[left] if len(ordered) > left else None


@dataclass
class _Warp:
    steps: Sequence[Step]
    next: int = 0
    ready: float = 0  # by the stall of the last instruction, a barrier or a fence
    cause: str = "fixed"
    origin: tuple[int, int] = (0, 0)
    scoreboards: list[_Scoreboard] = field(
        default_factory=lambda: [_Scoreboard() for _ in range(6)]
    )
    barriers: int = 0
    issued: list[Issued] = field(default_factory=list)
    at_barrier: bool = False


class Simulation:
    """The warps of a block, each with the steps that it issues."""

    def __init__(
        self,
        listing: Listing,
        warps: Sequence[Sequence[Step]],
        latencies: Latencies,
        in_dram: frozenset[str] = frozenset(),
    ) -> None:
        """`in_dram`: arrays that are read from memory beyond L2."""
        self.instructions = listing.instructions
        self.latencies = latencies
        self.in_dram = in_dram
        self.units: list[Unit] = [unit_of(i, latencies) for i in listing.instructions]
        self.warps = [_Warp(steps) for steps in warps]
        self.exchange: Exchange = find_exchange(listing, warps)
        self._scheduler_free = [0.0] * SCHEDULERS
        self._last = [-1] * SCHEDULERS
        self._pipe_free: dict[tuple[int, str], float] = defaultdict(float)
        self._memory_free = 0.0
        self._l2_free = 0.0
        self._barriers: dict[str, list[int]] = defaultdict(list)
        self._published: dict[tuple[str, int], tuple[int, int, int]] = {}
        self._unpublished = dict(self.exchange.stores)

    def run(self) -> None:
        """Issues all instructions."""
        while True:
            best = None
            for number, warp in enumerate(self.warps):
                if warp.next >= len(warp.steps) or warp.at_barrier:
                    continue
                time, _, _ = self._earliest(number, warp)
                time = max(time, self._contended(number, warp))
                order = (time, self._last[number % SCHEDULERS] != number, number)
                if time < BLOCKED and (best is None or order < best):
                    best = order
            if best is None:
                break
            self._issue(best[2], math.ceil(best[0]))
        stuck = [n for n, w in enumerate(self.warps) if w.next < len(w.steps)]
        if stuck:
            warp = self.warps[stuck[0]]
            i = self.instructions[warp.steps[warp.next].place]
            raise RuntimeError(f"warps {stuck} wait forever, at {i.address:#x} {i.text}")

    def _contended(self, number: int, warp: _Warp) -> float:
        """When the scheduler and the pipe are free."""
        scheduler = number % SCHEDULERS
        pipe = self.units[warp.steps[warp.next].place].pipe
        return max(self._scheduler_free[scheduler], self._pipe_free[scheduler, pipe])

    def _earliest(self, number: int, warp: _Warp) -> tuple[float, str, tuple[int, int]]:
        """When a warp may issue by itself, why not before, and what released it."""
        i = self.instructions[warp.steps[warp.next].place]
        found = warp.ready, warp.cause, warp.origin
        waits = [(board, 0) for board in i.control.waits]
        if i.base == "DEPBAR":
            waits += [(int(i.operands[0].text[2:]), i.operands[1].value)]
        for board, left in waits:
            latest = warp.scoreboards[board].latest(left)
            if latest is not None and latest[0] > found[0]:
                done, cause, by_warp, by_step = latest
                if done == BLOCKED:
                    done = self._arrival(by_warp, by_step)
                    if done < BLOCKED:
                        self._settle(warp.scoreboards[board], done, by_warp, by_step)
                        return self._earliest(number, warp)
                    return BLOCKED, cause, (by_warp, by_step)
                found = done, cause, (by_warp, by_step)
        return found

    def _arrival(self, number: int, step: int) -> float:
        """When the data of an exchange load arrives, if it is known."""
        key = self.exchange.loads[number, step]
        if key in self._unpublished:
            return BLOCKED
        return self._published[key][0] + self.latencies.exchange_hop

    def _settle(self, board: _Scoreboard, done: float, number: int, step: int) -> None:
        """Puts in place of an exchange load what it waited for: its trip, or the slowest store."""
        issued = self.warps[number].issued[step].time
        trip = issued + self.latencies.l2_load
        time, by_warp, by_step = self._published[self.exchange.loads[number, step]]
        entry = (trip, "L2 load", number, step)
        if done > trip:
            entry = (done, "exchange", by_warp, by_step)
        board.pending = [e for e in board.pending if e[2:] != (number, step)] + [entry]

    def _issue(self, number: int, time: int) -> None:
        warp = self.warps[number]
        step = warp.steps[warp.next]
        i, unit, scheduler = self.instructions[step.place], self.units[step.place], number % 4
        earliest, cause, origin = self._earliest(number, warp)
        if time > earliest and warp.issued:
            busy = self._pipe_free[scheduler, unit.pipe] > self._scheduler_free[scheduler]
            cause = f"{unit.pipe} pipe taken" if busy else "other warps issue"
            origin = (number, warp.next - 1)
        warp.issued.append(Issued(time, cause, *origin))
        for board in i.control.waits:
            warp.scoreboards[board].pending.clear()
        self._scheduler_free[scheduler] = time + 1
        self._last[scheduler] = number
        if step.executes:
            self._pipe_free[scheduler, unit.pipe] = time + unit.cycles
        done, read = self._completion(step, unit, time)
        control = i.control
        me = (number, warp.next)
        if me in self.exchange.loads:
            done = BLOCKED
        if control.write_barrier != NO_BARRIER:
            warp.scoreboards[control.write_barrier].pending.append((done, unit.cause, *me))
        if control.read_barrier != NO_BARRIER:
            warp.scoreboards[control.read_barrier].pending.append((read, "operands read", *me))
        warp.ready, warp.cause, warp.origin = time + max(1, control.stall), "fixed", me
        if i.base == "MEMBAR" and step.executes:
            warp.ready, warp.cause = time + self.latencies.membar, "MEMBAR"
        warp.next += 1
        if me in self.exchange.published_by:
            self._publish(me, time)
        if i.base == "BAR":
            self._arrive(number, time)

    def _completion(self, step: Step, unit: Unit, time: int) -> tuple[float, float]:
        """When a result is there, and when the operands have been read."""
        if not step.executes:
            return time + self.latencies.switched_off, time + self.latencies.switched_off
        if not unit.in_memory_unit:
            return time + unit.latency, time + self.latencies.operands_read
        access = step.access
        wavefronts = 1.0
        if access is not None:
            ideal = access.lanes * access.size / self.latencies.shared_bytes
            wavefronts = max(1.0, access.wavefronts, ideal)
        start = max(time, self._memory_free)
        self._memory_free = start + wavefronts
        read = start + self.latencies.operands_read
        if access is None or access.space == "shared":
            return start + wavefronts - 1 + unit.latency, read
        if self.instructions[step.place].base in STORES:
            return start + unit.latency, read
        drain = max(start, self._l2_free) + access.bytes_moved / self.latencies.l2_bytes
        self._l2_free = drain
        latency = self.latencies.dram_load if access.array in self.in_dram else unit.latency
        return drain + latency, read

    def _publish(self, me: tuple[int, int], time: int) -> None:
        key = self.exchange.published_by[me]
        self._unpublished[key] -= 1
        if not self._unpublished[key]:
            del self._unpublished[key]
            self._published[key] = (time, *me)

    def _arrive(self, number: int, time: int) -> None:
        """Lets a warp wait at a barrier of the block, and goes on when the last one has come."""
        warp = self.warps[number]
        i = self.instructions[warp.steps[warp.next - 1].place]
        operands = [o for o in i.operands if o.kind in ("integer", "register")]
        name = operands[0].text if operands else "0x0"
        threads = operands[1].value if len(operands) > 1 and operands[1].kind == "integer" else 0
        waiting = self._barriers[name]
        waiting.append(number)
        warp.at_barrier = "ARV" not in i.modifiers
        running = sum(w.next < len(w.steps) or w.at_barrier for w in self.warps)
        if len(waiting) < (threads // 32 or running):
            return
        for other in waiting:
            if self.warps[other].at_barrier:
                self._go_on(self.warps[other], number, time)
        waiting.clear()

    def _go_on(self, warp: _Warp, last: int, time: int) -> None:
        warp.at_barrier = False
        ready = time + self.latencies.barrier
        if ready > warp.ready:
            warp.ready, warp.cause = ready, "barrier"
            warp.origin = (last, self.warps[last].next - 1)
