# SPDX-License-Identifier: BSD-3-Clause
"""The ops with options and of packed weights, and what is bound beside the ops, called with what no
module would hand them: errors, never a signal or garbage."""

from typing import Any

import pytest
import torch
from kit.process import run_python
from torch import Tensor

from lstm_fused import FusedLSTM, FusedLSTMCell

ops = torch.ops.lstm_fused

T, N, D, H = 3, 2, 4, 5


def options_arguments() -> dict[str, Any]:
    """Those of lstm_options_forward, with layer normalisation and ragged rows."""
    torch.manual_seed(0)
    sizes = [(T, N, D), (1, N, H), (1, N, H)]
    named = dict(zip(("input", "h_0", "c_0"), map(torch.randn, sizes), strict=True))
    weights = [torch.randn(4 * H, D), torch.randn(4 * H, H)]
    absent = ("peephole", "h_mask", "keep_c", "keep_h", "reset_h", "reset_c")
    return {
        **named,
        "weights": weights + [torch.randn(4 * H) for _ in range(2)],
        "lengths": torch.tensor([3, 1]),
        "batch_sizes": None,
        "reset_mask": torch.zeros(T, N, dtype=torch.bool),
        **dict.fromkeys(absent),
        "gains": torch.randn(1, 2, 4 * H),
        "cell_norm": torch.randn(1, 2, H),
        "coupled_gates": False,
        "cell_clip": 0.0,
        "zoneout_c": 0.0,
        "zoneout_h": 0.0,
    }


def options_backward_arguments(given: dict[str, Any]) -> dict[str, Any]:
    results = ops.lstm_options_forward(*given.values(), True, True)
    grads = {
        name: torch.ones_like(result)
        for name, result in zip(
            ("grad_y", "grad_h_n", "grad_c_n", "grad_cell_states"), results, strict=False
        )
    }
    saved = dict(zip(("gates", "cells", "normalised", "scales"), results[4:], strict=True))
    return {**grads, **given, "y": results[0], **saved}


def fill_freed_memory(value: float) -> None:
    """What the allocator gives out next is full of it."""
    sizes = (8 * H * T * N, 4 * H * T * N, H * T * N, 2 * T * N)
    garbage = [torch.full((size,), value) for size in sizes * 8]
    del garbage


def test_saved_norms_past_the_lengths_are_zero() -> None:
    given = options_arguments()
    data_rows = int(given["lengths"].sum())
    for _ in range(3):
        fill_freed_memory(3e30)
        *_, normalised, scales = ops.lstm_options_forward(*given.values(), True, True)
        assert normalised[:, :data_rows].ne(0).any(2).all()
        assert scales[:, :data_rows].ne(0).all()
        assert normalised[:, data_rows:].eq(0).all()
        assert scales[:, data_rows:].eq(0).all()


@pytest.mark.parametrize("other", [None, [3, 3], [0, 3]])
def test_backward_of_other_lengths_reads_no_garbage(other: list[int] | None) -> None:
    given = options_arguments()
    results = []
    for fill in (3e30, float("nan")):
        fill_freed_memory(fill)
        call = options_backward_arguments(given)
        call["lengths"] = None if other is None else torch.tensor(other)
        results.append(ops.lstm_options_backward(*call.values(), True, True, True, True))
    for first, second in zip(*map(torch.utils._pytree.tree_leaves, results), strict=True):
        assert torch.equal(first, second)
        assert first.abs().lt(1e4).all()


@pytest.mark.parametrize("name", ["normalised", "scales", "gates", "y"])
@pytest.mark.parametrize("norms", [False, True])
def test_saved_tensors_without_memory(name: str, norms: bool) -> None:
    """A call with one of them takes the way of fake tensors, whose results nobody computes."""
    given = options_arguments()
    if not norms:
        given["gains"] = given["cell_norm"] = None
    call = options_backward_arguments(given)
    call[name] = call[name].to("meta")
    with pytest.raises(RuntimeError, match=f"{name} must be on cpu, as input is, got meta"):
        ops.lstm_options_backward(*call.values(), True, True, True, True)


