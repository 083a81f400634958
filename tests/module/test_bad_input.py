# SPDX-License-Identifier: BSD-3-Clause
"""What is refused, in which words, before a kernel runs; and what looks odd but is right."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, zeros
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from lstm_fused import FusedLSTM, FusedLSTMCell
from lstm_fused._ops import native

D, H = 3, 5
X = zeros(4, 2, D)  # T = 4, N = 2
HX = (zeros(1, 2, H), zeros(1, 2, H))
MASK = zeros(4, 2, dtype=torch.bool)
PACKED = pack_padded_sequence(X, torch.tensor([4, 2]))

Call = Callable[[Any], object]


def outcome(call: Callable[[], object]) -> tuple[type[Exception], str]:
    """The exception that a call raises."""
    with pytest.raises(Exception) as caught:
        call()
    return type(caught.value), str(caught.value)


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if an op runs: what is wrong must be refused before."""
    for name in ("lstm_forward_op", "lstm_inference_op"):
        op = getattr(native, name)

        def run(*arguments: Any, op: Any = op) -> None:
            op(*arguments)
            raise AssertionError("a kernel ran")

        monkeypatch.setattr(native, name, run)


# In nn.LSTM's words. Each row is run on nn.LSTM too.

BAD_OPTIONS: list[dict[str, Any]] = [
    {"input_size": 0},
    {"input_size": -1},
    {"input_size": 2.0},
    {"hidden_size": 0},
    {"hidden_size": -3},
    {"hidden_size": 4.0},
    {"num_layers": 0},
    {"num_layers": -1},
    {"bias": 1},
    {"batch_first": None},
    {"dropout": -0.1},
    {"dropout": 1.5},
    {"dropout": float("nan")},
    {"dropout": float("inf")},
    {"dropout": True},
    {"dropout": "half"},
    {"proj_size": -1},
    {"proj_size": H},
    {"proj_size": H + 1},
    {"dtype": torch.int64},
    {"device": "nowhere"},
    {"units": 3},
]


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_constructor_refuses_as_nn_lstm(options: dict[str, Any]) -> None:
    arguments = {"input_size": D, "hidden_size": H, **options}
    kind, message = outcome(lambda: nn.LSTM(**arguments))
    ours = outcome(lambda: FusedLSTM(**arguments))
    assert ours == (kind, message.replace("RNNBase.__init__", "FusedLSTM.__init__"))


def with_weight(change: Callable[[Tensor], Tensor]) -> Call:
    def call(module: Any) -> object:
        module.bias_hh_l0 = nn.Parameter(change(module.bias_hh_l0.detach()))
        return module(X)

    return call


