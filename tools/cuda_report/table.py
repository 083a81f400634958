# SPDX-License-Identifier: BSD-3-Clause
"""The report's text."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence

from tools.cuda_report import bounds
from tools.cuda_report.cubins import Resources, cubin_path, kernel_sources, source_name
from tools.cuda_report.emulation import STEPS, Counts
from tools.cuda_report.facts import DEVICES
from tools.cuda_report.occupancy import blocks_per_sm, occupancy
from tools.cuda_report.sass.decode import disassemble
from tools.cuda_report.sass.flow import Flow
from tools.cuda_report.stepwise import FORMULA
from tools.cuda_report.times import CAUSES, REST, Time

_STEP_KERNELS = ("persistent", "forward_step", "backward_step")


def compose(
    nvcc: str,
    nvdisasm: str,
    resources: Sequence[Resources],
    counts: Sequence[Counts],
    times: Sequence[Time],
) -> str:
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
    release = re.search(r"release [^\n]*", version.stdout)
    parts = [
        "<!-- SPDX-License-Identifier: BSD-3-Clause -->",
        "# The CUDA kernels: estimated, not measured on a GPU",
        f"Written by `make cuda-report`; nvcc {release[0] if release else ''}. "
        "Registers, spills and shared memory are ptxas's; instructions are counted in the machine "
        "code; sectors, wavefronts and bytes are counted by the emulated device of "
        "`tools/cuda_on_cpu`; times come from a model of the machine code.",
        "## Registers, memory, occupancy, machine code of a step",
        "A `!` marks spills or local memory. Dynamic shared memory is the plan's, and depends on "
        "the shape: here the most that any shape of a grid of plans takes on the device. "
        "Occupancy: resident warps, of those that the SM has room for. Loop: instructions in the "
        "loop of time steps, as they stand in SASS: both sides of a branch, inner loops once, cold "
        "blocks behind the kernel's end too. "
        "Stepwise kernels have no such loop: a launch is a step.",
        _resource_table(nvdisasm, resources),
        "## Counted by the emulated device, a time step",
        f"PTX of compute_80 on an A100's facts, in training: the difference between calls of "
        f"{STEPS[1]} and {STEPS[0]} steps, of all blocks together. Instructions are PTX's, of a "
        "thread. Shared bytes are wavefronts × 128. Conflicts: shared-memory wavefronts beyond "
        "those that the bytes need. Sector use: bytes asked for / bytes of the sectors touched. "
        "All global accesses are counted as if they reached L2; in groups the polls of flags are "
        "among them, and their number depends on the order of threads.",
        _count_table(counts) if counts else "Left out of this run.",
        "## Modelled time of a step",
        "Modelled, not measured on a GPU: one direction, dense rows, boost clocks, the product's "
        "own plan. The instructions of a step are found by walking all warps of a block through "
        "the kernel's machine code; they are timed by ptxas's control codes and by assumed "
        "latencies, which stand with their sources in `tools/cuda_report/latencies.py`. Blocks are "
        "taken to run alike; fetching of instructions and traffic of other blocks are left out, so "
        "that times are rather too short. `python -m tools.cuda_report.model --trace` lists what a "
        "warp issues when, and why not before.",
        "Cycles of a step are split by what each instruction on the critical path waited for: "
        "`products` mma.sync; `exchange` a store of another block, and fences; `other warps` the "
        f"scheduler or a pipe taken; `{REST}` constants, operands read, shuffles. KiB are a "
        "block's, a step: sectors of L2, wavefronts of shared memory × 128. Where the grid of the "
        "one-block kernel has more blocks than fit at once, the time is that of the first wave. "
        "For comparison the stepwise kernels' time, by a formula:",
        f"```\n{FORMULA}```",
        _time_table(times) if times else "Left out of this run.",
    ]
    return "\n\n".join(parts) + "\n"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _resource_table(nvdisasm: str, resources: Sequence[Resources]) -> str:
    sources = {source_name(source): source for source in kernel_sources()}
    loops: dict[tuple[str, str], Counter[str]] = {}
    step_sources = (r for r in resources if r.name.startswith(_STEP_KERNELS))
    for source, target in dict.fromkeys((r.source, r.target) for r in step_sources):
        for symbol, listing in disassemble(nvdisasm, cubin_path(sources[source], target)).items():
            loop = Flow(listing).time_loop
            if loop is not None:
                kinds = Counter(listing.instructions[place].base for place in loop.places)
                loops[symbol, target] = kinds
    devices = {device.target: device for device in DEVICES.values()}
    rows = []
    for r in sorted(resources, key=lambda r: (r.name, list(devices).index(r.target))):
        device = devices[r.target]
        threads = bounds.max_threads(r)
        dynamic = bounds.most_dynamic_shared(r, device)
        shared = r.static_shared + dynamic
        blocks = blocks_per_sm(device, threads, r.registers, shared)
        resident = occupancy(device, threads, r.registers, shared)
        kinds = loops.get((r.symbol, r.target), Counter[str]())
        bad = "!" if r.stack or r.spill_stores or r.spill_loads else ""
        rows.append(
            (
                f"`{r.name}`",
                f"{r.target} {device.name}",
                r.registers,
                f"{r.spill_stores}/{r.spill_loads}{bad}",
                f"{r.stack}{bad}",
                r.static_shared,
                dynamic,
                threads,
                blocks,
                f"{resident:.0%}",
                kinds.total() if kinds else "",
                f"{kinds.get('HMMA', 0)}/{kinds.get('FFMA', 0)}" if kinds else "",
                f"{kinds.get('LDS', 0)}/{kinds.get('STS', 0)}" if kinds else "",
                f"{kinds.get('LDG', 0) + kinds.get('LD', 0)}/"
                f"{kinds.get('STG', 0) + kinds.get('ST', 0)}"
                if kinds
                else "",
            )
        )
    head = ["kernel", "target", "registers", "spilled bytes st/ld", "local bytes"]
    head += ["static shared", "dynamic shared", "threads", "blocks/SM", "occupancy"]
    head += ["loop", "HMMA/FFMA", "LDS/STS", "LDG/STG"]
    return _markdown(head, rows)


def _count_table(counts: Sequence[Counts]) -> str:
    rows = []
    for c in counts:
        loads, stores = c.shared_load, c.shared_store
        wavefronts = loads["wavefronts"] + stores["wavefronts"]
        sectors = c.global_load["sectors"] + c.global_store["sectors"]
        rows.append(
            (
                f"`{c.kernel}`",
                c.shape,
                f"{c.blocks} × {c.threads}",
                f"{sum(c.instructions.values()) / (c.blocks * c.threads):.0f}",
                f"{sectors * 32 / 1024:.1f}",
                f"{c.sectors_per_request:.2f}",
                f"{c.sector_use:.0%}",
                f"{wavefronts * 128 / 1024:.1f}",
                f"{c.conflicts:.1%}",
            )
        )
    head = ["kernel", "shape", "blocks × threads", "PTX instructions", "L2 KiB"]
    head += ["sectors/request", "sector use", "shared KiB", "conflicts"]
    return _markdown(head, rows)


def _time_table(times: Iterable[Time]) -> str:
    rows: list[tuple[object, ...]] = []
    for t in times:
        case = t.case
        way = "backward" if case.backward else "inference" if case.inference else "forward"
        start = (f"{case.product} N={case.rows} H={case.hidden}", way, case.device, t.plan)
        if not t.split:
            rows.append((*start, *[""] * (len(CAUSES) + 6), f"{t.stepwise:.2f}"))
            continue
        sizes = (f"{size / 1024:.1f}" for size in (t.l2_bytes, t.shared_bytes))
        split = (f"{cycles:.0f}" for cycles in t.split)
        ends = (f"**{t.microseconds:.2f}**", f"{t.stepwise:.2f}")
        rows.append((*start, t.blocks, *sizes, f"{t.cycles:.0f}", *split, *ends))
    head = ["shape", "pass", "device", "plan", "groups × blocks", "L2 KiB", "shared KiB", "cycles"]
    head += [*CAUSES, REST, "µs/step", "stepwise µs/step"]
    return _markdown(head, rows)