def test_fake_norms_of_another_shape() -> None:
    call = options_backward_arguments(options_arguments())
    fake = torch.utils._pytree.tree_map_only(Tensor, lambda tensor: tensor.to("meta"), call)
    for name, other, sentence in (
        ("normalised", torch.empty(1, 2, 3), "normalised must have shape"),
        ("normalised", fake["normalised"].double(), "normalised must have input's dtype"),
        ("scales", torch.empty(1, 2), "scales must have shape"),
        ("scales", fake["scales"].double(), "scales must be torch.float32, got torch.float64"),
        ("gates", torch.empty(0), "gates must have 3 dimensions with options, got 1"),
    ):
        with pytest.raises(RuntimeError, match=sentence):
            ops.lstm_options_backward(
                *(fake | {name: other.to("meta")}).values(), True, True, True, True
            )


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("number", [-(2**63), -1, 0, 3, 2**24, 2**31 - 1, 2**62, 2**63 - 1])
def test_counts_of_an_inference(number: int, device: str) -> None:
    """So many layers or directions would take all memory to list."""
    given = options_arguments()
    tensors = [given[name].to(device) for name in ("input", "h_0", "c_0")]
    weights = [weight.to(device) for weight in given["weights"]]
    few = "must be at least 1" if number < 1 else f"for each of {number} layers"
    with pytest.raises(RuntimeError, match=f"{few}, got"):
        ops.lstm_inference(*tensors, weights, 1, number)
    with pytest.raises(RuntimeError, match=f"directions must be 1 or 2, got {number}"):
        ops.lstm_inference(*tensors, weights, number)


# ------------------------------------------------------------------------------- None for a tensor


def plain_calls() -> dict[str, list[Any]]:
    forward = list(options_arguments().values())[:7]
    y, h_n, c_n, cell_states, gates, cells = ops.lstm_forward(*forward, True, True)
    backward = [y, h_n, c_n, cell_states, *forward, y, gates, cells, True, True]
    weights = forward[3]
    packed = ops.lstm_pack(weights, "int8")
    cell = [torch.zeros(N, D), torch.zeros(N, H), torch.zeros(N, H), weights]
    return {
        "lstm_forward": [*forward, True, True],
        "lstm_inference": [*forward[:4], 1],
        "lstm_backward": [*backward, True],
        "lstm_sample_gradients": [*backward, 2],
        "lstm_options_forward": [*options_arguments().values(), True, True],
        "lstm_cell": [*cell, True],
        "lstm_quantized": [*forward[:3], [packed], *forward[4:], H, H, 1, True],
        "lstm_quantized_cell": [*cell[:3], packed, H],
    }


@pytest.mark.parametrize("name", list(plain_calls()))
def test_none_in_the_place_of_a_tensor(name: str) -> None:
    """torch makes an undefined tensor of it, whose use fails in words that say nothing."""
    arguments = plain_calls()[name]
    schema = getattr(ops, name).default._schema.arguments
    for i, argument in enumerate(schema[: len(arguments)]):
        if str(argument.type) != "Tensor":
            continue
        changed = [*arguments[:i], None, *arguments[i + 1 :]]
        with pytest.raises(RuntimeError) as caught:
            getattr(ops, name)(*changed)
        assert str(caught.value) == f"argument {i + 1} of the op must be a tensor, got None"


# ------------------------------------------------------------------------------------------- plans

HOSTILE_PLANS = """
import itertools
from lstm_fused._ops import native
numbers = (-(2**63), -(2**31), -1, 0, 1, 7, 2**31 - 1, 2**40, 2**62, 2**63 - 1)
usual = [40, 3, 5, 6, 0]
def attempt(function, *arguments):
    try:
        assert len(function(*arguments)) > 20
        return True
    except RuntimeError as error:
        assert len(str(error)) > 20 and " got " in str(error), error
    except TypeError as error:
        assert "incompatible function arguments" in str(error), error
core = native.compiled
for i, j in itertools.combinations(range(5), 2):
    for a, b in itertools.product(numbers, repeat=2):
        sizes = list(usual)
        sizes[i], sizes[j] = a, b
        made = [attempt(core.stack_text, *sizes, 1, 3, "bfloat16", 2)]
        made.append(attempt(core.quantized_plan_text, *sizes, 2, "int8", 2))
        made.append(attempt(core.plan_text, *sizes, 1, "float32", 2, False))
        assert not any(made) or min(sizes) >= 0, sizes
for a, b in itertools.product(numbers, repeat=2):
    for layers in (a, 2**16, 2**16 + 1, 2**24):
        made = attempt(core.stack_text, *usual, 1, layers, "float32", b)
        assert not made or 1 <= layers <= 2**16, layers
    attempt(core.stack_text, *usual, a, 2, "float32", b)
    attempt(core.quantized_plan_text, *usual, a, "float16", b)
print("survived")
"""


