# SPDX-License-Identifier: BSD-3-Clause
"""The ten cases that reports begin with and that the history follows."""

from __future__ import annotations

from benchmarks.site import HEADLINES as PICTURED
from benchmarks.site import Bar

HEADLINES = (
    *PICTURED,
    Bar("lowp", "T=100 N=32 D=128 H=256 bfloat16 training", "training in bfloat16, 32 rows"),
)
