# SPDX-License-Identifier: BSD-3-Clause
"""A fault has one sentence, whichever way a call takes: the module's fast path and general path,
the stateless form, the op, and the checks that stand for the op on fake tensors."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from kit.ops import forward_op
from torch import Tensor, nn, zeros
from torch._subclasses import FakeTensorMode
from torch.nn.utils.rnn import PackedSequence

from lstm_fused import FusedLSTM, FusedLSTMCell, functional
from lstm_fused._ops import native

D, H = 3, 5
NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


@dataclass
class Call:
    """The arguments of a call, of T = 4 steps and N = 2 rows."""

    input: Tensor = field(default_factory=lambda: zeros(4, 2, D))
    h_0: Tensor = field(default_factory=lambda: zeros(1, 2, H))
    c_0: Tensor = field(default_factory=lambda: zeros(1, 2, H))
    w_ih: Tensor = field(default_factory=lambda: zeros(4 * H, D))
    w_hh: Tensor = field(default_factory=lambda: zeros(4 * H, H))
    b_ih: Tensor = field(default_factory=lambda: zeros(4 * H))
    b_hh: Tensor = field(default_factory=lambda: zeros(4 * H))
    lengths: Tensor | None = None
    batch_sizes: Tensor | None = None
    reset_mask: Tensor | None = None

    @property
    def weights(self) -> list[Tensor]:
        return [self.w_ih, self.w_hh, self.b_ih, self.b_hh]

    @property
    def masks(self) -> dict[str, Any]:
        return {"lengths": self.lengths, "reset_mask": self.reset_mask}


def module_with(weights: list[Tensor]) -> FusedLSTM:
    module = FusedLSTM(D, H)
    for name, weight in zip(NAMES, weights, strict=True):
        setattr(module, name, nn.Parameter(weight))
    return module


def by_module(call: Call, grad: bool) -> None:
    module = module_with(call.weights)
    input: Any = call.input
    if call.batch_sizes is not None:
        input = PackedSequence(input, call.batch_sizes)
    with torch.set_grad_enabled(grad):
        module(input, (call.h_0, call.c_0), **call.masks)


def by_general_path(call: Call, grad: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "lstm_inference_op", None)  # without which no call is fast
        by_module(call, grad)


def by_functional(call: Call) -> None:
    states = (call.h_0, call.c_0)
    functional.lstm(call.input, states, call.weights, batch_sizes=call.batch_sizes, **call.masks)


def by_op(call: Call) -> None:
    masks = (call.lengths, call.batch_sizes, call.reset_mask)
    forward_op(call.input, call.h_0, call.c_0, call.weights, *masks, False, False)


def by_fake_op(call: Call) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = {
            name: mode.from_tensor(value)
            for name, value in vars(call).items()
            if isinstance(value, Tensor)
        }
        by_op(replace(call, **fakes))


MODULES: dict[str, Callable[[Call], None]] = {
    "fast, inference": lambda call: by_module(call, False),
    "fast, training": lambda call: by_module(call, True),
    "general, inference": lambda call: by_general_path(call, False),
    "general, training": lambda call: by_general_path(call, True),
}
OPS: dict[str, Callable[[Call], None]] = {"op": by_op, "fake op": by_fake_op}
STATELESS = {"functional": by_functional, **OPS}
ALL = MODULES | STATELESS

# By the ways that can meet a fault: its name, what is changed, and the sentence.
Faults = dict[str, tuple[dict[str, Tensor], str]]

EVERYWHERE: Faults = {
    "dtype of h_0": (
        {"h_0": zeros(1, 2, H).double()},
        "h_0 must have input's dtype, torch.float32, got torch.float64",
    ),
    "dtype of c_0": (
        {"c_0": zeros(1, 2, H).half()},
        "c_0 must have input's dtype, torch.float32, got torch.float16",
    ),
    "dtype of a weight": (
        {"b_hh": zeros(4 * H).bfloat16()},
        "b_hh must have input's dtype, torch.float32, got torch.bfloat16",
    ),
    "shape of w_hh": (
        {"w_hh": zeros(4 * H, H - 1)},
        "w_hh must have shape (20, 5), got (20, 4)",
    ),
    "shape of w_ih": (
        {"w_ih": zeros(4 * H, D + 1)},
        "w_ih must have shape (20, 3), got (20, 4)",
    ),
    "rank of b_ih": ({"b_ih": zeros(4 * H, 1)}, "b_ih must have shape (20,), got (20, 1)"),
    "no steps": ({"input": zeros(0, 2, D)}, "Expected sequence length to be larger than 0 in RNN"),
    "dtype of lengths": (
        {"lengths": torch.ones(2)},
        "lengths must be int32 or int64, got torch.float32",
    ),
    "rank of lengths": (
        {"lengths": torch.ones(2, 1, dtype=torch.int64)},
        "lengths must have 1 dimension, got 2",
    ),
    "shape of lengths": (
        {"lengths": torch.ones(3, dtype=torch.int64)},
        "lengths must have shape (2,), got (3,)",
    ),
    "dtype of reset_mask": (
        {"reset_mask": zeros(4, 2, dtype=torch.uint8)},
        "reset_mask must be bool, got torch.uint8",
    ),
    "shape of reset_mask": (
        {"reset_mask": zeros(2, 4, dtype=torch.bool)},
        "reset_mask must have shape (4, 2), got (2, 4)",
    ),
    "rank of reset_mask": (
        {"reset_mask": zeros(4, 2, 1, dtype=torch.bool)},
        "reset_mask must have shape (4, 2), got (4, 2, 1)",
    ),
    "device of reset_mask": (
        {"reset_mask": zeros(4, 2, dtype=torch.bool, device="meta")},
        "reset_mask must be on cpu, as input is, got meta",
    ),
    "lengths of packed input": (
        {
            "input": zeros(4, D),
            "batch_sizes": torch.tensor([2, 2]),
            "lengths": torch.tensor([2, 2]),
        },
        "lengths does not go with a PackedSequence, got both; pass padded input instead",
    ),
    "reset_mask of packed input": (
        {
            "input": zeros(4, D),
            "batch_sizes": torch.tensor([2, 2]),
            "reset_mask": zeros(2, 2, dtype=torch.bool),
        },
        "reset_mask does not go with a PackedSequence, got both; pass padded input instead",
    ),
}
# Values, which fake tensors do not have.
BY_VALUE: Faults = {
    "values of lengths": (
        {"lengths": torch.tensor([4, 5])},
        "lengths must be between 0 and T = 4, got 5 for row 1",
    ),
}
# The module has nn.LSTM's sentences for these: see NN_LSTM.
BEYOND_THE_MODULE: Faults = {
    "dtype of input": (
        {"input": zeros(4, 2, D).long()},
        "input must be float32, float64, bfloat16 or float16, got torch.int64",
    ),
    "rank of input": ({"input": zeros(4, D)}, "input must have 3 dimensions, got 2"),
    "rank of packed input": (
        {"batch_sizes": torch.tensor([2, 2])},
        "input must have 2 dimensions, got 3",
    ),
    "rows of h_0": (
        {"h_0": zeros(1, 3, H), "c_0": zeros(1, 3, H)},
        "h_0 must hold 2 rows as input does, got 3",
    ),
    "shape of c_0": (
        {"c_0": zeros(1, 3, H)},
        "c_0 must have shape (1, 2, 5), got (1, 3, 5)",
    ),
    "dtype of batch_sizes": (
        {"input": zeros(4, D), "batch_sizes": torch.ones(2)},
        "batch_sizes must be int32 or int64, got torch.float32",
    ),
    "rank of batch_sizes": (
        {"input": zeros(4, D), "batch_sizes": torch.ones(2, 2, dtype=torch.int64)},
        "batch_sizes must have 1 dimension, got 2",
    ),
}
DEVICES: Faults = {
    "device of h_0": (
        {"h_0": zeros(1, 2, H, device="meta")},
        "h_0 must be on cpu, as input is, got meta",
    ),
    "device of a weight": (
        {"w_hh": zeros(4 * H, H, device="meta")},
        "w_hh must be on cpu, as input is, got meta",
    ),
}
NN_LSTM: Faults = {
    "dtype of input": (
        {"input": zeros(4, 2, D).long()},
        "RNN input dtype (torch.int64) does not match weight dtype (torch.float32). "
        "Convert input: input.to(torch.float32), or convert model: model.to(torch.int64)",
    ),
    "features of input": (
        {"input": zeros(4, 2, D + 1)},
        "input.size(-1) must be equal to input_size. Expected 3, got 4",
    ),
    "rows of h_0": (
        {"h_0": zeros(1, 3, H)},
        "Expected hidden[0] size (1, 2, 5), got [1, 3, 5]",
    ),
    "size of c_0": (
        {"c_0": zeros(1, 2, H + 1)},
        "Expected hidden[1] size (1, 2, 5), got [1, 2, 6]",
    ),
    "rank of h_0": (
        {"h_0": zeros(2, H)},
        "For batched 3-D input, hx and cx should also be 3-D but got (2-D, 3-D) tensors",
    ),
}
NN_LSTM_DEVICES: Faults = {
    "device of h_0": (
        {"h_0": zeros(1, 2, H, device="meta")},
        "Input and hidden tensors are not at the same device, found input tensor at cpu and hidden "
        "tensor at meta",
    ),
    "device of a weight": (
        {"w_hh": zeros(4 * H, H, device="meta")},
        "Input and parameter tensors are not at the same device, found input tensor at cpu and "
        "parameter tensor at meta",
    ),
}
TABLE = [
    pytest.param(way, changes, sentence, id=f"{name} / {route}")
    for faults, ways in (
        (EVERYWHERE, ALL),
        (BY_VALUE, MODULES | {"functional": by_functional, "op": by_op}),
        (BEYOND_THE_MODULE, STATELESS),
        (DEVICES, OPS),
        (NN_LSTM, MODULES),
        (NN_LSTM_DEVICES, MODULES | {"functional": by_functional}),
    )
    for name, (changes, sentence) in faults.items()
    for route, way in ways.items()
]


@pytest.mark.parametrize(("way", "changes", "sentence"), TABLE)
def test_a_fault_has_one_sentence(
    way: Callable[[Call], None], changes: dict[str, Tensor], sentence: str
) -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
        way(Call(**changes))
    assert str(caught.value).splitlines()[0] == sentence


@pytest.mark.parametrize("way", ALL.values(), ids=ALL)
def test_a_call_without_fault_passes(way: Callable[[Call], None]) -> None:
    way(Call())


# A cell has nn.LSTMCell's sentences for shapes; the op's are for dtypes and weights.

CELL_FAULTS: dict[str, tuple[str, Tensor, str]] = {
    "dtype of h": (
        "h",
        zeros(2, H).double(),
        "h must have input's dtype, torch.float32, got torch.float64",
    ),
    "dtype of c": (
        "c",
        zeros(2, H).half(),
        "c must have input's dtype, torch.float32, got torch.float16",
    ),
    "shape of weight_hh": (
        "weight_hh",
        zeros(4 * H, H + 1),
        "w_hh must have shape (20, 5), got (20, 6)",
    ),
    "dtype of bias_ih": (
        "bias_ih",
        zeros(4 * H).double(),
        "b_ih must have input's dtype, torch.float32, got torch.float64",
    ),
}


@pytest.mark.parametrize(("name", "wrong", "sentence"), CELL_FAULTS.values(), ids=CELL_FAULTS)
@pytest.mark.parametrize("is_fast", [True, False], ids=["fast", "general"])
@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
def test_a_fault_of_a_cell_has_one_sentence(
    name: str,
    wrong: Tensor,
    sentence: str,
    is_fast: bool,
    grad: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell = FusedLSTMCell(D, H)
    states = {"h": zeros(2, H), "c": zeros(2, H)}
    if name in states:
        states[name] = wrong
    else:
        setattr(cell, name, nn.Parameter(wrong))
    if not is_fast:
        monkeypatch.setattr(native, "lstm_inference_op", None)
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError) as caught:
        cell(zeros(2, D), (states["h"], states["c"]))
    assert str(caught.value).splitlines()[0] == sentence


@pytest.mark.parametrize(("name", "wrong", "sentence"), CELL_FAULTS.values(), ids=CELL_FAULTS)
@pytest.mark.parametrize("device", ["cpu", "meta"], ids=["op", "fake op"])
def test_the_op_of_a_cell_says_it_too(name: str, wrong: Tensor, sentence: str, device: str) -> None:
    cell = FusedLSTMCell(D, H)
    given = {"h": zeros(2, H), "c": zeros(2, H), **dict(cell.named_parameters()), name: wrong}
    input, h, c, *weights = (t.detach().to(device) for t in (zeros(2, D), *given.values()))
    with pytest.raises(RuntimeError) as caught:
        torch.ops.lstm_fused.lstm_cell(input, h, c, weights, False)
    assert str(caught.value).splitlines()[0] == sentence
