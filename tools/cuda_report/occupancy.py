# SPDX-License-Identifier: BSD-3-Clause
"""Blocks of a kernel that are resident on one SM, as cuda_occupancy.h computes them."""

from __future__ import annotations

from tools.cuda_report.facts import (
    REGISTER_UNIT,
    RESERVED_SHARED,
    SCHEDULERS,
    SHARED_UNIT,
    Device,
)

WARP = 32


def blocks_per_sm(device: Device, threads: int, registers: int, shared: int) -> int:
    """`registers` of a thread; `shared`: bytes of a block, static and dynamic."""
    if shared > device.shared_per_block:
        return 0
    warps = -(-threads // WARP)
    warp_registers = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
    # Each scheduler has a quarter of the registers, and takes whole warps.
    resident_warps = device.registers_per_sm // SCHEDULERS // max(warp_registers, 1) * SCHEDULERS
    block_shared = -(-(shared + RESERVED_SHARED) // SHARED_UNIT) * SHARED_UNIT
    return min(
        device.max_blocks_per_sm,
        device.max_threads_per_sm // (warps * WARP),
        resident_warps // warps,
        device.shared_per_sm // block_shared,
    )


def occupancy(device: Device, threads: int, registers: int, shared: int) -> float:
    """Resident warps, over the warps that the SM has room for."""
    blocks = blocks_per_sm(device, threads, registers, shared)
    return blocks * threads / device.max_threads_per_sm
