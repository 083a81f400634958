# SPDX-License-Identifier: BSD-3-Clause
"""The time of a step in the steady state, from the machine code of a plan's kernel, and what the
time goes to: the causes along the critical path."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tools.cuda_report.facts import Device
from tools.cuda_report.latencies import latencies_of
from tools.cuda_report.launch import kernel_code, walk_plan
from tools.cuda_report.pipeline import Simulation
from tools.cuda_report.plans import Plan
from tools.cuda_report.sass.decode import Listing
from tools.cuda_report.sass.flow import Flow
from tools.cuda_report.sass.walk import Walk

# Rounds of the loop that are walked. The first is left out of the simulation, the next two are not
# yet steady, and of the last one the end may be missing.
ROUNDS, UNSTEADY, COUNTED = 9, 2, 4
# Arrays as long as the sequence, which L2 has not: read from memory.
_STREAMED = frozenset(f"direction[0].{name}" for name in ("preactivations", "gates", "cells")) | {
    "direction[0].grad_y"
}


@dataclass(frozen=True)
class StepTime:
    cycles: float
    split: dict[str, float]  # cycles on the critical path, by cause
    instructions: float  # of a warp, on average
    l2_bytes: float  # of a block, read and written
    shared_bytes: float  # of a block, by wavefronts
    walk: Walk
    simulation: Simulation
    listing: Listing
    rounds: list[list[int]]  # of each warp: where in its simulated steps a round begins

    def microseconds(self, device: Device) -> float:
        return self.cycles / device.clock / 1e3


def step_time(plan: Plan, device: Device, inference: bool = False) -> StepTime:
    """The time of a step of a plan's kernel, which is compiled if need be."""
    listing, cubin = kernel_code(plan, device)
    flow = Flow(listing)
    steps = ROUNDS
    walked = walk_plan(flow, cubin, plan, steps, inference)
    header, visits = _header(flow, walked)
    unrolled = round(steps / visits)  # steps in a round of the loop
    if unrolled > 1:
        walked = walk_plan(flow, cubin, plan, steps * unrolled, inference)
    return _time(listing, walked, header, unrolled, plan, device)


def _header(flow: Flow, walked: Walk) -> tuple[int, int]:
    """Where the loop of time steps that was walked begins, and how often warp 0 was there."""
    for loop in flow.barrier_loops:
        visits = sum(step.place == loop.header for step in walked.warps[0])
        if visits > 1:
            return loop.header, visits
    raise ValueError(f"{flow.listing.symbol}: no loop with a barrier was walked")


def _time(
    listing: Listing, walked: Walk, header: int, unrolled: int, plan: Plan, device: Device
) -> StepTime:
    warps, rounds = [], []
    for steps in walked.warps:
        visits = [n for n, step in enumerate(steps) if step.place == header]
        warps.append(steps[visits[1] : visits[-1] + 1])
        rounds.append([visit - visits[1] for visit in visits[1:]])
    blocks = plan.groups * plan.group_blocks
    simulation = Simulation(listing, warps, latencies_of(device, blocks), _STREAMED)
    simulation.run()
    start, end = rounds[0][UNSTEADY], rounds[0][UNSTEADY + COUNTED]
    issued = simulation.warps[0].issued
    spent = critical_path(simulation, end, issued[start].time)
    counted = COUNTED * unrolled
    simulated = unrolled * (len(rounds[0]) - 1)
    accesses = [step.access for steps in warps for step in steps if step.access is not None]
    return StepTime(
        cycles=(issued[end].time - issued[start].time) / counted,
        split={cause: time / counted for cause, time in spent.most_common()},
        instructions=sum(map(len, warps)) / len(warps) / simulated,
        l2_bytes=sum(a.bytes_moved for a in accesses if a.space == "global") / simulated,
        shared_bytes=128 * sum(a.wavefronts for a in accesses) / simulated,
        walk=walked,
        simulation=simulation,
        listing=listing,
        rounds=rounds,
    )


def critical_path(simulation: Simulation, end: int, start_time: int) -> Counter[str]:
    """Cycles by cause, from step `end` of warp 0 back through what released each instruction."""
    spent: Counter[str] = Counter()
    number, step = 0, end
    while True:
        issued = simulation.warps[number].issued[step]
        if issued.time <= start_time:
            return +spent
        before = simulation.warps[issued.warp].issued[issued.step]
        begin = max(before.time, start_time)
        time = issued.time - begin
        held = min(time, round(issued.held))
        if held:
            spent[issued.holder] += held
        if issued.cause == "fixed":
            place = simulation.warps[issued.warp].steps[issued.step].place
            is_mma = simulation.units[place].pipe == "tensor"
            spent["issue"] += min(1, time - held)
            spent["HMMA" if is_mma else "fixed stalls"] += max(0, time - held - 1)
        else:
            spent[issued.cause] += time - held
        number, step = issued.warp, issued.step