AS_TORCH: dict[str, Call] = {
    "rank 0": lambda m: m(zeros(())),
    "rank 1": lambda m: m(zeros(D)),
    "rank 4": lambda m: m(zeros(1, 4, 2, D)),
    "features": lambda m: m(zeros(4, 2, D + 1)),
    "features, unbatched": lambda m: m(zeros(4, D + 1)),
    "no tensor": lambda m: m([[0.0] * D]),
    "float64 input": lambda m: m(X.double()),
    "float16 input": lambda m: m(X.half()),
    "integer input": lambda m: m(X.long()),
    "boolean input": lambda m: m(X.bool()),
    "complex input": lambda m: m(X.to(torch.complex64)),
    "float32 input, float64 module": lambda m: m.double()(X),
    "input on another device": lambda m: m(X.to("meta")),
    "weights on another device": lambda m: m.to("meta")(X),
    "one weight on another device": with_weight(lambda w: w.to("meta")),
    "h_0 on another device": lambda m: m(X, (HX[0].to("meta"), HX[1])),
    "c_0 on another device": lambda m: m(X, (HX[0], HX[1].to("meta"))),
    "h_0 of other layers": lambda m: m(X, (zeros(2, 2, H), HX[1])),
    "h_0 of other rows": lambda m: m(X, (zeros(1, 3, H), HX[1])),
    "h_0 of other size": lambda m: m(X, (zeros(1, 2, H + 1), HX[1])),
    "c_0 of other layers": lambda m: m(X, (HX[0], zeros(2, 2, H))),
    "c_0 of other rows": lambda m: m(X, (HX[0], zeros(1, 1, H))),
    "c_0 of other size": lambda m: m(X, (HX[0], zeros(1, 2, H - 1))),
    "h_0 of rank 2": lambda m: m(X, (zeros(2, H), HX[1])),
    "c_0 of rank 4": lambda m: m(X, (HX[0], zeros(1, 1, 2, H))),
    "no states": lambda m: m(X, ()),
    "one state": lambda m: m(X, HX[:1]),
    "three states": lambda m: m(X, (*HX, HX[0])),
    "states None": lambda m: m(X, (None, None)),
    "batched states, unbatched input": lambda m: m(X[:, 0], HX),
    "unbatched states of other size": lambda m: m(X[:, 0], (zeros(1, H), zeros(1, H + 1))),
    "T = 0": lambda m: m(X[:0]),
    "T = 0, unbatched": lambda m: m(X[:0, 0]),
    "T = 0 and N = 0": lambda m: m(X[:0, :0]),
    "empty PackedSequence": lambda m: m(PackedSequence(zeros(0, D), zeros(0, dtype=torch.int64))),
    "unknown argument": lambda m: m(X, sizes=3),
}
AS_TORCH_WITH_OPTIONS: list[tuple[dict[str, Any], Call]] = [
    ({"batch_first": True}, lambda m: m(zeros(2, 0, D))),
    ({"batch_first": True}, lambda m: m(zeros(2, 4, D), (zeros(1, 4, H), zeros(1, 4, H)))),
    ({"proj_size": 2}, lambda m: m(X[:0])),
    ({"proj_size": 2}, lambda m: m(X, HX)),
    ({"proj_size": 2}, lambda m: m(X, (zeros(1, 2, 2), zeros(1, 2, 2)))),
    ({"num_layers": 2, "bidirectional": True}, lambda m: m(X[:0])),
    ({"num_layers": 2, "bidirectional": True}, lambda m: m(X, HX)),
]


def assert_refused_as_by_torch(call: Call, ours: nn.Module, theirs: nn.Module) -> None:
    kind, message = outcome(lambda: call(theirs))
    name = type(theirs).__name__
    assert outcome(lambda: call(ours)) == (
        kind,
        message.replace(f"{name}.forward", f"Fused{name}.forward"),
    )


@pytest.mark.parametrize("call", AS_TORCH.values(), ids=AS_TORCH)
def test_forward_refuses_as_nn_lstm(call: Call, no_kernel: None) -> None:
    assert_refused_as_by_torch(call, FusedLSTM(D, H), nn.LSTM(D, H))


@pytest.mark.parametrize(("options", "call"), AS_TORCH_WITH_OPTIONS)
def test_forward_with_options_refuses_as_nn_lstm(
    options: dict[str, Any], call: Call, no_kernel: None
) -> None:
    assert_refused_as_by_torch(call, FusedLSTM(D, H, **options), nn.LSTM(D, H, **options))


CELL_AS_TORCH: dict[str, Call] = {
    "rank 0": lambda m: m(zeros(())),
    "rank 3": lambda m: m(X),
    "features": lambda m: m(zeros(2, D + 1)),
    "features, unbatched": lambda m: m(zeros(D + 1)),
    "no states": lambda m: m(X[0], ()),
    "one state": lambda m: m(X[0], (zeros(2, H),)),
    "three states": lambda m: m(X[0], (zeros(2, H),) * 3),
    "states in one tensor": lambda m: m(X[0], zeros(2, 2, H)),
    "batched states, unbatched input": lambda m: m(X[0, 0], (zeros(1, H), zeros(1, H))),
    "h of other size": lambda m: m(X[0], (zeros(2, H + 1), HX[1][0])),
    "c of other size": lambda m: m(X[0], (HX[0][0], zeros(2, H + 1))),
    "h of other rows": lambda m: m(X[0], (zeros(3, H), HX[1][0])),
    "c of other rows": lambda m: m(X[0], (HX[0][0], zeros(1, H))),
    "h of rank 3": lambda m: m(X[0], HX),
    "c of rank 0": lambda m: m(X[0], (HX[0][0], zeros(()))),
}


@pytest.mark.parametrize("call", CELL_AS_TORCH.values(), ids=CELL_AS_TORCH)
def test_cell_refuses_as_nn_lstm_cell(call: Call, no_kernel: None) -> None:
    assert_refused_as_by_torch(call, FusedLSTMCell(D, H), nn.LSTMCell(D, H))


