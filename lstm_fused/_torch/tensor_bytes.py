# SPDX-License-Identifier: BSD-3-Clause
"""Bytes of tensors without NumPy, which torch runs without and so must this package."""

from __future__ import annotations

import ctypes

from torch import Tensor


def tensor_bytes(tensor: Tensor) -> bytes:
    """The elements of a tensor, row-major, as they lie in memory."""
    held = tensor.detach().cpu().contiguous()
    return ctypes.string_at(held.data_ptr(), held.nbytes)
