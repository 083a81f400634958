# SPDX-License-Identifier: BSD-3-Clause
"""FusedLSTM beside the nn.LSTM of equal weights."""

from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from kit.numeric import assert_within_budget
from lstm_fused import FusedLSTM

# The sizes of make_twins.
D, H = 3, 5


def make_twins(dtype: torch.dtype = torch.float64, **options: Any) -> tuple[FusedLSTM, nn.LSTM]:
    """Both modules, each made under the same seed."""
    torch.manual_seed(5)
    theirs = nn.LSTM(D, H, dtype=dtype, **options)
    torch.manual_seed(5)
    return FusedLSTM(D, H, dtype=dtype, **options), theirs


def assert_same(ours: Any, theirs: Any) -> None:
    """Assert equal structure, shapes, strides and dtypes, and values within the budget."""
    if isinstance(theirs, tuple):
        assert isinstance(ours, tuple)
        assert isinstance(ours, PackedSequence) == isinstance(theirs, PackedSequence)
        assert len(ours) == len(theirs)
        for mine, expected in zip(ours, theirs, strict=True):
            assert_same(mine, expected)
    elif theirs is None or not theirs.is_floating_point():
        assert (ours is None) if theirs is None else torch.equal(ours, theirs)
    else:
        assert (ours.dtype, ours.stride()) == (theirs.dtype, theirs.stride())
        assert_within_budget("result", ours, None, theirs, ours.dtype)


def random_hx(module: nn.RNNBase, batch: int | None, dtype: torch.dtype = torch.float64) -> Any:
    blocks = module.num_layers * (2 if module.bidirectional else 1)
    rows = [] if batch is None else [batch]
    return (
        torch.randn(blocks, *rows, module.proj_size or H, dtype=dtype),
        torch.randn(blocks, *rows, H, dtype=dtype),
    )
