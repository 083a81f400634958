# SPDX-License-Identifier: BSD-3-Clause
"""torch.compile with inductor, and options that test_ops.py does not cross; one graph each."""

from typing import Any

import pytest
import torch
from kit.numeric import assert_bitwise_equal
from kit.twins import D, H, make_twins
from torch import Tensor, nn

from lstm_fused import FusedLSTM, FusedLSTMCell

# NOTE: none of 1, for which torch makes a graph of its own.
SIZES = ((11, 7), (13, 7), (29, 17), (2, 7), (31, 23))


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def arguments(module: FusedLSTM, steps: int, rows: int, dtype: torch.dtype) -> dict[str, Any]:
    sizes = (rows, steps) if module.batch_first else (steps, rows)
    blocks = module.num_layers * (2 if module.bidirectional else 1)
    return {
        "input": torch.randn(*sizes, D, dtype=dtype),
        "hx": (
            torch.randn(blocks, rows, module.proj_size or H, dtype=dtype),
            torch.randn(blocks, rows, H, dtype=dtype),
        ),
        "lengths": torch.arange(rows) % (steps + 1),
        "reset_mask": torch.rand(sizes) < 0.3,
        "return_cell_states": True,
    }


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@torch._dynamo.config.patch(error_on_recompile=True)  # type: ignore[untyped-decorator]
def test_inductor_makes_one_graph_for_all_sizes(training: bool) -> None:
    """Every option and argument at once, but dropout."""
    torch._dynamo.reset()
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True, "proj_size": 2}
    module, _ = make_twins(torch.float32, **options)
    compiled: Any = torch.compile(module, fullgraph=True, dynamic=True)
    for steps, rows in SIZES if not training else SIZES[:3]:
        given = arguments(module, steps, rows, torch.float32)
        x = given["input"].requires_grad_(training)
        results = []
        for function in (compiled, module):
            with torch.set_grad_enabled(training):
                y, hidden, cells = function(**given)
            results.append([y, *hidden, cells])
            if training:
                loss = y.pow(2).sum() + hidden[1].sum() + cells.sum()
                results[-1] += torch.autograd.grad(loss, [x, *module.parameters()])
        close(*results)


@torch._dynamo.config.patch(error_on_recompile=True)  # type: ignore[untyped-decorator]
@pytest.mark.parametrize("probability", [0.0, 0.4])
def test_dropout_compiles_and_draws_anew(probability: float) -> None:
    torch._dynamo.reset()
    module, _ = make_twins(num_layers=3, dropout=probability)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for steps, rows in SIZES[:3]:
        x = torch.randn(steps, rows, D, dtype=torch.float64)
        results = []
        for function in (compiled, module):
            torch.manual_seed(1)
            results.append(function(x)[0])
            torch.manual_seed(2)
            results.append(function(x)[0])
        assert_bitwise_equal(results[0], results[2])
        assert_bitwise_equal(results[1], results[3])
        assert torch.equal(results[0], results[1]) == (probability == 0)


def test_a_change_of_dropout_is_seen() -> None:
    torch._dynamo.reset()
    module, _ = make_twins(num_layers=2)
    compiled: Any = torch.compile(module, fullgraph=True, dynamic=True, backend="eager")
    x = torch.randn(5, 4, D, dtype=torch.float64)
    assert torch.equal(compiled(x)[0], compiled(x)[0])
    module.dropout = 0.5
    assert not torch.equal(compiled(x)[0], compiled(x)[0])
    module.eval()
    assert torch.equal(compiled(x)[0], compiled(x)[0])


@torch._dynamo.config.patch(error_on_recompile=True)  # type: ignore[untyped-decorator]
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_autocast_compiles(training: bool) -> None:
    torch._dynamo.reset()
    module, _ = make_twins(torch.float32, num_layers=2)

    def call(x: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return module(x)[0]

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for steps, rows in SIZES[:3]:
        x = torch.randn(steps, rows, D)
        with torch.set_grad_enabled(training):
            ours, theirs = compiled(x), call(x)
        assert ours.dtype == torch.bfloat16
        assert_bitwise_equal(ours, theirs)
        if training:
            weights = list(module.parameters())
            grads = [torch.autograd.grad(y.sum(), weights) for y in (ours, theirs)]
            for mine, expected in zip(*grads, strict=True):
                assert mine.dtype == torch.float32
                assert_bitwise_equal(mine, expected)


class Decoder(nn.Module):
    """A cell in a loop, each step fed by the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = FusedLSTMCell(D, H)
        self.head = nn.Linear(H, D)

    def step(self, x: Tensor, hx: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        hx = self.cell(x, hx)
        return torch.tanh(self.head(hx[0])), hx

    def forward(self, x: Tensor) -> Tensor:
        hx = self.cell(x)
        outputs = [x]
        for _ in range(4):
            x, hx = self.step(x, hx)
            outputs.append(x)
        return torch.stack(outputs)


@torch._dynamo.config.patch(error_on_recompile=True)  # type: ignore[untyped-decorator]
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_cells_compile_in_a_loop_and_as_a_step(backend: str) -> None:
    torch._dynamo.reset()
    model = Decoder()
    loop: Any = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    step: Any = torch.compile(model.step, fullgraph=True, dynamic=True, backend=backend)
    for rows in (7, 9, 17):
        x = torch.randn(rows, D)
        results = [torch.autograd.grad(f(x).sum(), list(model.parameters())) for f in (loop, model)]
        close(*results)
        with torch.no_grad():
            hx = (torch.randn(rows, H), torch.randn(rows, H))
            close(step(x, hx), model.step(x, hx))


@pytest.mark.filterwarnings("ignore")
def test_reduce_overhead_keeps_earlier_results() -> None:
    """CUDA graphs reuse memory; on the CPU the mode must at least not change what was returned."""
    torch._dynamo.reset()
    module, _ = make_twins(torch.float32)
    compiled: Any = torch.compile(module, fullgraph=True, mode="reduce-overhead")
    inputs = [torch.randn(6, 4, D) for _ in range(3)]
    with torch.no_grad():
        results = [compiled(x)[0] for x in inputs]
        for x, y in zip(inputs, results, strict=True):
            close(y, module(x)[0])
