# SPDX-License-Identifier: BSD-3-Clause
"""What a kernel must keep to so that the plan's promise of residency holds on a device."""

from __future__ import annotations

from functools import cache
from itertools import product as product_of

from tools.cuda_report.cubins import Resources
from tools.cuda_report.facts import DEVICES, Device
from tools.cuda_report.occupancy import blocks_per_sm
from tools.cuda_report.plans import (
    CHUNK_BYTES,
    GROUP_THREADS,
    PRODUCTS,
    WARP_UNITS,
    plan_of,
)

ROW_THREADS = 128  # kRowThreads in csrc/cuda/device/row_grid.cuh
# kSumColumns * kSumWarps in csrc/cuda/gradients/weight_gradients.cu and csrc/cuda/options/sums.cu,
# and kNormThreads in csrc/cuda/options/block_sums.cuh.
SUM_THREADS = 256
_SUM_KERNELS = (
    *("partial_sums_kernel", "option_sum_kernel"),
    *("option_norm_forward_kernel", "option_norm_backward_kernel"),
)
# Fewer resident warps than a quarter of an SM hide no latency of memory; the stepwise kernels are
# bound by it.
LEAST_ROW_OCCUPANCY = 0.25
_HIDDEN = (64, 96, 128, 192, 256, 384, 512, 640, 768, 896, 1024, 1280, 1536, 2048)
_ROWS = (1, 8, 16, 32, 64, 128)


def max_threads(kernel: Resources) -> int:
    """Threads of a block at most, as the kernel's __launch_bounds__ has them."""
    if kernel.family.startswith("persistent_group"):
        return GROUP_THREADS
    if kernel.family.startswith("persistent"):
        size = 2 if kernel.arguments[0] in (PRODUCTS["bf16"], PRODUCTS["fp16"]) else 4
        units = int(kernel.arguments[1]) * CHUNK_BYTES // size
        return units // (WARP_UNITS * lane_units(kernel)) * 32
    return SUM_THREADS if kernel.family in _SUM_KERNELS else ROW_THREADS


def lane_units(kernel: Resources) -> int:
    """Units of a lane of a one-block kernel, as csrc/cuda/persistent/layout.h has them."""
    chunks, *flags = kernel.arguments[1:]
    if "option" in kernel.family or flags[0] == "false":
        return 1
    return 2 if kernel.family == "persistent_backward_kernel" or int(chunks) == 4 else 1


@cache
def planned_shared(device_name: str) -> dict[str, int]:
    """The most dynamic shared memory that a grid of plans gives each kernel that has any."""
    most: dict[str, int] = {}
    for product in PRODUCTS:
        for hidden in _HIDDEN:
            for rows in _ROWS:
                for backward, options in product_of((False, True), (False, True)):
                    plan = plan_of(product, rows, hidden, backward, DEVICES[device_name], options)
                    if plan is not None and plan.dynamic_shared:
                        most[plan.kernel] = max(most.get(plan.kernel, 0), plan.dynamic_shared)
    return most


def most_dynamic_shared(kernel: Resources, device: Device) -> int:
    return planned_shared(device.name).get(kernel.name, 0)


def find_faults(kernel: Resources, device: Device) -> list[str]:
    """What breaks the plan; none if all is well."""
    name = f"{kernel.name} on sm_{kernel.target}"
    faults = []
    if kernel.spill_stores or kernel.spill_loads:
        faults.append(
            f"{name} spills: {kernel.spill_stores} bytes stored, {kernel.spill_loads} loaded"
        )
    if kernel.stack:
        faults.append(f"{name} has {kernel.stack} bytes of local memory")
    threads = max_threads(kernel)
    shared = kernel.static_shared + most_dynamic_shared(kernel, device)
    blocks = blocks_per_sm(device, threads, kernel.registers, shared)
    if blocks < 1:
        faults.append(
            f"{name} does not fit an SM of {device.name}: {threads} threads of "
            f"{kernel.registers} registers, {shared} bytes of shared memory"
        )
    if kernel.family.startswith("persistent_group") and kernel.static_shared:
        faults.append(f"{name}: {kernel.static_shared} bytes of static shared memory, plans know 0")
    if not kernel.family.startswith("persistent"):
        resident = blocks * threads / device.max_threads_per_sm
        if resident < LEAST_ROW_OCCUPANCY:
            faults.append(f"{name}: occupancy {resident:.0%}, wanted {LEAST_ROW_OCCUPANCY:.0%}")
    return faults
