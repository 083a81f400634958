# SPDX-License-Identifier: BSD-3-Clause
"""Which unit of the SM executes an instruction, for how long, and what a wait for it is called."""

from __future__ import annotations

from dataclasses import dataclass

from tools.cuda_report.latencies import Latencies
from tools.cuda_report.sass.decode import Instruction
from tools.cuda_report.sass.memory import SPACES, STORES

_MMA = {"HMMA", "IMMA", "QMMA", "OMMA", "BMMA", "DMMA"}
_FMA = {"FFMA", "FADD", "FMUL", "FFMA2", "FADD2", "FMUL2", "FSWZADD"}
_HALF = {"HFMA2", "HADD2", "HMUL2", "HFMA2_MMA", "HMNMX2", "HSETP2"}
_MUFU = {"MUFU"}
_CONVERT = {"F2F", "I2F", "F2I", "FRND", "POPC", "FLO", "BREV"}
_SHUFFLE = {"SHFL", "MATCH"}
_CONTROL = {
    *("BRA", "BSSY", "BSYNC", "BREAK", "BAR", "WARPSYNC", "NOP", "YIELD", "CALL", "RET", "EXIT"),
    *("ERRBAR", "CGAERRBAR", "DEPBAR", "MEMBAR", "CCTL", "NANOSLEEP", "BMOV"),
}
_SPECIAL = {"S2R", "S2UR", "CS2R"}
_CONSTANT = {"LDC", "LDCU", "ULDC"}


@dataclass(frozen=True)
class Unit:
    pipe: str
    cycles: float  # of the pipe
    latency: float  # until a scoreboard is released
    cause: str  # what a wait for it is called
    in_memory_unit: bool = False


def unit_of(i: Instruction, latencies: Latencies) -> Unit:
    base, x = i.base, latencies
    if base in SPACES:
        latency, cause = x.l2_load, "L2 load"
        if SPACES[base] == "shared":
            latency, cause = x.shared_load, "shared memory"
        elif base in STORES:
            latency, cause = x.other, "store"
        return Unit("memory", x.memory_pipe, latency, cause, True)
    if base in _SHUFFLE:
        return Unit("memory", x.memory_pipe, x.shuffle, "SHFL", True)
    if base in _MMA:
        return Unit("tensor", x.tensor * _mma_share(i), x.hmma, "HMMA")
    if base in _MUFU:
        return Unit("MUFU", x.mufu_pipe, x.mufu, "MUFU")
    if base in _CONVERT:
        return Unit("MUFU", x.mufu_pipe, x.convert, "conversion")
    if base in _FMA:
        return Unit("FMA", x.fma, x.other, "FMA")
    if base in _HALF:
        return Unit("half", x.half, x.other, "half")
    if base == "IMAD":
        return Unit("IMAD", x.imad, x.other, "IMAD")
    if base in _SPECIAL:
        return Unit("control", 1, x.special_register, "special register")
    if base in _CONSTANT:
        return Unit("uniform", x.uniform, x.constant_load, "constant")
    if base in _CONTROL:
        latency = x.invalidate_l1 if base == "CCTL" else x.other
        return Unit("control", 1, latency, base)
    if base.startswith("U") or base == "R2UR":
        return Unit("uniform", x.uniform, x.other, "uniform")
    return Unit("ALU", x.alu, x.other, "ALU")


def _mma_share(i: Instruction) -> float:
    """Work of an MMA, of that of 16 x 8 x 16 halves."""
    shapes = {"16816": 1.0, "1688": 1.0 if "TF32" in i.modifiers else 0.5, "16832": 2.0}
    return next((shapes[m] for m in i.modifiers if m in shapes), 1.0)
