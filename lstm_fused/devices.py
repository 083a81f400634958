# SPDX-License-Identifier: BSD-3-Clause
"""Whether CUDA kernels that were launched have done their work."""

from __future__ import annotations

import torch

from lstm_fused._ops import native


def check_cuda(device: torch.device | str | int | None = None) -> None:
    """Waits for a CUDA device, and raises where kernels of this package have given up there.

    Blocks of a CUDA kernel that wait for each other do so for 10 seconds at most
    (``LSTM_FUSED_CUDA_WAIT_SECONDS``). Beyond that the kernel ends, its outputs are NaN from the
    step on at which it happened, and later calls on the device take other kernels. Since a call
    returns before its kernels have run, the error is raised by the next call on that device, or
    here: after the last call whose results matter, before they are saved, or in search of a NaN.

    Args:
        device: the device; None: torch's current CUDA device. Of another kind there is nothing to
            wait for.

    Raises:
        RuntimeError: blocks have given up; it names the launch, the kernel, the group, the block
            and the step. Each failure is told once, here or by a call.

    Without the CUDA kernels there is nothing to wait for, and nothing happens.
    """
    if native.compiled_cuda is None:
        return
    wanted = torch.device("cuda" if device is None else device)
    if wanted.type != "cuda":
        return
    index = torch.cuda.current_device() if wanted.index is None else wanted.index
    torch.cuda.synchronize(index)
    native.compiled_cuda.check_wait_failures(index)
