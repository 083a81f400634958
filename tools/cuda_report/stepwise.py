# SPDX-License-Identifier: BSD-3-Clause
"""The estimate of a stepwise step's time, for comparison: `FORMULA` says what is computed."""

from __future__ import annotations

from tools.cuda_report import facts as f
from tools.cuda_report.facts import Device
from tools.cuda_report.plans import GATES, operand_bytes

FORMULA = f"""\
step = 2 x {f.KERNEL_BOUNDARY} us + max(bytes of W_hh and of the step's rows \
/ ({f.L2_BYTES} / {f.L2_MEASURED_SMS} x SMs x clock), cycles of its products / {f.GEMM_EFFICIENCY})
"""


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
