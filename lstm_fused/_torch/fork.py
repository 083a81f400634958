# SPDX-License-Identifier: BSD-3-Clause
"""Makes forked children safe.

GNU OpenMP keeps a pool of threads for each thread that has run something in parallel, torch's
operations or ours. They do not survive a fork, but the child's copy of the pool believes in them:
the next parallel operation waits for them for ever. So the thread that forks ends its pool before,
by OpenMP's own call for that (omp_pause_resource_all): parent and child each start another when
they need one, which takes some 0.1 ms, and both keep their number of threads. Where OpenMP lacks
that call, a child of a process with such threads is set to one thread, as torch's DataLoader sets
its workers. A process that has started no pool, whatever Python threads it has, is left as it is.

LSTM_FUSED_FORK_GUARD=0 in the environment, when lstm_fused is imported, turns all of this off.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

_SOFT = 1  # omp_pause_soft: settings, as the number of threads, stay

# Whether the child about to be forked must do with one thread.
_is_limited = False


def _find_pause() -> Callable[[int], int] | None:
    """omp_pause_resource_all of the OpenMP that torch runs on; None if that has none."""
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        try:
            function = ctypes.CDLL(str(folder / name)).omp_pause_resource_all
        except (OSError, AttributeError):
            continue
        function.argtypes, function.restype = [ctypes.c_int], ctypes.c_int
        return function
    return None


_pause = _find_pause()


def _may_have_pool() -> bool:
    """Whether threads are there that are not Python's.

    NOTE: in a process that was forked itself, before lstm_fused could know of it, a pool may be
    left whose threads are gone: to end that one would wait for ever, too.
    """
    try:
        return len(os.listdir("/proc/self/task")) > len(sys._current_frames())
    except OSError:  # no procfs
        return True


def _before_fork() -> None:
    global _is_limited
    _is_limited = False
    if torch.get_num_threads() > 1 and _may_have_pool():
        _is_limited = _pause is None or _pause(_SOFT) != 0


def _after_fork_in_child() -> None:
    if _is_limited:
        torch.set_num_threads(1)


def protect_forked_children() -> None:
    if hasattr(os, "register_at_fork") and os.environ.get("LSTM_FUSED_FORK_GUARD") != "0":
        os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