def test_plans_of_stacks_and_packed_weights_of_hostile_numbers() -> None:
    """They are made in no time and of no negative numbers."""
    assert run_python(HOSTILE_PLANS, timeout=100) == "survived\n"


# ----------------------------------------------------------------------------------------- streams

HOSTILE_STREAMS = """
import torch
from lstm_fused import FusedLSTM, quantize
module = FusedLSTM(4, 6, num_layers=2)
stream = module.stream(2)._core
others = [
    FusedLSTM(4, 6, num_layers=2).stream(3)._core,
    FusedLSTM(4, 6).stream(2)._core,
    FusedLSTM(4, 60, num_layers=2).stream(2)._core,
    FusedLSTM(4, 6, num_layers=2, proj_size=3).stream(2)._core,
    FusedLSTM(4, 6, num_layers=2).double().stream(2)._core,
]
h = torch.zeros(1000)
at = h.data_ptr()
calls = [lambda layer=layer: stream.get_state(layer, at, at) for layer in (-1, 2, 2**40, -2**63)]
calls += [lambda layer=layer: stream.set_state(layer, at, at) for layer in (-1, 2, 2**40, -2**63)]
calls += [lambda: stream.get_state(0, 0, at), lambda: stream.get_state(0, at, 0)]
calls += [lambda: stream.set_state(0, 0, at)]
calls += [lambda: stream.step(0, at), lambda: stream.step(at, 0)]
calls += [lambda: type(stream).packed([(0, 10000)], 1)]
calls += [lambda other=other: stream.copy_state(other) for other in others]
calls += [lambda other=other: other.copy_state(stream) for other in others]
for i, call in enumerate(calls):
    try:
        call()
    except RuntimeError as error:
        assert " got " in str(error), error
    else:
        raise AssertionError(f"call {i} went through")
stream.get_state(1, at, at)
stream.set_state(1, at, at)
stream.copy_state(FusedLSTM(4, 6, num_layers=2).stream(2)._core)
print("survived")
"""


def test_streams_of_hostile_numbers() -> None:
    assert run_python(HOSTILE_STREAMS) == "survived\n"


@pytest.mark.parametrize("module", [FusedLSTM(4, 6), FusedLSTMCell(4, 6)], ids=["layer", "cell"])
def test_a_stream_writes_within_the_memory_of_its_result(module: Any) -> None:
    stream = module.stream(2)
    x, out = torch.randn(2, 4), torch.zeros(2, 6)
    stream.step(x, out)
    out.untyped_storage().resize_(4)
    with pytest.raises(ValueError, match="out must have 48 bytes of storage, got 4"):
        stream.step(x, out)


# ---------------------------------------------------------------------------------- packed weights


@pytest.mark.parametrize("scale", [0.0, -0.0, float("nan"), float("inf"), 1e30, 1e-3, 1e-45])
def test_scales_that_do_not_give_the_weights(scale: float) -> None:
    """Integers of 8 bits times such a scale are not the weights."""
    integers = torch.randint(-127, 128, (4 * H, D)).float()
    integers[3] = torch.tensor([127.0, -128.0, 5.0, 0.0])
    weights = [integers * 0.25, torch.zeros(4 * H, H)]
    scales = torch.full((4 * H,), 0.25)
    packed = ops.lstm_pack(weights, "int8", scales, torch.zeros(4 * H))
    assert torch.equal(ops.lstm_unpack(packed)[0], weights[0])
    scales[3] = scale
    with pytest.raises(RuntimeError, match="w_ih must be integers from -128 to 127 times scales"):
        ops.lstm_pack(weights, "int8", scales, torch.zeros(4 * H))
