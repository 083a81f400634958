# SPDX-License-Identifier: BSD-3-Clause
"""What the machine code of the persistent kernels must not have in its loops of time steps.

Some rules hold for all code of these loops; others, of what blocks exchange and of how loads follow
each other, for the way that a walk (walk.py) takes through a step.
"""

from __future__ import annotations

from collections.abc import Sequence

from tools.cuda_report.exchange import find_exchange
from tools.cuda_report.sass.decode import Instruction, Listing
from tools.cuda_report.sass.flow import Flow
from tools.cuda_report.sass.memory import LOADS, STORES, access_bytes
from tools.cuda_report.sass.operands import ZERO_REGISTER
from tools.cuda_report.sass.walk import Step, Walk
from tools.cuda_report.sass.warp import values


def lint_loops(flow: Flow) -> list[str]:
    """Faults in the code of all loops with a barrier of the block."""
    faults = []
    instructions = flow.listing.instructions
    for loop in flow.barrier_loops:
        for place in sorted(loop.places):
            fault = _fault_of(instructions[place])
            if fault:
                faults.append(_say(fault, instructions[place]))
    return faults


def _fault_of(i: Instruction) -> str | None:
    # NOTE: __cuda_sm70_warpsync and its like bring a warp together that has come apart; behind a
    # BRA.DIV, which a warp that is together does not take.
    if i.base == "CALL" and not i.is_jump and "sync" not in (i.label or ""):
        return "calls a function, as the slow path of a division"
    if i.base in ("LDL", "STL"):
        return "uses local memory"
    # NOTE: an array that the kernel does not write may share its memory with one that it does.
    if i.base in LOADS and "CONSTANT" in i.modifiers:
        return "loads as constant what may be written"
    return None


def lint_steps(flow: Flow, walked: Walk) -> list[str]:
    """Faults in what the warps of a block issue in loops with a barrier."""
    faults: dict[str, None] = {}
    listing = flow.listing
    places = frozenset[int]().union(*(loop.places for loop in flow.barrier_loops))
    warps = [[step for step in steps if step.place in places] for steps in walked.warps]
    exchange = find_exchange(listing, warps)
    for accesses, kind in ((exchange.loads, "loads"), (exchange.published_by, "stores")):
        for warp, n in accesses:
            i = listing.instructions[warps[warp][n].place]
            if "STRONG" not in i.modifiers:
                faults[_say(f"{kind} what blocks exchange by no strong access", i)] = None
    for steps in warps:
        for step in steps:
            i = listing.instructions[step.place]
            if i.base == "MEMBAR" and step.executes:
                faults[_say("waits for a fence", i)] = None
        for i in chained_loads(listing, steps):
            faults[_say("loads to shared memory only after an earlier load's data", i)] = None
    return list(faults)


def chained_loads(listing: Listing, steps: Sequence[Step]) -> list[Instruction]:
    """Loads for shared memory, of a warp, that were issued after data of an earlier such load had
    been stored there, with no barrier of the block in between: a second round trip to L2."""
    loaded: dict[int, int] = {}  # by register: the step that loaded it
    stored = -1  # the last step that stored loaded data since the barrier
    behind: dict[int, int] = {}  # by the step of a load: the value of `stored` at that time
    found: dict[int, Instruction] = {}
    for n, step in enumerate(steps):
        i = listing.instructions[step.place]
        if i.base == "BAR":
            loaded, stored, behind = {}, -1, {}
        if step.access is None:
            continue
        if i.base in LOADS and step.access.space == "global":
            behind[n] = stored
            first = values(i.operands)[0].index
            loaded.update({r: n for r in range(first, first + max(1, access_bytes(i) // 4))})
        elif i.base in STORES and step.access.space == "shared":
            source = values(i.operands)[-1]
            origin = loaded.get(source.index) if source.index != ZERO_REGISTER else None
            if origin is not None:
                if behind[origin] >= 0:
                    load = listing.instructions[steps[origin].place]
                    found[load.address] = load
                stored = n
    return list(found.values())


def _say(fault: str, i: Instruction) -> str:
    return f"{fault}: {i.address:#x} {i.text}"