# In our own words: nn.LSTM has no such argument, or fails in the words of something beneath it.


def lengths(*values: Any, dtype: torch.dtype = torch.int64) -> dict[str, Tensor]:
    return {"lengths": torch.tensor(values, dtype=dtype)}


OTHER_DTYPE = "{} must have input's dtype, torch.float32, got torch.float64"
OUR_OWN: dict[str, tuple[Call, type[Exception], str]] = {
    "h_0 of another dtype": (
        lambda m: m(X, (HX[0].double(), HX[1])),
        RuntimeError,
        OTHER_DTYPE.format("h_0"),
    ),
    "c_0 of another dtype": (
        lambda m: m(X, (HX[0], HX[1].double())),
        RuntimeError,
        OTHER_DTYPE.format("c_0"),
    ),
    "states in one tensor": (
        lambda m: m(X, torch.stack(HX)),
        TypeError,
        "lstm: hx must be a tuple of two tensors, (h_0, c_0), got a tensor",
    ),
    "one weight of another dtype": (
        with_weight(Tensor.double),
        RuntimeError,
        OTHER_DTYPE.format("b_hh"),
    ),
    "complex module": (
        lambda m: m.to(torch.complex64)(X.to(torch.complex64)),
        TypeError,
        "input must be float32, float64, bfloat16 or float16, got torch.complex64",
    ),
    "lengths that are a list": (
        lambda m: m(X, lengths=[4, 2]),
        TypeError,
        "lengths must be a tensor, got list",
    ),
    "lengths of float dtype": (
        lambda m: m(X, **lengths(4, 2, dtype=torch.float32)),
        TypeError,
        "lengths must be int32 or int64, got torch.float32",
    ),
    "lengths of bool dtype": (
        lambda m: m(X, **lengths(1, 1, dtype=torch.bool)),
        TypeError,
        "lengths must be int32 or int64, got torch.bool",
    ),
    "too many lengths": (
        lambda m: m(X, **lengths(4, 2, 1)),
        ValueError,
        "lengths must have shape (2,), got (3,)",
    ),
    "lengths of rank 2": (
        lambda m: m(X, **lengths([4], [2])),
        ValueError,
        "lengths must have 1 dimension, got 2",
    ),
    "lengths of rank 0": (
        lambda m: m(X, lengths=torch.tensor(4)),
        ValueError,
        "lengths must have 1 dimension, got 0",
    ),
    "lengths and a PackedSequence": (
        lambda m: m(PACKED, **lengths(4, 2)),
        ValueError,
        "lengths does not go with a PackedSequence, got both; pass padded input instead",
    ),
    "lengths and unbatched input": (
        lambda m: m(X[:, 0], **lengths(4)),
        ValueError,
        "lengths needs batched 3-D input, got unbatched 2-D input",
    ),
    "reset_mask that is a list": (
        lambda m: m(X, reset_mask=[[True]]),
        TypeError,
        "reset_mask must be a tensor, got list",
    ),
    "reset_mask that is a list, unbatched input": (
        lambda m: m(X[:, 0], reset_mask=[True]),
        TypeError,
        "reset_mask must be a tensor, got list",
    ),
    "reset_mask of integer dtype": (
        lambda m: m(X, reset_mask=MASK.long()),
        TypeError,
        "reset_mask must be bool, got torch.int64",
    ),
    "reset_mask of float dtype": (
        lambda m: m(X, reset_mask=MASK.float()),
        TypeError,
        "reset_mask must be bool, got torch.float32",
    ),
    "reset_mask transposed": (
        lambda m: m(X, reset_mask=MASK.t()),
        ValueError,
        "reset_mask must have shape (4, 2), got (2, 4)",
    ),
    "reset_mask of rank 3": (
        lambda m: m(X, reset_mask=MASK.unsqueeze(-1)),
        ValueError,
        "reset_mask must have shape (4, 2), got (4, 2, 1)",
    ),
    "reset_mask on another device": (
        lambda m: m(X, reset_mask=MASK.to("meta")),
        RuntimeError,
        "reset_mask must be on cpu, as input is, got meta",
    ),
    "reset_mask and a PackedSequence": (
        lambda m: m(PACKED, reset_mask=MASK),
        ValueError,
        "reset_mask does not go with a PackedSequence, got both; pass padded input instead",
    ),
    "packed, rows of h_0": (
        lambda m: m(PACKED, (zeros(1, 3, H), HX[1])),
        RuntimeError,
        "Expected hidden[0] size (1, 2, 5), got [1, 3, 5]",
    ),
    "packed, size of c_0": (
        lambda m: m(PACKED, (HX[0], zeros(1, 2, H + 1))),
        RuntimeError,
        "Expected hidden[1] size (1, 2, 5), got [1, 2, 6]",
    ),
    "packed, rank of h_0": (
        lambda m: m(PACKED, (zeros(2, H), HX[1])),
        RuntimeError,
        "Expected hidden[0] size (1, 2, 5), got [2, 5]",
    ),
    "packed, features": (
        lambda m: m(pack_padded_sequence(zeros(4, 2, D + 1), torch.tensor([4, 2]))),
        RuntimeError,
        "input.size(-1) must be equal to input_size. Expected 3, got 4",
    ),
    "packed, dtype": (
        lambda m: m(PACKED.double()),
        ValueError,
        "RNN input dtype (torch.float64) does not match weight dtype (torch.float32). "
        "Convert input: input.to(torch.float32), or convert model: model.to(torch.float64)",
    ),
}


