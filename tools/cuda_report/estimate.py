# SPDX-License-Identifier: BSD-3-Clause
"""The estimate of a step's time. Nothing here was measured; `FORMULA` says what is computed."""

from __future__ import annotations

from dataclasses import dataclass

from tools.cuda_report import facts as f
from tools.cuda_report.facts import Device
from tools.cuda_report.plans import GATES, Plan, Work, operand_bytes, work_of

FORMULA = f"""\
Persistent, in cycles of the SM clock (boost), for one block; all blocks run at once:

    step    = exchange + max(tensor, shared, L2) + latency
    tensor  = warps / {f.SCHEDULERS} x products of a warp x cycles of a product
    shared  = bytes / {f.SHARED_BYTES}
    L2      = bytes / min({f.L2_BYTES_SM}, {f.L2_BYTES} / {f.L2_MEASURED_SMS} x SMs / blocks)
    latency = shared {f.SHARED_LATENCY} + product {f.MMA_LATENCY} (mma.sync) or \
{f.FFMA_LATENCY} (FFMA) + cell {f.CELL_LATENCY} + barriers x {f.BARRIER_LATENCY}
    exchange: one block 0; group 4.5 x {f.L2_LATENCY}: what was written reaches L2, the flag does, \
half a poll goes by, the flag is read, what it publishes is read

`products`: mma.sync of 16 x 8 x 16 (16-bit) or 16 x 8 x 8 (TF32), or FFMA. Where the grid of the
one-block kernel has more blocks than fit at once, the time is that of the first wave.

Stepwise, in microseconds:

    step = 2 x {f.KERNEL_BOUNDARY} + max(bytes of W_hh and of the step's rows \
/ ({f.L2_BYTES} / {f.L2_MEASURED_SMS} x SMs x clock), cycles of its products / {f.GEMM_EFFICIENCY})
"""


@dataclass(frozen=True)
class Estimate:
    tensor: float
    shared: float
    l2: float
    exchange: float
    latency: float
    microseconds: float

    @property
    def bound(self) -> str:
        parts = {"products": self.tensor, "shared": self.shared, "L2": self.l2}
        largest = max(parts, key=lambda name: parts[name])
        return "latency" if self.exchange + self.latency > parts[largest] else largest


def estimate(plan: Plan, device: Device) -> Estimate:
    work = work_of(plan)
    warps = plan.threads // 32
    is_ffma = plan.product == "fp32"
    cycles = device.ffma_cycles if is_ffma else device.mma_cycles
    tensor = warps / f.SCHEDULERS * work.products * cycles
    shared = work.shared_bytes / f.SHARED_BYTES
    blocks = min(plan.groups * plan.group_blocks, device.sm_count)
    chip = f.L2_BYTES / f.L2_MEASURED_SMS * device.sm_count
    l2 = _l2_bytes(work) / min(f.L2_BYTES_SM, chip / blocks)
    exchange = 4.5 * f.L2_LATENCY if plan.group else 0.0
    barriers = 1 if not plan.group and not plan.backward else 3 if not plan.backward else 2
    product = f.FFMA_LATENCY if is_ffma else f.MMA_LATENCY
    latency = f.SHARED_LATENCY + product + f.CELL_LATENCY + barriers * f.BARRIER_LATENCY
    total = exchange + max(tensor, shared, l2) + latency
    return Estimate(tensor, shared, l2, exchange, latency, total / device.clock / 1e3)


def _l2_bytes(work: Work) -> float:
    return work.exchanged_bytes + work.stream_bytes


def stepwise_microseconds(
    product: str, rows: int, hidden: int, backward: bool, device: Device
) -> float:
    size = operand_bytes(product)
    weights = GATES * hidden * hidden * size
    # csrc/cuda/stepwise/cost.cpp counts these bytes too. Forward: pre-activations of 4 bytes, which
    # the recurrent GEMM adds to and the kernel reads; gates; y, and a copy as the next h_prev; c.
    # Backward: gates, their gradients twice, grad_y; two cs, c's gradient, and the product of 4
    # bytes.
    forward = GATES * (3 * 4 + size) + 3 * size + 2 * 4
    streamed = rows * hidden * ((3 * GATES + 1) * size + 6 * 4 if backward else forward)
    chip = f.L2_BYTES / f.L2_MEASURED_SMS * device.sm_count * device.clock * 1e3
    is_ffma = product == "fp32"
    # Multiply-adds of a scheduler in a cycle.
    rate = 32 / device.ffma_cycles if is_ffma else 16 * 8 * 32 / size / device.mma_cycles
    macs = GATES * hidden * hidden * rows
    chip_rate = f.GEMM_EFFICIENCY * f.SCHEDULERS * device.sm_count * device.clock * 1e3 * rate
    return 2 * f.KERNEL_BOUNDARY + max((weights + streamed) / chip, macs / chip_rate)
