# SPDX-License-Identifier: BSD-3-Clause
"""Makes forked children safe.

OpenMP's threads do not survive a fork, but the child's copy of the pool believes in them: the next
parallel operation, torch's or ours, waits for them for ever. torch's DataLoader therefore sets its
workers to one thread; this does the same in every child forked from a process that had threads.
"""

from __future__ import annotations

import os

import torch

_had_threads = False


def _before_fork() -> None:
    global _had_threads
    try:
        _had_threads = len(os.listdir("/proc/self/task")) > 1
    except OSError:  # no procfs
        _had_threads = True


def _after_fork_in_child() -> None:
    if _had_threads:
        torch.set_num_threads(1)


def protect_forked_children() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
