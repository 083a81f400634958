# SPDX-License-Identifier: BSD-3-Clause
"""TorchScript: traces without gradients run and can be saved; the rest is refused with a remedy."""

from pathlib import Path
from typing import Any

import pytest
import torch
from kit.twins import D, H, assert_same
from torch import Tensor, nn

import lstm_fused
from lstm_fused import FusedLSTM, FusedLSTMCell, functional

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


class First(nn.Module):
    """What a user's model holds, and gives back a tensor."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)[0]  # type: ignore[no-any-return]


def modules() -> list[tuple[nn.Module, Tensor, Tensor]]:
    """Each with two inputs of different sizes."""
    x, other = torch.randn(6, 4, D), torch.randn(3, 2, D)
    return [
        (FusedLSTM(D, H), x, other),
        (FusedLSTM(D, H, num_layers=2, bidirectional=True, batch_first=True), x, other),
        (FusedLSTM(D, H, proj_size=2), x, other),
        (FusedLSTMCell(D, H), x[0], other[0]),
    ]


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("held", [False, True])
def test_script_names_the_way_back(index: int, held: bool) -> None:
    module, x, _ = modules()[index]
    model = First(module) if held else module
    before = dict(model.named_modules())
    with pytest.raises(RuntimeError, match=r"to_torch\(\).*lstm_fused\.revert\(model\)"):
        torch.jit.script(model)
    assert dict(model.named_modules()) == before
    expected = First(module)(x)
    assert_same(torch.jit.script(lstm_fused.revert(First(module)))(x), expected)


@pytest.mark.parametrize(
    "options", [{"peephole": True}, {"learned_state": True}, {"weight_dropout": 0.5}], ids=str
)
def test_script_names_no_way_that_is_not_there(options: dict[str, Any]) -> None:
    """torch has no module with these options: to_torch() would raise, and revert leave them."""
    module = FusedLSTM(D, H, **options).eval()
    (name,) = options
    with pytest.raises(RuntimeError, match=rf"has no {name}=.*torch\.no_grad\(\)") as caught:
        torch.jit.script(First(module))
    assert "to_torch" not in str(caught.value)
    x = torch.randn(6, 4, D)
    with torch.no_grad():
        assert_same(torch.jit.trace(First(module), x)(x), module(x)[0])


@pytest.mark.parametrize("index", range(4))
def test_trace_with_gradients_names_the_remedies(index: int) -> None:
    module, x, other = modules()[index]
    for checks in (False, True):
        with pytest.raises(RuntimeError, match=r"torch\.no_grad\(\).*to_torch\(\)"):
            torch.jit.trace(First(module), x, check_trace=checks)
    module.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"torch\.no_grad\(\)"):
        torch.jit.trace(First(module), x.requires_grad_())
    assert_same(torch.jit.trace(First(module), x.detach())(other), module(other)[0])


@pytest.mark.parametrize("index", range(4))
def test_trace_without_gradients_runs_and_is_saved(index: int, tmp_path: Path) -> None:
    module, x, other = modules()[index]
    with torch.no_grad():
        traced: Any = torch.jit.trace(First(module), x)
        traced.save(str(tmp_path / "trace.pt"))
        loaded = torch.jit.load(str(tmp_path / "trace.pt"))  # type: ignore[no-untyped-call]
        for run in (traced, loaded):
            assert_same(run(x), module(x)[0])
            assert_same(run(other), module(other)[0])


def test_trace_of_the_function_with_gradients() -> None:
    weights = list(FusedLSTM(D, H).parameters())
    zeros = torch.zeros(1, 4, H)

    def run(x: Tensor) -> Tensor:
        return functional.lstm(x, (zeros, zeros), weights)[0]

    with pytest.raises(RuntimeError, match=r"torch\.no_grad\(\)"):
        torch.jit.trace(run, torch.randn(6, 4, D))


def test_the_backend_of_torch_is_traced_with_gradients() -> None:
    module = FusedLSTM(D, H, backend="cudnn")
    x = torch.randn(6, 4, D)
    traced: Any = torch.jit.trace(First(module), x)
    assert_same(traced(x), module(x)[0])
    traced(x).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
