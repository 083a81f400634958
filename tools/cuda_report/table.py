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
from tools.cuda_report.estimate import FORMULA, estimate, stepwise_microseconds
from tools.cuda_report.facts import DEVICES
from tools.cuda_report.occupancy import blocks_per_sm, occupancy
from tools.cuda_report.plans import plan_of, work_of
from tools.cuda_report.sass.decode import disassemble
from tools.cuda_report.sass.flow import Flow

# (product, N, H): one block, a group, and the shape of cuDNN's best published figure (H = 768).
SHAPES = (
    *(("bf16", 1, 64), ("bf16", 64, 128), ("bf16", 16, 256), ("bf16", 16, 768)),
    *(("bf16", 64, 512), ("bf16", 64, 1024)),
    *(("tf32", 64, 96), ("tf32", 16, 256), ("tf32", 16, 512), ("tf32", 64, 1024)),
    *(("fp32", 1, 64), ("fp32", 64, 96), ("fp32", 16, 256), ("fp32", 16, 512)),
)
_STEP_KERNELS = ("persistent", "forward_step", "backward_step")


def compose(
    nvcc: str, nvdisasm: str, resources: Sequence[Resources], counts: Sequence[Counts]
) -> str:
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
    release = re.search(r"release [^\n]*", version.stdout)
    parts = [
        "<!-- SPDX-License-Identifier: BSD-3-Clause -->",
        "# The CUDA kernels: estimated, not measured on a GPU",
        f"Written by `make cuda-report`; nvcc {release[0] if release else ''}. "
        "Registers, spills and shared memory are ptxas's; instructions are counted in the machine "
        "code; sectors, wavefronts and bytes are counted by the emulated device of "
        "`tools/cuda_on_cpu`; times come from a formula, given below.",
        "## Registers, memory, occupancy, machine code of a step",
        "A `!` marks spills or local memory. Dynamic shared memory is the plan's, and depends on "
        "the shape: here the most that any shape of a grid of plans takes on the device. "
        "Occupancy: resident warps, of those that the SM has room for. Loop: instructions in the "
        "loop of time steps, as they stand in SASS: both sides of a branch, inner loops once. "
        "Stepwise kernels have no such loop: a launch is a step.",
        _resource_table(nvdisasm, resources),
        "## Counted by the emulated device, a time step",
        f"PTX of compute_80 on an A100's facts, in training: the difference between calls of "
        f"{STEPS[1]} and {STEPS[0]} steps, of all blocks together. Instructions are PTX's, of a "
        "thread. Shared bytes are wavefronts × 128. Conflicts: shared-memory wavefronts beyond "
        "those that the bytes need; `formula's`: the bytes that the estimate below has. Sector "
        "use: bytes asked for / bytes of the sectors touched. "
        "All global accesses are counted as if they reached L2; in groups the polls of flags are "
        "among them, and their number depends on the order of threads.",
        _count_table(counts) if counts else "Left out of this run.",
        "## Estimated time of a step",
        "Estimated, not measured on a GPU. Training, one direction; the plan is the product's own.",
        f"```\n{FORMULA}```",
        "Constants and their sources stand in `tools/cuda_report/facts.py`; clocks are boost "
        "clocks. KiB columns: of a block, a step; exchanged: between blocks through L2; stream: "
        "pre-activations, gates, cells, outputs.",
        _time_table(),
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
                f"{c.formula_shared / 1024:.1f}" if c.formula_shared else "",
                f"{c.conflicts:.1%}",
            )
        )
    head = ["kernel", "shape", "blocks × threads", "PTX instructions", "L2 KiB"]
    head += ["sectors/request", "sector use", "shared KiB", "formula's", "conflicts"]
    return _markdown(head, rows)


def _time_table() -> str:
    rows: list[tuple[object, ...]] = []
    for product, batch, hidden in SHAPES:
        for backward in (False, True):
            for device in DEVICES.values():
                way = "backward" if backward else "forward"
                start = (f"{product} N={batch} H={hidden}", way, device.name)
                plan = plan_of(product, batch, hidden, backward, device)
                stepwise = stepwise_microseconds(product, batch, hidden, backward, device)
                if plan is None:
                    rows.append((*start, "stepwise", *[""] * 8, f"{stepwise:.2f}", ""))
                    continue
                work, time = work_of(plan), estimate(plan, device)
                shape = f"{plan.groups} × {plan.group_blocks}" if plan.group else plan.groups
                cycles = (time.tensor, time.shared, time.l2, time.exchange + time.latency)
                sizes = (work.exchanged_bytes, work.stream_bytes, work.shared_bytes)
                rows.append(
                    (
                        *(*start, "group" if plan.group else "one block", shape),
                        *(f"{size / 1024:.1f}" for size in sizes),
                        *(f"{part:.0f}" for part in cycles),
                        f"**{time.microseconds:.2f}** ({time.bound})",
                        f"{stepwise:.2f}",
                    )
                )
    head = ["shape", "pass", "device", "plan", "groups × blocks", "exchanged KiB", "stream KiB"]
    head += ["shared KiB", "products cycles", "shared cycles", "L2 cycles", "latency cycles"]
    head += ["estimated µs/step (bound)", "stepwise µs/step"]
    return _markdown(head, rows)
