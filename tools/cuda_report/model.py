# SPDX-License-Identifier: BSD-3-Clause
"""The time of a step of a persistent kernel on a device, modelled from the machine code that nvcc
makes of this tree; no GPU. What is assumed stands in latencies.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tools.cuda_report.facts import DEVICES, Device
from tools.cuda_report.plans import PRODUCTS, Plan, plan_of
from tools.cuda_report.step_time import UNSTEADY, StepTime, step_time


def describe(result: StepTime, plan: Plan, device: Device, inference: bool) -> str:
    kind = "backward" if plan.backward else "forward, inference" if inference else "forward"
    lines = [
        f"{plan.kernel} on sm_{device.target} ({device.name}), "
        f"N={plan.rows} H={plan.hidden}, {kind}",
        plan.text,
        f"{result.cycles:.0f} cycles a step, {result.microseconds(device):.2f} us at "
        f"{device.clock} GHz; {result.instructions:.0f} instructions of a warp; "
        f"{result.l2_bytes / 1024:.1f} KiB of L2 and {result.shared_bytes / 1024:.1f} KiB of "
        "shared memory a block",
        "critical path, cycles a step:",
    ]
    lines += [
        f"  {cycles:7.0f}  {cause}" for cause, cycles in result.split.items() if cycles >= 0.5
    ]
    lines.append("branches on what is not known:")
    for place, (decision, origin) in sorted(result.walk.decisions.items()):
        i = result.listing.instructions[place]
        way = "taken" if decision.taken else "not taken"
        lines.append(f"  {i.address:#07x} {i.text}: {way}, {decision.rule} ({origin})")
    return "\n".join(lines)


def trace(result: StepTime, number: int) -> str:
    """What a warp issues in a round of the loop: cycle, cycles since its last instruction, address,
    instruction, what it waited for last, and what held it up then."""
    warp = result.simulation.warps[number]
    first, last = result.rounds[number][UNSTEADY : UNSTEADY + 2]
    lines = []
    for n in range(first, last):
        issued, step = warp.issued[n], warp.steps[n]
        i = result.listing.instructions[step.place]
        notes = [] if step.executes else ["off"]
        if issued.cause != "fixed":
            by = result.simulation.warps[issued.warp].steps[issued.step].place
            address = result.listing.instructions[by].address
            notes.append(f"{issued.cause}: warp {issued.warp} at {address:#x}")
        if issued.held >= 1:
            notes.append(f"{issued.holder}: {issued.held:.0f}")
        cycle, wait = issued.time - warp.issued[first].time, issued.time - warp.issued[n - 1].time
        lines.append(f"{cycle:6d} {wait:5d}  {i.address:#07x} {i.text:58} {'; '.join(notes)}")
    return "\n".join(line.rstrip() for line in lines)


def device_of(arch: str) -> Device:
    found = [d for d in DEVICES.values() if d.target.rstrip("af") == arch.rstrip("af")]
    if not found:
        wanted = ", ".join(d.target.rstrip("af") for d in DEVICES.values())
        raise SystemExit(f"--arch: got {arch}, wanted one of {wanted}")
    return found[0]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.cuda_report.model", description=__doc__)
    parser.add_argument("--arch", default="90", help="compute capability: 80 … 120 (default 90)")
    parser.add_argument("--product", required=True, choices=[*PRODUCTS, "f16", "f32"])
    parser.add_argument("--rows", type=int, required=True, metavar="N")
    parser.add_argument("--hidden", type=int, required=True, metavar="H")
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--inference", action="store_true", help="save nothing for a backward")
    parser.add_argument(
        *("--trace",), type=int, nargs="?", const=0, metavar="WARP", help="list what it issues"
    )
    options = parser.parse_args(arguments)
    product = {"f16": "fp16", "f32": "fp32"}.get(options.product, options.product)
    device = device_of(options.arch)
    plan = plan_of(product, options.rows, options.hidden, options.backward, device)
    if plan is None:
        print("this shape is run stepwise: there is no loop of time steps", file=sys.stderr)
        return 1
    result = step_time(plan, device, options.inference)
    print(describe(result, plan, device, options.inference))
    if options.trace is not None:
        print(trace(result, options.trace))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
