# SPDX-License-Identifier: BSD-3-Clause
"""What may be changed in place between a forward and its backward, in eager mode: all that may be
with nn.LSTM, and y always. What may not is refused, never silently wrong."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kit.numeric import assert_within_budget
from kit.twins import D, H, make_twins
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from lstm_fused import FusedLSTM, FusedLSTMCell

T, N = 5, 3
F32, F64 = torch.float32, torch.float64

CONFIGURATIONS = [
    {"num_layers": layers, "bidirectional": two, "proj_size": proj, "batch_first": first}
    for layers, two, proj, first in itertools.product((1, 2), (False, True), (0, 2), (False, True))
]


def data_of(y: Any) -> Tensor:
    return y.data if isinstance(y, PackedSequence) else y  # type: ignore[no-any-return]


def drop(t: Tensor, in_place: bool) -> Tensor:
    torch.manual_seed(1)
    return nn.functional.dropout(t, 0.5, inplace=in_place)


def clear_positive(t: Tensor) -> Tensor:
    t[t.detach() > 0] = 0
    return t


# In place, and what comes to the same.
EDITS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "mul_": (lambda t: t.mul_(0.5), lambda t: t * 0.5),
    "relu_": (lambda t: t.relu_(), lambda t: t.relu()),
    "masked": (clear_positive, lambda t: clear_positive(t.clone())),
    "dropout_": (lambda t: drop(t, True), lambda t: drop(t, False)),
    "zero_": (lambda t: t.zero_(), lambda t: t * 0),
}
edits = pytest.mark.parametrize("edit", EDITS)


def inputs_of(
    module: Any, kind: str, dtype: torch.dtype, inference: bool = False
) -> tuple[Any, tuple[Tensor, Tensor]]:
    torch.manual_seed(2)
    blocks = module.num_layers * (2 if module.bidirectional else 1)
    x: Any = torch.randn((N, T, D) if module.batch_first else (T, N, D), dtype=F64).to(dtype)
    sizes = (module.proj_size or H, H)
    h_0, c_0 = (torch.randn(blocks, N, size, dtype=F64).to(dtype) for size in sizes)
    lengths = {"even": [T] * N, "ragged": [5, 4, 2]}.get(kind)
    with torch.inference_mode(inference):
        x = x * 1
        if lengths:
            x = pack_padded_sequence(x, lengths, batch_first=module.batch_first)
    return x, (h_0, c_0)


def loss_of(y: Any, hidden: tuple[Tensor, Tensor]) -> Tensor:
    return data_of(y).pow(2).sum() + hidden[0].pow(2).sum() + hidden[1].sum()


def gradients(module: Any, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(module.parameters())))


@edits
@pytest.mark.parametrize("kind", ["dense", "even", "ragged"])
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
def test_outputs_may_be_overwritten(
    options: dict[str, Any], dtype: torch.dtype, kind: str, edit: str
) -> None:
    ours, theirs = make_twins(dtype, **options)
    truth = copy.deepcopy(theirs).double()
    in_place, apart = EDITS[edit]
    results = []
    for module, change, at in (
        (ours, in_place, dtype),
        (theirs, apart, dtype),
        (truth, apart, F64),
    ):
        x, hx = inputs_of(module, kind, at)
        y, hidden = module(x, hx)
        y = change(data_of(y))
        hidden = (change(hidden[0]), change(hidden[1]))
        results.append(gradients(module, loss_of(y, hidden)))
    for k, (mine, rival, expected) in enumerate(zip(*results, strict=True)):
        assert_within_budget(f"gradient {k}", mine, rival, expected, dtype)


@pytest.mark.parametrize("dtype", [F32, F64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("masks", ["none", "lengths", "resets", "both"])
def test_overwritten_outputs_of_padded_sequences(
    dtype: torch.dtype, recompute: bool, proj_size: int, masks: str
) -> None:
    """Rebuilt from gates and cells that lie in rows of their own, or by another forward."""
    torch.manual_seed(0)
    module = FusedLSTM(D, H, bidirectional=True, proj_size=proj_size, recompute=recompute)
    module = module.to(dtype)
    truth = FusedLSTM(D, H, bidirectional=True, proj_size=proj_size).double()
    truth.load_state_dict(module.state_dict())
    given: dict[str, Any] = {"return_cell_states": True}
    if masks in ("lengths", "both"):
        given["lengths"] = torch.tensor([2, 5, 0])
    if masks in ("resets", "both"):
        given["reset_mask"] = torch.rand(T, N) < 0.4
    results = []
    for m, in_place, at in ((module, True, dtype), (truth, False, F64)):
        x, hx = inputs_of(m, "dense", dtype)
        y, hidden, cells = m(x.to(at), (hx[0].to(at), hx[1].to(at)), **given)
        y = y.mul_(0.5) if in_place else y * 0.5
        cells = cells.mul_(0.5) if in_place else cells * 0.5
        results.append(gradients(m, y.sum() + hidden[0].sum() + hidden[1].sum() + cells.sum()))
    for k, (mine, expected) in enumerate(zip(*results, strict=True)):
        assert_within_budget(f"gradient {k}", mine, None, expected, dtype)


@pytest.mark.parametrize("recompute", [False, True])
def test_second_derivatives_of_overwritten_outputs(recompute: bool) -> None:
    """Overwritten before the first backward, or between the first and the second."""
    module = FusedLSTM(D, H, recompute=recompute).double()
    results = []
    for when in ("never", "before", "between"):
        x = inputs_of(module, "dense", F64)[0].requires_grad_()
        y, _ = module(x)
        loss = y.clone().pow(2).sum()  # of a copy, since pow saves what it is given
        if when == "before":
            with torch.no_grad():
                y.zero_()
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        if when == "between":
            with torch.no_grad():
                y.zero_()
        results.append(gradients(module, grad.sin().sum()))
    for mine in results[1:]:
        for k, (ours, expected) in enumerate(zip(mine, results[0], strict=True)):
            assert_within_budget(f"gradient {k}", ours, None, expected, F64)


def test_saved_tensors_of_an_overwritten_output_go_through_hooks() -> None:
    """What keeps tensors elsewhere, as offloading and checkpointing do, keeps y too."""
    module = FusedLSTM(D, H).double()
    x, _ = inputs_of(module, "dense", F64)
    expected = gradients(module, module(x)[0].mul(0.5).sum())
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, _ = module(x)
    y.mul_(0.5)
    for mine, theirs in zip(gradients(module, y.sum()), expected, strict=True):
        assert_within_budget("gradient", mine, None, theirs, F64)
    assert any(tensor.data_ptr() == y.data_ptr() for tensor in packed)


def outcome(call: Callable[[], list[Tensor]]) -> list[Tensor] | None:
    """Gradients, or None where torch refuses."""
    try:
        return call()
    except RuntimeError as error:
        assert "inplace" in str(error) or "Inference tensors" in str(error)
        return None


CHANGES: dict[str, Callable[[Any, Any, tuple[Tensor, Tensor], Any], Any]] = {
    "x": lambda m, x, hx, y: data_of(x).zero_(),
    "h_0": lambda m, x, hx, y: hx[0].zero_(),
    "c_0": lambda m, x, hx, y: hx[1].zero_(),
    "weight": lambda m, x, hx, y: scale(m.weight_hh_l0),
    "nothing, but x is of inference mode": lambda m, x, hx, y: None,
}


def scale(weight: Tensor) -> None:
    with torch.no_grad():
        weight.mul_(2)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["dense", "even", "ragged"])
@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
def test_other_changes_are_tolerated_where_nn_lstm_tolerates_them(
    options: dict[str, Any], kind: str, change: str
) -> None:
    ours, theirs = make_twins(F64, **options)
    state = {name: w.clone() for name, w in ours.state_dict().items()}
    inference = "inference" in change

    def call(module: Any, changed: bool) -> list[Tensor]:
        module.load_state_dict(state)
        x, hx = inputs_of(module, kind, F64, inference and changed)
        y, hidden = module(x, hx)
        if changed:
            CHANGES[change](module, x, hx, y)
        return gradients(module, loss_of(y, hidden))

    expected = call(ours, changed=False)
    mine, rival = outcome(lambda: call(ours, True)), outcome(lambda: call(theirs, True))
    assert mine is not None or rival is None
    for k, (grad, right) in enumerate(zip(mine or [], expected, strict=False)):
        assert_within_budget(f"gradient {k}", grad, None, right, F64)


class Subclass(Tensor):
    pass


WAYS: dict[str, Callable[[FusedLSTM, Tensor], Tensor]] = {
    "under a default device": lambda m, x: on_default_device(m, x),
    "in forward mode": lambda m, x: in_forward_mode(m, x),
    "of a subclass": lambda m, x: m(x.as_subclass(Subclass))[0].as_subclass(Tensor),
}


def on_default_device(module: FusedLSTM, x: Tensor) -> Tensor:
    with torch.device("cpu"):
        y: Tensor = module(x)[0]
    return y


def in_forward_mode(module: FusedLSTM, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        y: Tensor = module(x)[0]
    return y


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layers", [1, 2])
def test_outputs_of_unusual_calls_may_be_overwritten(way: str, layers: int) -> None:
    module = FusedLSTM(D, H, layers, bidirectional=True).double()
    x = torch.randn(T, N, D, dtype=F64)
    expected = gradients(module, (module(x)[0] * 0.5).sum())
    y = WAYS[way](module, x)
    y.mul_(0.5)
    for mine, theirs in zip(gradients(module, y.sum()), expected, strict=True):
        assert_within_budget("gradient", mine, None, theirs, F64)


def test_outputs_inside_of_a_transform_may_be_overwritten() -> None:
    module = FusedLSTM(D, H, bidirectional=True).double()
    x = torch.randn(T, N, D, dtype=F64)
    found = torch.func.grad(lambda x: module(x)[0].mul_(0.5).pow(2).sum())(x)
    expected = torch.func.grad(lambda x: (module(x)[0] * 0.5).pow(2).sum())(x)
    assert_within_budget("gradient", found, None, expected, F64)


@pytest.mark.parametrize("name", ["lengths", "reset_mask"])
def test_masks_that_change_are_refused(name: str) -> None:
    module = FusedLSTM(D, H)
    masks = {"lengths": torch.tensor([2, 5, 0]), "reset_mask": torch.rand(T, N) < 0.4}
    y, _ = module(torch.randn(T, N, D), **{name: masks[name]})
    masks[name].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("rows", [None, 1, 3], ids="N={}".format)
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("general", [False, True], ids=["fast", "general"])
def test_results_of_a_cell_are_detached_in_place(
    rows: int | None, grad: bool, general: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if general:
        monkeypatch.setattr("lstm_fused._ops.native.lstm_inference_op", None)
    ours = FusedLSTMCell(D, H)
    x = torch.randn(D) if rows is None else torch.randn(rows, D)
    with torch.set_grad_enabled(grad):
        h, c = ours(x)
        assert h.detach_().requires_grad is c.detach_().requires_grad is False


@edits
def test_results_of_a_cell_may_be_overwritten(edit: str) -> None:
    cell = FusedLSTMCell(D, H).double()
    x, h, c = (torch.randn(N, size, dtype=F64) for size in (D, H, H))
    results = []
    for change in EDITS[edit]:
        out = [change(state) for state in cell(x, (h, c))]
        results.append(gradients(cell, out[0].pow(2).sum() + out[1].pow(2).sum()))
    for mine, expected in zip(*results, strict=True):
        assert_within_budget("gradient", mine, None, expected, F64)
    for changed in (x, h, c, cell.weight_hh):
        y, _ = cell(x, (h, c))
        scale(changed)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
