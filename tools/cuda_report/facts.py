# SPDX-License-Identifier: BSD-3-Clause
"""Facts of devices, and constants of all, with their sources; latencies stand in latencies.py.

Sources: W, NVIDIA's white paper of the architecture (peak rates, clocks, sizes); P, CUDA's
programming guide and cuda_occupancy.h; L, Luo et al., "Benchmarking and dissecting the NVIDIA
Hopper GPU architecture via microbenchmarking"; E, an estimate of ours, never measured.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    name: str
    target: str  # of cubins.TARGETS
    major: int
    minor: int
    sm_count: int
    shared_per_sm: int
    shared_per_block: int
    max_threads_per_sm: int
    max_blocks_per_sm: int
    l2_bytes: int
    clock: float  # GHz, boost
    # Cycles of a scheduler for an mma.sync of 16 x 8 x 16 halves (of 16 x 8 x 8 in TF32: the same)
    # with float sums. W, from peak rates; Hopper's mma.sync reaches 63 % of the peak (L), and
    # Blackwell's data-centre chips are taken to be no faster by this instruction (E).
    mma_cycles: float
    ffma_cycles: float  # of a scheduler, for a warp's FFMA (W)
    registers_per_sm: int = 65536

    @property
    def facts(self) -> dict[str, int]:
        """The facts, as csrc/cuda/device_facts.h names them."""
        return {
            **{"major": self.major, "minor": self.minor, "sm_count": self.sm_count},
            **{"shared_per_sm": self.shared_per_sm, "shared_per_block": self.shared_per_block},
            **{"registers_per_sm": self.registers_per_sm, "l2_bytes": self.l2_bytes},
            "max_threads_per_sm": self.max_threads_per_sm,
        }


_KIB, _MIB = 1 << 10, 1 << 20
_LARGE = (228 * _KIB, 227 * _KIB, 2048)  # shared memory of an SM and of a block, threads
_SMALL = (100 * _KIB, 99 * _KIB, 1536)
_A100 = (164 * _KIB, 163 * _KIB, 2048)

DEVICES = {
    device.name: device
    for device in (
        Device("A100", "80", 8, 0, 108, *_A100, 32, 40 * _MIB, 1.41, 8, 2),
        Device("RTX 3090", "86", 8, 6, 82, *_SMALL, 16, 6 * _MIB, 1.70, 32, 1),
        Device("RTX 4090", "89", 8, 9, 128, *_SMALL, 24, 72 * _MIB, 2.52, 32, 1),
        Device("H100", "90", 9, 0, 132, *_LARGE, 32, 50 * _MIB, 1.83, 4 / 0.63, 1),
        Device("B200", "100", 10, 0, 148, *_LARGE, 32, 126 * _MIB, 1.85, 4 / 0.63, 1),
        Device("RTX 5090", "120", 12, 0, 170, *_SMALL, 24, 96 * _MIB, 2.41, 32, 1),
    )
}

# Bytes a cycle.
SHARED_BYTES = 128  # of an SM (P: 32 banks of 4 bytes)
L2_BYTES = 3942  # of an H800 of 132 SMs (L); taken in proportion to the SMs of others (E)
L2_BYTES_SM = 64  # at most, of an SM (P)
L2_MEASURED_SMS = 132
# Microseconds between kernels of a captured graph: 0.9 to 1.1 were measured by others.
KERNEL_BOUNDARY = 1.0
GEMM_EFFICIENCY = 0.5  # E: of cuBLAS with few rows
# Registers are given to a warp by 256, shared memory to a block by 128 bytes (P).
REGISTER_UNIT, SHARED_UNIT, RESERVED_SHARED = 256, 128, 1024
SCHEDULERS = 4