@pytest.mark.parametrize(("call", "kind", "message"), OUR_OWN.values(), ids=OUR_OWN)
def test_forward_refuses_in_its_own_words(
    call: Call, kind: type[Exception], message: str, no_kernel: None
) -> None:
    assert outcome(lambda: call(FusedLSTM(D, H))) == (kind, message)


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((4, 5), "lengths must be between 0 and T = 4, got 5 for row 1"),
        ((-1, 4), "lengths must be between 0 and T = 4, got -1 for row 0"),
        ((2**40, 4), "lengths must be between 0 and T = 4, got 1099511627776 for row 0"),
        ((-(2**63), 4), "lengths must be between 0 and T = 4, got -9223372036854775808 for row 0"),
    ],
)
def test_lengths_out_of_range_are_refused_by_the_first_op(
    values: tuple[int, ...],
    message: str,
    num_layers: int,
    grad: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their values are read where they are needed, so that no other layer has to wait for them."""
    op, finished = native.lstm_forward_op, []

    def run(*arguments: Any) -> Any:
        result = op(*arguments)
        finished.append(result)
        return result

    monkeypatch.setattr(native, "lstm_forward_op", run)
    module = FusedLSTM(D, H, num_layers=num_layers).requires_grad_(grad)
    assert outcome(lambda: module(X, **lengths(*values))) == (RuntimeError, message)
    assert not finished


def test_reset_mask_is_refused_by_the_shape_that_was_given(no_kernel: None) -> None:
    """Not by the shape that it has inside, where unbatched input has got a batch dimension."""
    for mask in (MASK, MASK[:3, 0]):
        kind, message = outcome(lambda mask=mask: FusedLSTM(D, H)(X[:, 0], reset_mask=mask))  # type: ignore[misc]
        assert kind is ValueError
        assert message.startswith("reset_mask must have shape")
        assert message.endswith(f"got {tuple(mask.shape)}")


# Accepted and right. Memory layouts are in test_parity.py, a NaN in a row in test_determinism.py.


@pytest.mark.parametrize(
    "options", [{}, {"proj_size": 2}, {"num_layers": 2, "bidirectional": True}], ids=str
)
@pytest.mark.parametrize("sizes", [(4, 0, D), (1, 0, 70), (40, 0, D)], ids=str)
def test_empty_batch_trains(options: dict[str, Any], sizes: tuple[int, ...], isa: str) -> None:
    module = FusedLSTM(sizes[-1], 40, **options)
    x = zeros(sizes, requires_grad=True)
    y, (h_n, c_n), cells = module(x, lengths=zeros(0, dtype=torch.int64), return_cell_states=True)
    (y.sum() + h_n.sum() + c_n.sum() + cells.sum()).backward()
    theirs = module.to_torch()(x)
    assert (y.shape, h_n.shape, c_n.shape) == (theirs[0].shape, *(s.shape for s in theirs[1]))
    assert x.grad is not None
    assert x.grad.shape == x.shape
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()
