# SPDX-License-Identifier: BSD-3-Clause
"""Latencies and rates that the model of machine code assumes, with their sources.

Sources: W, P and L as in facts.py; S, what ptxas itself keeps to, read from the control codes of
the kernels; E, an estimate of ours, never measured. Cycles of the SM clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from tools.cuda_report import facts
from tools.cuda_report.facts import Device


@dataclass(frozen=True)
class Latencies:
    # Until a result is there.
    l2_load: int = 280  # L: 262 on an A100, 263 on an H800, 273 on an RTX 4090; and address paths
    dram_load: int = 480  # L: 466 on an A100, 479 on an H800, 542 on an RTX 4090
    shared_load: int = 30  # L: 29 to 30
    shuffle: int = 24  # L
    mufu: int = 24  # S: 18 to 24 between a MUFU and its use where the scoreboard is not used
    convert: int = 24  # E: conversions that go through the unit of MUFU
    special_register: int = 30  # E
    constant_load: int = 30  # E: of a constant bank that is cached
    hmma: int = 26  # S: the stalls of chains of HMMA; counted only where one sets a scoreboard
    other: int = 20  # E: all else that sets a scoreboard
    # Until the operands of a store, or of a load's address, have been read.
    operands_read: int = 12  # E
    switched_off: int = 8  # E: of an instruction that no lane executes
    # Synchronisation.
    barrier: int = 20  # E: from the last warp's arrival until the warps go on
    membar: int = 500  # E: MEMBAR.GPU, with stores on their way to L2; never measured
    invalidate_l1: int = 4  # E: CCTL.IVALL, beside other instructions
    # From the slowest warp's store until another SM's polling load returns it: to L2, half a poll
    # on average, and back. E: never measured.
    exchange_hop: int = 500
    # Cycles that a scheduler's pipe is taken by an instruction of a warp; P, by the throughputs of
    # arithmetic instructions.
    fma: float = 1
    imad: float = 2
    alu: float = 2
    half: float = 1
    mufu_pipe: float = 8
    tensor: float = 8  # HMMA.16816, and HMMA.1688 of TF32: facts.py
    memory_pipe: float = 2  # E: to hand an instruction to the SM's memory unit
    uniform: float = 2  # E
    # Bytes a cycle.
    l2_bytes: float = 64  # of an SM
    shared_bytes: float = facts.SHARED_BYTES


def latencies_of(device: Device, blocks: int) -> Latencies:
    """A device's latencies, where `blocks` SMs share the bytes that L2 gives."""
    dram = {8: 466 if device.minor == 0 else 542, 9: 479}.get(device.major, 542)
    l2 = facts.L2_BYTES / facts.L2_MEASURED_SMS * device.sm_count / min(blocks, device.sm_count)
    return Latencies(
        dram_load=dram,
        fma=device.ffma_cycles,
        half=device.ffma_cycles,
        tensor=device.mma_cycles,
        l2_bytes=min(facts.L2_BYTES_SM, l2),
    )
