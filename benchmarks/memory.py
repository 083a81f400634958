# SPDX-License-Identifier: BSD-3-Clause
"""The most memory that one call needs beyond what was there before it.

On the CPU: the kernel's own high-water mark of the process's resident memory (VmHWM), which is set
back to the present value before the call. It sees every allocation, whoever made it, in whole
pages. On a GPU: torch's allocator keeps the peak.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.base import Refusal


def peak_bytes(run: Callable[[], Any], device: str) -> int:
    """Bytes of the peak of a first call, above what was in use before it.

    Raises:
        Refusal: the system does not tell.
    """
    if device != "cpu":
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        torch.cuda.synchronize()
        del result
        return torch.cuda.max_memory_allocated() - before
    # What earlier calls freed goes back to the system; otherwise this one would use it unseen.
    ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        raise Refusal(f"the peak of resident memory cannot be reset: {error}") from None
    before = _status("VmRSS")
    result = run()
    peak = _status("VmHWM")
    del result
    return max(0, peak - before)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise Refusal(f"/proc/self/status does not tell {name}")
