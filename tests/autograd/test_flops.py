# SPDX-License-Identifier: BSD-3-Clause
"""torch's FlopCounterMode: the products of a layer, as counted by hand and of the reference."""

from typing import Any

import pytest
import torch
from kit.twins import D, H, make_twins, random_hx
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

from lstm_fused import FusedLSTM, FusedLSTMCell, reference
from lstm_fused._ops import native

T, N, P = 6, 4, 2
pytestmark = pytest.mark.skipif(native.compiled is None, reason="needs the compiled ops")


def counted(run: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    total: int = counter.get_total_flops()
    return total


def by_hand(rows: int, inputs: int, outputs: int, *, projected: bool, directions: int) -> int:
    per_row = 4 * H * (inputs + outputs) + (H * outputs if projected else 0)
    return 2 * rows * per_row * directions


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "both": {"bidirectional": True},
    "projected": {"proj_size": P, "bias": False},
    "stack": {"num_layers": 3, "bidirectional": True, "proj_size": P},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("form", ["padded", "lengths", "packed"])
def test_forward_is_what_is_counted_by_hand(options: dict[str, Any], form: str) -> None:
    module, _ = make_twins(**options)
    projected, directions = "proj_size" in options, 2 if module.bidirectional else 1
    width = P if projected else H
    x: Any = torch.randn(T, N, D, dtype=torch.float64)
    rows, keywords = T * N, {}
    if form == "lengths":
        keywords = {"lengths": torch.tensor([1, 6, 0, 2])}  # not seen
    elif form == "packed":
        rows = 1 + 6 + 3 + 2
        x = pack_padded_sequence(x, torch.tensor([1, 6, 3, 2]), enforce_sorted=False)
    expected = 0
    for layer in range(module.num_layers):
        inputs = D if layer == 0 else width * directions
        expected += by_hand(rows, inputs, width, projected=projected, directions=directions)
    assert counted(lambda: module(x, **keywords)) == expected
    with torch.no_grad():
        assert counted(lambda: module(x, **keywords)) == expected


@pytest.mark.parametrize("options", list(OPTIONS.values())[:3], ids=list(OPTIONS)[:3])
@pytest.mark.parametrize("needs", ["input", "weights", "all"])
def test_backward_is_that_of_the_reference(options: dict[str, Any], needs: str) -> None:
    """Whose products are torch's own, which torch counts itself."""
    module, _ = make_twins(**options)
    hx = [state.requires_grad_() for state in random_hx(module, N)]
    x = torch.randn(T, N, D, dtype=torch.float64, requires_grad=needs != "weights")
    weights = list(module.parameters())
    for weight in weights:
        weight.requires_grad_(needs != "input")

    def run(compute: Any) -> tuple[int, int]:
        results: list[Tensor] = []
        forward = counted(lambda: results.extend(compute()))
        loss = sum(result.square().sum() for result in results)
        return forward, counted(lambda: loss.backward())

    def ours() -> Any:
        y, states = module(x, tuple(hx))
        return [y, *states]

    def truth() -> Any:
        return reference.lstm_layer(x, *hx, weights)[:3]

    assert run(ours) == run(truth)


def test_recompute_counts_the_gates_once_more() -> None:
    module, _ = make_twins(bidirectional=True, proj_size=P)
    x = torch.randn(T, N, D, dtype=torch.float64, requires_grad=True)

    def backward() -> int:
        y = module(x)[0].sum()
        return counted(lambda: y.backward())

    saved = backward()
    module.recompute = True
    assert backward() - saved == by_hand(T * N, D, P, projected=False, directions=2)


def test_cell_and_modules_are_counted_by_name() -> None:
    model = torch.nn.ModuleDict({"cell": FusedLSTMCell(D, H), "lstm": FusedLSTM(D, H)})

    def run() -> None:
        model["cell"](torch.randn(N, D))[0].sum().backward()
        model["lstm"](torch.randn(T, N, D))

    with FlopCounterMode(display=False) as counter:
        run()
    forward = by_hand(N, D, H, projected=False, directions=1)
    counts = counter.get_flop_counts()
    op = torch.ops.lstm_fused.lstm_forward
    assert counts["LSTM" if "LSTM" in counts else "FusedLSTM"][op] == T * forward
    backward = forward + 2 * N * 4 * H * H  # the weights', and the states'
    assert counter.get_total_flops() == forward + backward + T * forward


def test_exported_programs_and_raw_ops() -> None:
    module, _ = make_twins(torch.float32, bidirectional=True)
    x, expected = torch.randn(T, N, D), by_hand(T * N, D, H, projected=False, directions=2)
    program = torch.export.export(module, (x,)).module()
    assert counted(lambda: program(x)) == expected
    weights = [weight.detach() for weight in module.parameters()]
    run = torch.ops.lstm_fused.lstm_inference
    assert counted(lambda: run(x, None, None, weights, 2)) == expected


def test_gradients_of_samples() -> None:
    """One product for each sample is as much as one product for all."""
    module, _ = make_twins(torch.float32)
    weights = {name: value.detach() for name, value in module.named_parameters()}
    x = torch.randn(T, N, D)

    def loss(weights: Any, row: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(module, weights, (row.unsqueeze(1),))[0]
        return y.square().sum()

    of_each = torch.func.vmap(torch.func.grad(loss), (None, 1))
    forward = by_hand(T * N, D, H, projected=False, directions=1)
    backward = forward + 2 * T * N * 4 * H * H
    assert counted(lambda: of_each(weights, x)) == forward + backward


def test_sample_gradients_of_a_projection() -> None:
    """As those of the batch: the recurrence, the input's and all weights'."""
    arguments = make_arguments()
    with torch.device("meta"):
        each = counted(
            lambda: torch.ops.lstm_fused.lstm_sample_gradients(*arguments, True, True, N)
        )
        batch = counted(lambda: torch.ops.lstm_fused.lstm_backward(*arguments, True, True, True))
    one = by_hand(T * N, D, P, projected=True, directions=2)
    assert each == batch == 2 * one


def make_arguments() -> list[Any]:
    def of(*sizes: int) -> Tensor:
        return torch.empty(sizes, device="meta")

    weights = [of(4 * H, D), of(4 * H, P), of(P, H)] * 2
    states, saved = (of(2, N, P), of(2, N, H)), (of(T, N, 2 * P), of(2, T * N, 4 * H))
    grads = (of(T, N, 2 * P), None, None, None)
    return [*grads, of(T, N, D), *states, weights, *[None] * 3, *saved, of(2, T * N, H)]
