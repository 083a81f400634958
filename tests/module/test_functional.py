# SPDX-License-Identifier: BSD-3-Clause
"""The stateless form: its own checks, the checks where no kernel runs, and `explain`'s."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kit.twins import assert_same, make_twins
from torch import Tensor, nn, zeros
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

import lstm_fused
from lstm_fused import FusedLSTM, FusedLSTMCell
from lstm_fused._ops import native
from lstm_fused.functional import lstm

D, H, P = 3, 5, 2
X = zeros(4, 2, D)
forward_op: Any = torch.ops.lstm_fused.lstm_forward.default
backward_op: Any = torch.ops.lstm_fused.lstm_backward.default


def states(runs: int = 1, rows: int = 2, h: int = H) -> tuple[Tensor, Tensor]:
    return zeros(runs, rows, h), zeros(runs, rows, H)


def layer(inputs: int = D, h: int = H, bias: bool = True) -> list[Tensor]:
    """The weights of one direction; with projection where h is not H."""
    weights = [zeros(4 * H, inputs), zeros(4 * H, h)]
    weights += [zeros(4 * H), zeros(4 * H)] if bias else []
    return weights + ([zeros(h, H)] if h != H else [])


BATCH_SIZES = torch.tensor([2, 2])
# Call, exception, how its message begins.
REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "no layers": (lambda: lstm(X, states(), layer(), num_layers=0), ValueError, "num_layers must"),
    "half a layer": (
        lambda: lstm(X, states(), layer(), num_layers=1.5),  # type: ignore[arg-type]
        ValueError,
        "num_layers must be an integer of at least 1, got 1.5",
    ),
    "dropout is no number": (
        lambda: lstm(X, states(2), layer() + layer(H), num_layers=2, dropout=float("nan")),
        ValueError,
        "dropout must be a number between 0 and 1, got nan",
    ),
    "dropout above 1": (
        lambda: lstm(X, states(), layer(), dropout=1.5),
        ValueError,
        "dropout must be a number between 0 and 1, got 1.5",
    ),
    "states in one tensor": (
        lambda: lstm(X, zeros(2, 1, 2, H), layer()),  # type: ignore[arg-type]
        TypeError,
        "hx must be two tensors, h_0 and c_0, got a tensor",
    ),
    "no states": (
        lambda: lstm(X, None, layer()),  # type: ignore[arg-type]
        TypeError,
        "hx must be two tensors, h_0 and c_0, got None",
    ),
    "no input": (
        lambda: lstm(None, states(), layer()),  # type: ignore[arg-type]
        TypeError,
        "input must be a tensor, got NoneType",
    ),
    "one state": (
        lambda: lstm(X, states()[:1], layer()),  # type: ignore[arg-type]
        TypeError,
        "hx must be two tensors, h_0 and c_0, got 1 values",
    ),
    "weights None": (
        lambda: lstm(X, states(), [None] * 4),  # type: ignore[list-item]
        TypeError,
        "hx and weights must hold tensors, got NoneType",
    ),
    "states of more layers": (
        lambda: lstm(X, states(4), layer() + layer(H), num_layers=2),
        ValueError,
        "h_0 must have 3 dimensions, the first of size num_layers * directions = 2",
    ),
    "c_0 of rank 2": (
        lambda: lstm(X, (states()[0], states()[1][0]), layer()),
        ValueError,
        "c_0 must have 3 dimensions",
    ),
    "both directions' weights for one": (
        lambda: lstm(X, states(), layer() + layer()),
        ValueError,
        "weights must hold 2 to 5 tensors for each of 1 layers and 1 directions, got 8",
    ),
    "one weight too many": (
        lambda: lstm(X, states(2), [*layer(), *layer(H), zeros(1)], num_layers=2),
        ValueError,
        "weights must hold 2 to 5 tensors for each of 2 layers and 1 directions, got 9",
    ),
    "no weights": (lambda: lstm(X, states(), []), ValueError, "weights must hold 2 to 5"),
    "input of rank 2": (
        lambda: lstm(X[0], states(), layer()),
        ValueError,
        "input must have 3 dimensions, got 2",
    ),
    "packed data of rank 3": (
        lambda: lstm(X, states(), layer(), batch_sizes=BATCH_SIZES),
        ValueError,
        "input must have 2 dimensions, got 3",
    ),
    "batch_sizes in a list": (
        lambda: lstm(X[0], states(), layer(), batch_sizes=[1, 1]),  # type: ignore[arg-type]
        TypeError,
        "batch_sizes must be a tensor, got list",
    ),
    "batch_sizes of float": (
        lambda: lstm(X[0], states(), layer(), batch_sizes=BATCH_SIZES.float()),
        TypeError,
        "batch_sizes must be int32 or int64, got torch.float32",
    ),
    "batch_sizes of rank 2": (
        lambda: lstm(X[0], states(), layer(), batch_sizes=BATCH_SIZES[None]),
        ValueError,
        "batch_sizes must have 1 dimension, got 2",
    ),
    "batch_sizes elsewhere": (
        lambda: lstm(X[0], states(), layer(), batch_sizes=BATCH_SIZES.to("meta")),
        RuntimeError,
        "batch_sizes must be on the CPU, got meta",
    ),
    "batch_sizes and lengths": (
        lambda: lstm(X[0], states(), layer(), batch_sizes=BATCH_SIZES, lengths=BATCH_SIZES),
        ValueError,
        "lengths does not go with a PackedSequence, got both",
    ),
    "lengths without values": (
        lambda: lstm(X, states(), layer(), lengths=BATCH_SIZES.to("meta")),
        RuntimeError,
        "lengths must hold values, as input on cpu does, got meta",
    ),
    "a weight without values": (
        lambda: lstm(X, states(), [w.to("meta") for w in layer()]),
        RuntimeError,
        "Input and parameter tensors are not at the same device",
    ),
}
# What the op refuses, and the Python twin of its checks wherever no op runs.
REFUSED_BY_THE_OP: dict[str, tuple[Callable[[], object], str]] = {
    "h_0 of other size without projection": (
        lambda: lstm(X, states(h=P), layer(h=P)[:-1]),
        f"h_0 must have hidden_size = {H} features without projection, got {P}",
    ),
    "h_0 of other rows": (
        lambda: lstm(X, (zeros(1, 3, H), zeros(1, 3, H)), layer()),
        "h_0 must hold 2 rows as input does, got 3",
    ),
    "c_0 of other rows": (
        lambda: lstm(X, (zeros(1, 2, H), zeros(1, 3, H)), layer()),
        f"c_0 must have shape (1, 2, {H}), got (1, 3, {H})",
    ),
    "w_ih of other features": (
        lambda: lstm(X, states(), layer(D + 1)),
        f"w_ih must have shape ({4 * H}, {D}), got ({4 * H}, {D + 1})",
    ),
    "w_hh of other rows": (
        lambda: lstm(X, states(), [zeros(4 * H, D), zeros(3 * H, H)]),
        f"w_hh must have shape ({4 * H}, {H}), got ({3 * H}, {H})",
    ),
    "b_ih of other rank": (
        lambda: lstm(X, states(), [*layer()[:2], zeros(4 * H, 1), zeros(4 * H)]),
        f"b_ih must have shape ({4 * H},), got ({4 * H}, 1)",
    ),
    "b_hh of other size": (
        lambda: lstm(X, states(), [*layer()[:3], zeros(H)]),
        f"b_hh must have shape ({4 * H},), got ({H},)",
    ),
    "w_hr transposed": (
        lambda: lstm(X, states(h=P), [*layer(h=P)[:-1], zeros(H, P)]),
        f"w_hr must have shape ({P}, {H}), got ({H}, {P})",
    ),
    "no features": (
        lambda: lstm(X[..., :0], states(), layer(0)),
        "input must have at least 1 feature, got 0",
    ),
    "no steps": (
        lambda: lstm(zeros(0, D), states(), layer(), batch_sizes=BATCH_SIZES[:0]),
        "Expected sequence length to be larger than 0 in RNN",
    ),
}
# Values, which fakes do not have.
REFUSED_BY_VALUE: dict[str, tuple[Callable[[], object], str]] = {
    "lengths too long": (
        lambda: lstm(X, states(), layer(), lengths=torch.tensor([4, 5])),
        "lengths must be between 0 and T = 4, got 5 for row 1",
    ),
    "lengths negative": (
        lambda: lstm(X, states(), layer(), lengths=torch.tensor([-1, 4])),
        "lengths must be between 0 and T = 4, got -1 for row 0",
    ),
    "batch_sizes rising": (
        lambda: lstm(zeros(3, D), states(), layer(), batch_sizes=torch.tensor([1, 2])),
        "batch_sizes must be positive and never increase, got 2 at step 1",
    ),
    "batch_sizes of zero": (
        lambda: lstm(zeros(2, D), states(), layer(), batch_sizes=torch.tensor([2, 0])),
        "batch_sizes must be positive and never increase, got 0 at step 1",
    ),
    "batch_sizes of fewer rows": (
        lambda: lstm(zeros(5, D), states(), layer(), batch_sizes=BATCH_SIZES),
        "batch_sizes must add up to 5 rows of input, got 4",
    ),
    "batch_sizes of more rows than states": (
        lambda: lstm(zeros(6, D), states(), layer(), batch_sizes=torch.tensor([3, 3])),
        "batch_sizes must not exceed the 2 rows of h_0, got 3",
    ),
}


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_lstm_refuses(call: Callable[[], object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value).startswith(message)


@pytest.fixture(params=["kernels", "no kernels"])
def with_or_without_kernels(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if request.param == "no kernels":
        monkeypatch.setattr(native, "has_kernels", lambda device: False)
        monkeypatch.setattr(native, "lstm_inference_op", None)


BY_THE_OP = REFUSED_BY_THE_OP | REFUSED_BY_VALUE


@pytest.mark.usefixtures("with_or_without_kernels")
@pytest.mark.parametrize(("call", "message"), BY_THE_OP.values(), ids=BY_THE_OP)
def test_op_and_fallback_refuse_in_the_same_words(call: Callable[[], object], message: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        call()
    assert str(caught.value).splitlines()[0] == message


@pytest.mark.parametrize(("call", "message"), REFUSED_BY_THE_OP.values(), ids=REFUSED_BY_THE_OP)
def test_fake_op_refuses_in_the_same_words(call: Callable[[], object], message: str) -> None:
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "X", X.to("meta"))
        with pytest.raises(RuntimeError) as caught:
            call()
    assert str(caught.value).splitlines()[0] == message


BAD_MASKS: dict[str, Tensor] = {
    "lengths must be int32 or int64, got": torch.ones(2),
    "lengths must have 1 dimension, got 2": torch.ones(2, 1, dtype=torch.int64),
    "reset_mask must be bool, got": torch.zeros(4, 2),
    "reset_mask must have shape (4, 2), got (2, 4)": torch.zeros(2, 4, dtype=torch.bool),
    "batch_sizes must have 1 dimension, got 2": torch.ones(2, 1, dtype=torch.int64),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("message", "mask"), BAD_MASKS.items(), ids=BAD_MASKS)
def test_op_refuses_masks(message: str, mask: Tensor, device: str) -> None:
    names = ("lengths", "batch_sizes", "reset_mask")
    masks = [mask if message.startswith(name) else None for name in names]
    input = X[0] if masks[1] is not None else X
    x, h_0, c_0, *weights = (t.to(device) for t in (input, *states(), *layer()))
    if masks[1] is None:
        masks = [None if m is None else m.to(device) for m in masks]
    with pytest.raises(RuntimeError, match=re.escape(message)):
        forward_op(x, h_0, c_0, weights, *masks, False, False)


def test_fake_op_refuses_two_devices() -> None:
    """Without this check the op would take the meta key and give CPU tensors that nobody wrote."""
    for at in range(1, 6):
        arguments = [X, *states(), *layer()]
        arguments[at] = arguments[at].to("meta")
        with pytest.raises(RuntimeError, match="must be on cpu, as input is, got meta"):
            forward_op(*arguments[:3], arguments[3:], None, None, None, True, True)


@pytest.mark.parametrize("at", [0, 1, 2, 3, 11, 12, 13])
def test_fake_backward_refuses_two_devices(at: int) -> None:
    y, h_n, c_n, cell_states, gates, cells = forward_op(
        X, *states(), layer(), None, None, None, True, True
    )
    grads = [torch.ones_like(t) for t in (y, h_n, c_n, cell_states)]
    arguments = [*grads, X, *states(), layer(), None, None, None, y, gates, cells]
    arguments[at] = arguments[at].to("meta")
    with pytest.raises(RuntimeError, match="must be on cpu, as input is, got meta"):
        backward_op(*arguments, True, True, True)


@pytest.mark.parametrize("options", [{}, {"proj_size": P}, {"bidirectional": True}], ids=str)
def test_fallback_computes_what_the_kernels_do(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = make_twins(num_layers=2, **options)
    x = torch.randn(5, 3, ours.input_size, dtype=torch.float64)
    packed = pack_padded_sequence(x, torch.tensor([5, 3, 1]))
    monkeypatch.setattr(native, "has_kernels", lambda device: False)
    monkeypatch.setattr(native, "lstm_inference_op", None)
    assert_same(ours(x), theirs(x))
    assert_same(ours(packed), theirs(packed))


# What `explain` says is what the call would do.


def test_explain_names_the_kernels(isa: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = FusedLSTM(3, 5, num_layers=2, bidirectional=True)
    packed = pack_padded_sequence(torch.randn(7, 2, 3), torch.tensor([7, 3]))
    for x in (torch.randn(7, 2, 3), packed):
        text = lstm_fused.explain(module, x)
        assert capsys.readouterr().out == text + "\n"
        assert "float32: T=7 N=2 layers=2 directions=2 threads=1" in text
        lines = text.splitlines()[1:]
        if x is not packed:
            assert lines.pop() == (
                "  stack, without gradients: layers one after the other (one thread allowed)"
            )
        assert len(lines) == 4
        kernels = "avx512" if isa == "avx512_bf16" else isa  # which is for bfloat16 alone
        assert all(f"H=5: {kernels}, " in line for line in lines)
    assert "T=1 N=4" in lstm_fused.explain(FusedLSTMCell(3, 5), torch.randn(4, 3))


def test_explain_names_what_the_backward_does_after_the_recurrence() -> None:
    module = FusedLSTM(16, 32, bidirectional=True, proj_size=8)
    text = lstm_fused.explain(module, zeros(200, 64, 16))
    forward, backward = text.splitlines()[1:]
    assert " pieces of " not in forward
    assert re.search(r", pieces of \d+ step\(s\), gradients by \d+ thread\(s\)", backward)
    assert "of weights in blocks of 256 rows, of W_hr in blocks of 256 rows (" in backward
    assert "stay in a cache)" in backward
    # Rows of different lengths, and two directions of 16 bits, go in one piece.
    packed = pack_sequence([zeros(200, 16), zeros(199, 16)])
    for call in (
        lambda: lstm_fused.explain(module, packed),
        lambda: lstm_fused.explain(module.bfloat16(), zeros(200, 64, 16, dtype=torch.bfloat16)),
    ):
        assert ", all steps in one piece, " in call().splitlines()[2]


def test_explain_follows_autocast() -> None:
    module = FusedLSTM(D, H)
    assert lstm_fused.explain(module, X).startswith("cpu, float32: T=4 N=2")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert lstm_fused.explain(module, X).startswith("cpu, bfloat16: ")
        assert lstm_fused.explain(module.double(), X.double()).startswith("cpu, float64: ")


def test_explain_takes_packed_sequences() -> None:
    packed = pack_sequence([zeros(4, D), zeros(2, D)])
    text = lstm_fused.explain(FusedLSTM(D, H, batch_first=True), packed)
    assert text.startswith("cpu, float32: T=4 N=2")


def test_explain_does_not_run_hooks() -> None:
    module = FusedLSTM(D, H)
    module.register_forward_hook(lambda *_: pytest.fail("a hook ran"))
    lstm_fused.explain(module, X)


def test_explain_refuses_what_the_call_would() -> None:
    with pytest.raises(TypeError, match="explain takes a FusedLSTM or a FusedLSTMCell, got LSTM"):
        lstm_fused.explain(nn.LSTM(D, H), X)  # type: ignore[arg-type]
    for bad, kind in ((X[..., 1:], RuntimeError), (X.double(), ValueError), (X[:0], RuntimeError)):
        with pytest.raises(kind):
            lstm_fused.explain(FusedLSTM(D, H), bad)
    with pytest.raises(RuntimeError, match="inconsistent input_size"):
        lstm_fused.explain(FusedLSTMCell(D, H), zeros(2, D + 1))


def test_sizes_past_32_bits_are_counted_in_64() -> None:
    """Shapes of 2^31 elements and more, without their memory; offsets are tested in C++."""
    steps, rows = 2**22, 2**11
    y, (h_n, _), cells = FusedLSTM(D, H, bidirectional=True, device="meta")(
        torch.empty(steps, rows, D, device="meta"), return_cell_states=True
    )
    assert y.shape == cells.shape == (steps, rows, 2 * H)
    assert (y.numel(), y.stride()) == (2**33 * 2 * H, (rows * 2 * H, 2 * H, 1))
    assert h_n.shape == (2, rows, H)
    for backward in (False, True):
        plan = native.compiled.plan_text(  # type: ignore[union-attr]
            steps, rows, 512, 512, 0, 1, "float32", 2, backward
        )
        # Rows or units are split, as the caches of this machine suggest.
        assert "2 row group(s)" in plan or "team of 2" in plan, "the work is for two threads"
