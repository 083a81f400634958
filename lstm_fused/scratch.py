# SPDX-License-Identifier: BSD-3-Clause
"""The memory that the CPU kernels keep between calls."""

from __future__ import annotations

from lstm_fused._ops import native


def release_scratch() -> int:
    """Gives the memory that the CPU kernels keep between calls back to the system.

    Each thread that has run a layer on the CPU, one of Python's or of torch's pool, keeps its last
    large buffers (packed weights, states, sums), 32 MiB at most, until it ends: fresh memory costs
    page faults, which take longer than most small calls. After this the next call of each thread
    allocates anew and keeps what it used.

    May be called at any time: calls that run meanwhile on other threads keep what they use. Models,
    tensors and saved states are not touched.

    Returns:
        The number of bytes that were kept; 0 where the compiled kernels did not load.
    """
    if native.compiled is None:
        return 0
    released: int = native.compiled.release_scratch()
    return released
