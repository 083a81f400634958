# SPDX-License-Identifier: BSD-3-Clause
"""The time of a step, from the machine code: ``python -m tools.cuda_report.model --help``."""

from __future__ import annotations

import argparse
import struct
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tools.cuda_report.arguments import (
    MAX_DIRECTIONS,
    Arguments,
    make_arguments,
    parameter_place,
)
from tools.cuda_report.cubins import SOURCES, compile_all, cubin_path
from tools.cuda_report.facts import DEVICES, Device
from tools.cuda_report.latencies import latencies_of
from tools.cuda_report.pipeline import Simulation
from tools.cuda_report.plans import (
    CHUNK_BYTES,
    GROUP_WARPS,
    PRODUCTS,
    WARP_UNITS,
    Plan,
    operand_bytes,
    plan_of,
)
from tools.cuda_report.sass.decode import Listing, disassemble, find_nvdisasm
from tools.cuda_report.sass.flow import Flow
from tools.cuda_report.sass.memory import Memory
from tools.cuda_report.sass.walk import Launch, Walk, walk
from tools.cuda_report.sass.warp import Constants
from tools.nvcc import find_nvcc

STEPS = 12  # of a walk
_FIRST, _COUNTED = 4, 6  # steps before the steady state, and of it
_FILES = {"bf16": "bf16", "fp16": "f16", "tf32": "tf32", "fp32": "f32"}


@dataclass
class StepTime:
    """A step in the steady state."""

    cycles: float
    split: dict[str, float]  # cycles on the critical path, by cause
    instructions: float  # of a warp, on average
    walk: Walk
    simulation: Simulation
    listing: Listing
    window: tuple[int, int]  # of warp 0's steps


def model(plan: Plan, device: Device, inference: bool = False) -> StepTime:
    """The time of a step of a plan's kernel, compiled from this tree."""
    listing, cubin = kernel_listing(plan, device)
    arguments = plan_arguments(plan, inference)
    constants = launch_constants(plan, device, arguments, cubin, listing.symbol)
    grid = (plan.group_blocks, plan.groups, 1) if plan.group else (plan.groups, 1, 1)
    flow = Flow(listing)
    contents = {"lengths": STEPS}
    walked = walk(listing, constants, Launch(plan.threads, grid), Memory(arguments, contents), flow)
    return time_walk(listing, flow, walked, plan, device)


