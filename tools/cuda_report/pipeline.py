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
from typing import NamedTuple

from tools.cuda_report.exchange import Exchange, Key, find_exchange
from tools.cuda_report.facts import SCHEDULERS
from tools.cuda_report.latencies import Latencies
from tools.cuda_report.sass.decode import NO_BARRIER, Listing
from tools.cuda_report.sass.lanes import WARP
from tools.cuda_report.sass.memory import STORES
from tools.cuda_report.sass.walk import Step
from tools.cuda_report.units import Unit, unit_of

BLOCKED = math.inf


@dataclass(frozen=True)
class Issued:
    """When an instruction issued, and what it had waited for last."""

    time: int
    cause: str
    warp: int  # of the instruction that released it
    step: int
    held: float = 0  # cycles, of these, for which the scheduler or the pipe was taken then
    holder: str = ""


class Pending(NamedTuple):
    """A result on its way, or operands that are still to be read."""

    done: float
    cause: str
    warp: int  # whose step it is
    step: int
    exchanged: Key | None = None  # what it waits for, beside its own trip
    drain: float = 0  # of an exchanged load, with those before it: cycles of L2


_NOTHING = Pending(0, "fixed", 0, 0)


@dataclass
class _Warp:
    steps: Sequence[Step]
    next: int = 0
    ready: Pending = _NOTHING  # the stall of the last instruction, a barrier, a fence
    scoreboards: list[list[Pending]] = field(default_factory=lambda: [[] for _ in range(6)])
    issued: list[Issued] = field(default_factory=list)
    at_barrier: bool = False
    copied: float = 0  # when all asynchronous copies so far are done
    release: Pending | None = None  # what the next instruction waits for; None: to be found

    @property
    def ended(self) -> bool:
        return self.next >= len(self.steps)


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
        self._published: dict[Key, tuple[int, int, int]] = {}  # the last store: time, warp, step
        self._unpublished = dict(self.exchange.stores)
        self._drained: dict[Key, float] = defaultdict(float)

    def run(self) -> None:
        """Issues all instructions."""
        while True:
            best = None
            for number, warp in enumerate(self.warps):
                if warp.ended or warp.at_barrier:
                    continue
                if warp.release is None:
                    warp.release = self._release_of(warp)
                time = max(warp.release.done, self._contended(number, warp))
                if time < BLOCKED:
                    order = (time, self._last[number % SCHEDULERS] != number, number)
                    best = order if best is None else min(best, order)
            if best is None:
                break
            self._issue(best[2], math.ceil(best[0]))
        stuck = [number for number, warp in enumerate(self.warps) if not warp.ended]
        if stuck:
            warp = self.warps[stuck[0]]
            i = self.instructions[warp.steps[warp.next].place]
            raise RuntimeError(f"warps {stuck} wait forever, at {i.address:#x} {i.text}")

    def _contended(self, number: int, warp: _Warp) -> float:
        """When the scheduler and the pipe are free."""
        scheduler = number % SCHEDULERS
        pipe = self.units[warp.steps[warp.next].place].pipe
        return max(self._scheduler_free[scheduler], self._pipe_free[scheduler, pipe])

    def _release_of(self, warp: _Warp) -> Pending:
        """What the warp's next instruction waits for last."""
        i = self.instructions[warp.steps[warp.next].place]
        found = warp.ready
        for board in i.control.waits:
            for pending in warp.scoreboards[board]:
                found = max(found, self._settled(pending), key=lambda p: p.done)
        if i.base == "DEPBAR":
            left, board = i.operands[1].value, int(i.operands[0].text.removeprefix("SB"))
            ordered = sorted(map(self._settled, warp.scoreboards[board]), key=lambda p: -p.done)
            for pending in ordered[left : left + 1]:
                found = max(found, pending, key=lambda p: p.done)
        return found

    def _settled(self, pending: Pending) -> Pending:
        """A result with the time at which it comes: what is exchanged waits for the last store."""
        key = pending.exchanged
        if key is None:
            return pending
        if key in self._unpublished:
            return pending._replace(done=BLOCKED)
        time, warp, step = self._published[key]
        done = time + self.latencies.exchange_hop + pending.drain
        return pending if done <= pending.done else Pending(done, "exchange", warp, step)

    def _issue(self, number: int, time: int) -> None:
        warp = self.warps[number]
        step, release, me = warp.steps[warp.next], warp.release, (number, warp.next)
        assert release is not None
        i, unit, scheduler = self.instructions[step.place], self.units[step.place], number % 4
        busy = self._pipe_free[scheduler, unit.pipe] > self._scheduler_free[scheduler]
        holder = f"{unit.pipe} pipe taken" if busy else "other warps issue"
        warp.issued.append(Issued(time, *release[1:4], time - release.done, holder))
        for board in i.control.waits:
            warp.scoreboards[board].clear()
        self._scheduler_free[scheduler] = time + 1
        self._last[scheduler] = number
        if step.executes:
            self._pipe_free[scheduler, unit.pipe] = time + unit.cycles
        done, read = self._completion(step, unit, time)
        if i.base == "LDGSTS":
            warp.copied = max(warp.copied, done)
        elif i.base == "LDGDEPBAR":  # released when all copies before it are done
            warp.scoreboards[0].append(Pending(warp.copied, "asynchronous copy", *me))
        elif i.control.write_barrier != NO_BARRIER:
            key = self.exchange.loads.get(me)
            drain = 0.0
            if key is not None and step.access is not None:
                self._drained[key] += step.access.bytes_moved / self.latencies.l2_bytes
                drain = self._drained[key]
            result = Pending(done, self._cause(step, unit), *me, key, drain)
            warp.scoreboards[i.control.write_barrier].append(result)
        if i.control.read_barrier != NO_BARRIER:
            operands = Pending(read, "operands read", *me)
            warp.scoreboards[i.control.read_barrier].append(operands)
        warp.ready = Pending(time + max(1, i.control.stall), "fixed", *me)
        if i.base == "MEMBAR" and step.executes:
            warp.ready = Pending(time + self.latencies.membar, "MEMBAR", *me)
        warp.next += 1
        warp.release = None
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
        self._l2_free = max(start, self._l2_free) + access.bytes_moved / self.latencies.l2_bytes
        in_dram = access.array in self.in_dram
        return self._l2_free + (self.latencies.dram_load if in_dram else unit.latency), read

    def _cause(self, step: Step, unit: Unit) -> str:
        in_dram = step.access is not None and step.access.array in self.in_dram
        return "DRAM load" if in_dram else unit.cause

    def _publish(self, me: tuple[int, int], time: int) -> None:
        key = self.exchange.published_by[me]
        self._unpublished[key] -= 1
        if not self._unpublished[key]:
            del self._unpublished[key]
            self._published[key] = (time, *me)
            for warp in self.warps:
                warp.release = None

    def _arrive(self, number: int, time: int) -> None:
        """Lets a warp wait at a barrier of the block; lets all go on when the last has come."""
        warp = self.warps[number]
        i = self.instructions[warp.steps[warp.next - 1].place]
        operands = [o for o in i.operands if o.kind in ("integer", "register")]
        name = operands[0].text if operands else "0x0"
        threads = operands[1].value if len(operands) > 1 and operands[1].kind == "integer" else 0
        waiting = self._barriers[name]
        waiting.append(number)
        warp.at_barrier = "ARV" not in i.modifiers
        running = sum(not w.ended or w.at_barrier for w in self.warps)
        if len(waiting) < (threads // WARP or running):
            return
        last = Pending(time + self.latencies.barrier, "barrier", number, warp.next - 1)
        for other in (self.warps[n] for n in waiting):
            if other.at_barrier:
                other.at_barrier, other.release = False, None
                other.ready = max(other.ready, last, key=lambda p: p.done)
        waiting.clear()
