# SPDX-License-Identifier: BSD-3-Clause
"""Autocast: the dtypes of torch's modules, and no effect on what is computed beneath."""

from typing import Any

import pytest
import torch
from conftest import D, H
from kit.numeric import assert_within_budget
from torch import nn

import lstm_fused
from lstm_fused import FusedLSTM, _native


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", [False, True], ids=["layers", "cell"])
def test_autocast_gives_the_dtypes_of_torchs_modules(dtype: torch.dtype, cell: bool) -> None:
    if not cell and dtype == torch.float32 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("nn.LSTM under autocast needs oneDNN with bfloat16 (AVX-512)")
    torch.manual_seed(0)
    theirs = nn.LSTMCell(D, H) if cell else nn.LSTM(D, H, num_layers=2, bidirectional=True)
    if dtype == torch.float64:
        theirs.double()
    ours = lstm_fused.convert(theirs)
    x = torch.randn(*((4,) if cell else (6, 4)), D, dtype=dtype, requires_grad=True)
    results = []
    for module in (ours, theirs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = torch.utils._pytree.tree_leaves(module(x))
        grads = torch.autograd.grad(
            out, [x, *module.parameters()], [torch.ones_like(t) for t in out]
        )
        results.append([*out, *grads])
    for mine, rival in zip(*results, strict=True):
        assert mine.dtype == rival.dtype
    truth = torch.utils._pytree.tree_leaves(theirs.double()(x.double()))
    computed_in = dtype if dtype == torch.float64 else torch.bfloat16
    for mine, rival, expected in zip(*results, truth, strict=False):
        assert_within_budget("result", mine, rival, expected, computed_in)


@pytest.mark.parametrize("kernels", [True, False])
def test_backward_inside_of_autocast_keeps_float32(
    kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the forward was out of autocast; its gradients are float32's, as nn.LSTM's are."""
    if not kernels:
        monkeypatch.setattr(_native, "has_kernels", lambda device: False)
        monkeypatch.setattr(_native, "lstm_inference_op", None)
    module = FusedLSTM(32, 24)
    x = torch.randn(10, 8, 32)

    def gradients(module: Any, x: torch.Tensor) -> Any:
        loss = module(x)[0].square().sum()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return torch.autograd.grad(loss, list(module.parameters()))

    ours, theirs = gradients(module, x), gradients(module.to_torch(), x)
    truth = gradients(module.double().to_torch(), x.double())
    for mine, rival, expected in zip(ours, theirs, truth, strict=True):
        if kernels:
            assert_within_budget("gradient", mine, rival, expected, torch.float32)
        else:  # whose own backward is torch's matmuls, which autocast casts
            assert mine.dtype == torch.float32


def test_double_backward_inside_of_autocast_keeps_float32() -> None:
    module = FusedLSTM(8, 12)
    x = torch.randn(5, 4, 8, requires_grad=True)

    def penalty(module: Any, x: torch.Tensor, enabled: bool) -> torch.Tensor:
        loss = module(x)[0].square().sum()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
            return torch.autograd.grad(gradient.square().sum(), module.weight_hh_l0)[0]  # type: ignore[no-any-return]

    torch.testing.assert_close(penalty(module, x, True), penalty(module, x, False))