def time_walk(listing: Listing, flow: Flow, walked: Walk, plan: Plan, device: Device) -> StepTime:
    header, unrolled = _header(flow, walked)
    first = _FIRST // unrolled
    warps = []
    for steps in walked.warps:
        visits = [n for n, step in enumerate(steps) if step.place == header]
        warps.append(steps[visits[1] : visits[-1] + 1])
    blocks = plan.groups * plan.group_blocks
    streamed = {"preactivations", "gates", "cells", "grad_y"}
    in_dram = frozenset(f"direction[0].{name}" for name in streamed)
    simulation = Simulation(listing, warps, latencies_of(device, blocks), in_dram)
    simulation.run()
    visits = [n for n, step in enumerate(warps[0]) if step.place == header]
    start, end = visits[first], visits[first + _COUNTED // unrolled]
    issued = simulation.warps[0].issued
    cycles = (issued[end].time - issued[start].time) / _COUNTED
    split = {
        cause: time / _COUNTED
        for cause, time in critical_path(simulation, end, issued[start].time).items()
    }
    count = sum(len(steps) for steps in warps) / len(warps) / (len(visits) - 1) / unrolled
    return StepTime(cycles, split, count, walked, simulation, listing, (start, end))


def _header(flow: Flow, walked: Walk) -> tuple[int, int]:
    """Where the loop of time steps that was walked begins, and how many steps a round of it has."""
    for loop in flow.barrier_loops:
        visits = sum(step.place == loop.header for step in walked.warps[0])
        if visits > 2:
            unrolled = max(1, round(STEPS / (visits + 1)))
            return loop.header, unrolled
    raise ValueError(f"{flow.listing.symbol}: no loop with a barrier was walked more than twice")


def critical_path(simulation: Simulation, end: int, start_time: int) -> Counter[str]:
    """Cycles by cause, from step `end` of warp 0 back through what released each instruction."""
    spent: Counter[str] = Counter()
    number, step = 0, end
    while True:
        issued = simulation.warps[number].issued[step]
        if issued.time <= start_time:
            return spent
        before = simulation.warps[issued.warp].issued[issued.step]
        begin = max(before.time, start_time)
        time = issued.time - begin
        held = min(time, issued.held)
        spent[issued.holder] += held
        if issued.cause == "fixed":
            place = simulation.warps[issued.warp].steps[issued.step].place
            is_mma = simulation.units[place].pipe == "tensor"
            spent["issue"] += 1
            spent["HMMA" if is_mma else "fixed stalls"] += time - held - 1
        else:
            spent[issued.cause] += time - held
        if begin == start_time:
            return spent
        number, step = issued.warp, issued.step


def plan_arguments(plan: Plan, inference: bool) -> Arguments:
    """The arguments of a call without lengths, resets and what is seldom asked for."""
    splits = GROUP_WARPS * WARP_UNITS // plan.units if plan.group else 1
    chunks = -(-plan.hidden * operand_bytes(plan.product) // CHUNK_BYTES)
    output_tiles = -(-plan.hidden // (2 * WARP_UNITS))
    values: dict[str, int | None] = {
        **{"steps": STEPS, "batch": plan.rows, "hidden_size": plan.hidden, "directions": 1},
        **{"lengths": 0, "reset_mask": 0, "tiles": plan.group_tiles},
        **{"k_splits": splits, "warp_chunks": -(-chunks // splits)},
        "warp_output_tiles": -(-output_tiles // GROUP_WARPS),
    }
    absent = ["w_hr", "cell_states", "grad_cell_states", "grad_output", "grad_h_n", "grad_c_n"]
    absent += ["gates", "cells"] if inference else []
    values |= {f"direction[{i}].{name}": 0 for i in range(MAX_DIRECTIONS) for name in absent}
    return make_arguments(values, plan.backward, plan.group)


def launch_constants(
    plan: Plan, device: Device, arguments: Arguments, cubin: Path, symbol: str
) -> Constants:
    """Constant bank 0: sizes of the launch, and the parameters."""
    place, size = parameter_place(cubin, symbol)
    if size != len(arguments.data):
        raise ValueError(
            f"{symbol}: its parameters have {size} bytes, those of the headers {len(arguments.data)}"
        )
    data, known = bytearray(place) + arguments.data, bytearray(place) + arguments.known
    grid = (plan.group_blocks, plan.groups) if plan.group else (plan.groups, 1)
    sizes = (plan.threads, 1, 1), (*grid, 1)
    places = (0x360, 0x370) if device.major >= 10 else (0, 12)
    for start, words in zip(places, sizes, strict=True):
        data[start : start + 12] = struct.pack("<3I", *words)
        known[start : start + 12] = b"\1" * 12
    return Constants(bytes(data), bytes(known))


def kernel_listing(plan: Plan, device: Device) -> tuple[Listing, Path]:
    """The machine code of a plan's kernel for a device."""
    nvcc, nvdisasm = find_nvcc(), find_nvdisasm()
    if nvcc is None or nvdisasm is None:
        raise RuntimeError("the model needs nvcc, and nvdisasm of nvidia-cuda-nvdisasm")
    way = "backward" if plan.backward else "forward"
    source = SOURCES / "persistent" / f"{way}_{_FILES[plan.product]}.cu"
    resources = compile_all(nvcc, [source], [device.target])
    found = [r for r in resources if r.name == plan.kernel]
    if len(found) != 1:
        raise ValueError(f"{plan.kernel}: not among {sorted(r.name for r in resources)}")
    cubin = cubin_path(source, device.target)
    return _listings(nvdisasm, cubin, cubin.stat().st_mtime_ns)[found[0].symbol], cubin


@cache
def _listings(nvdisasm: str, cubin: Path, _time: int) -> dict[str, Listing]:
    return disassemble(nvdisasm, cubin)


def describe(result: StepTime, plan: Plan, device: Device, inference: bool) -> str:
    microseconds = result.cycles / device.clock / 1e3
    kind = "backward" if plan.backward else "forward, inference" if inference else "forward"
    lines = [
        f"{plan.kernel} on sm_{device.target} ({device.name}), N={plan.rows} H={plan.hidden}, {kind}",
        plan.text,
        f"{result.cycles:.0f} cycles a step, {microseconds:.2f} us at {device.clock} GHz; "
        f"{result.instructions:.0f} instructions of a warp",
        "critical path, cycles a step:",
    ]
    for cause, cycles in sorted(result.split.items(), key=lambda item: -item[1]):
        if cycles >= 0.5:
            lines.append(f"  {cycles:7.0f}  {cause}")
    lines.append("branches on what is not known:")
    for place, (decision, origin) in sorted(result.walk.decisions.items()):
        i = result.listing.instructions[place]
        way = "taken" if decision.taken else "not taken"
        lines.append(f"  {i.address:#07x} {i.text}: {way}, {decision.rule} ({origin})")
    return "\n".join(lines)


def trace(result: StepTime, number: int, steps: int = 1) -> str:
    """A warp's instructions in one step: cycle, wait, cause, what released it."""
    warp = result.simulation.warps[number]
    header = result.listing.instructions[result.simulation.warps[0].steps[result.window[0]].place]
    visits = [n for n, s in enumerate(warp.steps) if s.place * 16 == header.address]
    first = visits[_FIRST]
    last = visits[_FIRST + steps]
    start = warp.issued[first].time
    lines = []
    for n in range(first, last):
        issued, step = warp.issued[n], warp.steps[n]
        i = result.listing.instructions[step.place]
        wait = issued.time - warp.issued[n - 1].time
        by = result.simulation.warps[issued.warp].steps[issued.step].place * 16
        cause = "" if issued.cause == "fixed" else f"{issued.cause} (warp {issued.warp}, {by:#x})"
        cause += f" {issued.holder} {issued.held:.0f}" if issued.held >= 1 else ""
        off = "" if step.executes else "  [off]"
        lines.append(
            f"{issued.time - start:6d} {wait:5d}  {i.address:#07x} {i.text:58}{off} {cause}"
        )
    return "\n".join(lines)


def _device(arch: str) -> Device:
    found = [d for d in DEVICES.values() if d.target.rstrip("af") == arch.rstrip("af")]
    if not found:
        raise SystemExit(
            f"--arch: got {arch}, wanted one of {[d.target for d in DEVICES.values()]}"
        )
    return found[0]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.cuda_report.model", description=__doc__)
    parser.add_argument("--arch", default="90")
    parser.add_argument("--product", required=True, choices=[*PRODUCTS, "f16", "f32"])
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--inference", action="store_true")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--hidden", type=int, required=True)
    parser.add_argument("--trace", type=int, metavar="WARP", nargs="?", const=0)
    options = parser.parse_args(arguments)
    product = {"f16": "fp16", "f32": "fp32"}.get(options.product, options.product)
    device = _device(options.arch)
    plan = plan_of(product, options.rows, options.hidden, options.backward, device)
    if plan is None:
        print("this shape is run stepwise: there is no loop of time steps", file=sys.stderr)
        return 1
    result = model(plan, device, options.inference)
    print(describe(result, plan, device, options.inference))
    if options.trace is not None:
        print(trace(result, options.trace))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
