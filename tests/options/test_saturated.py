# SPDX-License-Identifier: BSD-3-Clause
"""Saturated gates with options of the cell: no denormal numbers, whatever the caller's setting."""

import pytest
import torch
from kit.settings import ISAS, use_isa
from torch import Tensor

from lstm_fused import FusedLSTM

OPTIONS = {"peephole": {"peephole": True}, "norm": {"layer_norm": True}}
# Sums of a few rows, of which some cancel to denormal numbers.
BIASES = {torch.float32: -88.0, torch.bfloat16: -88.0, torch.float64: -708.0}


def gradients(options: dict[str, bool], dtype: torch.dtype, gate: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    module = FusedLSTM(4, 19, dtype=dtype, **options)
    with torch.no_grad():
        module.bias_ih_l0.chunk(4)[gate].fill_(BIASES[dtype])
    y, _ = module(torch.randn(5, 13, 4).to(dtype))
    (y * torch.linspace(0.5, 1.5, y.numel(), dtype=dtype).view_as(y)).sum().backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("gate", [0, 1, 3])
@pytest.mark.parametrize("dtype", BIASES, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_of_parameters(
    options: dict[str, bool], dtype: torch.dtype, gate: int, isa: str
) -> None:
    with use_isa(isa):
        found = gradients(options, dtype, gate)
        assert torch.set_flush_denormal(True)
        try:
            flushing = gradients(options, dtype, gate)
        finally:
            torch.set_flush_denormal(False)
    for name, grad in found.items():
        denormal = (grad != 0) & (grad.abs() < torch.finfo(dtype).tiny)
        assert not denormal.any(), f"{name}: {grad[denormal][0].item()}"
        assert torch.equal(grad, flushing[name]), name


@pytest.mark.parametrize("clip", [5e-324, 1e-50, 1e-39])
@pytest.mark.parametrize("dtype", BIASES, ids=str)
def test_a_limit_below_the_smallest_number_is_one(dtype: torch.dtype, clip: float) -> None:
    """As a float32 it is 0, which stands for no limit."""
    module = FusedLSTM(3, 4, cell_clip=clip, dtype=dtype)
    y, (_, c_n) = module(torch.randn(5, 2, 3, dtype=dtype))
    assert c_n.abs().max() <= max(clip, torch.finfo(dtype).tiny)
    assert y.abs().max() <= max(clip, torch.finfo(dtype).tiny)
