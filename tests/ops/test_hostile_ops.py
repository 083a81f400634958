# SPDX-License-Identifier: BSD-3-Clause
"""The raw ops and plans, called with what no module would hand them: errors, never a signal."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kit.process import run_python
from kit.settings import use_threads
from torch import Tensor

from lstm_fused._ops import native
from lstm_fused.info import cuda_plan_text

forward_op = torch.ops.lstm_fused.lstm_forward
inference_op = torch.ops.lstm_fused.lstm_inference
backward_op = torch.ops.lstm_fused.lstm_backward
samples_op = torch.ops.lstm_fused.lstm_sample_gradients

T, N, D, H = 3, 2, 4, 5
TOO_LARGE = "are too large for one call"


def arguments(**changes: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "input": torch.randn(T, N, D),
        "h_0": torch.randn(1, N, H),
        "c_0": torch.randn(1, N, H),
        "weights": [torch.randn(4 * H, D), torch.randn(4 * H, H)]
        + [torch.randn(4 * H) for _ in range(2)],
        "lengths": torch.tensor([3, 1]),
        "batch_sizes": None,
        "reset_mask": torch.zeros(T, N, dtype=torch.bool),
    } | changes


def run_forward(given: dict[str, Any]) -> tuple[Tensor, ...]:
    result: tuple[Tensor, ...] = forward_op(*given.values(), True, True)
    return result


def backward_arguments(given: dict[str, Any]) -> dict[str, Any]:
    y, h_n, c_n, cell_states, gates, cells = run_forward(given)
    grads = {"grad_y": y, "grad_h_n": h_n, "grad_c_n": c_n, "grad_cell_states": cell_states}
    grads = {name: torch.ones_like(tensor) for name, tensor in grads.items()}
    return grads | given | {"y": y, "gates": gates, "cells": cells}


def tensors_of(given: dict[str, Any]) -> dict[str, Tensor]:
    found = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    return found | {f"weights[{i}]": weight for i, weight in enumerate(given["weights"])}


@pytest.mark.parametrize("hidden", [2**40, 2**61, 2**62, 2**63 - 1])
def test_sizes_whose_products_overflow(hidden: int) -> None:
    """4·H is 0 for H = 2**62, so that weights without rows have the right shape."""
    state = torch.zeros(1, 0, hidden)
    weights = [torch.zeros(0, D), torch.zeros(0, hidden)]
    with pytest.raises(RuntimeError, match=TOO_LARGE):
        forward_op(torch.zeros(T, 0, D), state, state, weights, None, None, None, True, False)
    with pytest.raises(RuntimeError):
        inference_op(torch.zeros(T, 0, D), state, state, weights, 1)


def test_a_batch_without_rows_has_no_steps_to_go_through() -> None:
    """T = 2**38 steps neither take time nor memory."""
    steps = 2**38
    given = arguments(
        input=torch.zeros(steps, 0, D),
        h_0=torch.zeros(1, 0, H),
        c_0=torch.zeros(1, 0, H),
        lengths=None,
        reset_mask=torch.zeros(steps, 0, dtype=torch.bool),
    )
    call = backward_arguments(given)
    assert call["y"].shape == (steps, 0, H)
    grad_input, grad_h_0, grad_c_0, grad_weights = backward_op(*call.values(), True, True, True)
    assert grad_input.shape == (steps, 0, D)
    assert grad_h_0.shape == grad_c_0.shape == (1, 0, H)
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in grad_weights)


def test_batch_sizes_that_overflow() -> None:
    """Four times 2**62 rows add up to the 0 of the input."""
    changes = {"input": torch.zeros(0, D), "lengths": None, "reset_mask": None}
    batch_sizes = torch.full((4,), 2**62)
    with pytest.raises(RuntimeError, match="batch_sizes must not exceed the 2 rows of h_0"):
        run_forward(arguments(**changes, batch_sizes=batch_sizes))


@pytest.mark.parametrize("samples", [0, -1, 3, 2**31, 2**62, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("rows", [0, N])
def test_samples(samples: int, rows: int) -> None:
    given = arguments(
        input=torch.zeros(T, rows, D),
        h_0=torch.zeros(1, rows, H),
        c_0=torch.zeros(1, rows, H),
        lengths=None,
        reset_mask=None,
    )
    call = backward_arguments(given)
    if rows == 0 and samples == 3:
        *_, grads = samples_op(*call.values(), True, True, samples)
        assert [grad.shape[0] for grad in grads] == [3] * 4
        assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in grads)
    else:
        with pytest.raises(RuntimeError, match=r"samples must be|too large|can't allocate memory"):
            samples_op(*call.values(), True, True, samples)


@pytest.mark.parametrize("left", ["nothing", "too little"])
@pytest.mark.parametrize("expanded", [False, True])
def test_tensors_whose_storage_is_resized(left: str, expanded: bool) -> None:
    """Every tensor that an op reads, of every op."""
    given = arguments()
    calls: list[tuple[Callable[..., Any], dict[str, Any], tuple[Any, ...]]] = [
        (forward_op, given, (True, True)),
        (backward_op, backward_arguments(given), (True, True, True)),
        (samples_op, backward_arguments(given), (True, True, 2)),
        (inference_op, {name: given[name] for name in ("input", "h_0", "c_0", "weights")}, (1,)),
    ]
    for op, call, flags in calls:
        for name, tensor in tensors_of(call).items():
            size = tensor.untyped_storage().nbytes()
            resized = tensor.clone()
            if expanded:  # read through strides: reversed dimensions
                order = list(range(tensor.dim()))[::-1]
                resized = tensor.permute(order).contiguous().permute(order)
                if resized.is_contiguous():
                    continue
            changed = dict(call)
            if name.startswith("weights"):
                changed["weights"] = list(call["weights"])
                changed["weights"][int(name[8:-1])] = resized
            else:
                changed[name] = resized
            op(*changed.values(), *flags)
            kept = 0 if left == "nothing" else size - tensor.element_size()
            resized.untyped_storage().resize_(kept)
            with pytest.raises(RuntimeError, match=f"must have {size} bytes of storage .* {kept}"):
                op(*changed.values(), *flags)


def test_saved_rows_past_the_lengths_are_zero() -> None:
    given = arguments()
    for _ in range(3):
        garbage = [torch.full((size,), 3e30) for size in (10, 100, 4 * H * T * N, H * T * N)]
        del garbage
        *_, gates, cells = run_forward(given)
        data_rows = int(given["lengths"].sum())
        assert gates[:, :data_rows].ne(0).all()
        assert gates[:, data_rows:].eq(0).all()
        assert cells[:, data_rows:].eq(0).all()


@pytest.mark.parametrize("other", [None, [3, 3], [1, 3], [2, 2], [0, 3]])
def test_backward_of_other_lengths_reads_no_garbage(other: list[int] | None) -> None:
    """What it gives is of no use, but it is the same each time, and of the gradients' size."""
    given = arguments()
    results = []
    for fill in (3e30, float("nan")):
        garbage = [torch.full((size,), fill) for size in (4 * H * T * N, H * T * N) * 4]
        del garbage
        call = backward_arguments(given)
        call["lengths"] = None if other is None else torch.tensor(other)
        results.append(backward_op(*call.values(), True, True, True))
    for first, second in zip(*map(torch.utils._pytree.tree_leaves, results), strict=True):
        assert torch.equal(first, second)
        assert first.abs().max() < 1e3


HOSTILE_NUMBERS = (-(2**63), -1, 0, 1, 7, 2**31 - 1, 2**31, 2**40, 2**60, 2**62, 2**63 - 1)


def test_plans_of_hostile_numbers() -> None:
    """Every pair of hostile numbers gives a plan or a sentence."""
    code = f"""
import itertools
from lstm_fused._ops import native
numbers = {HOSTILE_NUMBERS}
usual = [4, 3, 5, 6, 0]
facts = dict(major=9, minor=0, sm_count=132, shared_per_sm=233472, shared_per_block=232448,
             registers_per_sm=65536, max_threads_per_sm=2048, l2_bytes=52428800)
def attempt(function, *arguments):
    try:
        assert len(function(*arguments)) > 20
    except RuntimeError as error:
        assert len(str(error)) > 20 and " got " in str(error), error
    except TypeError as error:
        assert "incompatible function arguments" in str(error), error
for i, j in itertools.combinations(range(5), 2):
    for a, b in itertools.product(numbers, repeat=2):
        sizes = list(usual)
        sizes[i], sizes[j] = a, b
        for dtype, directions, backward in itertools.product(
            ("float64", "bfloat16"), (1, 2), (False, True)
        ):
            call = (*sizes, directions, dtype)
            attempt(native.compiled.plan_text, *call, 2, backward)
            attempt(native.compiled.cuda_plan_text, *call, True, True, backward, facts, False)
for a in numbers:
    for sizes in ([4, 3, 5, 6, 0], [100, 64, 512, 1024, 0], [100, 64, 512, 1024, 256]):
        for backward in (False, True):
            attempt(native.compiled.plan_text, *sizes, 1, "float32", a, backward)
            attempt(native.compiled.plan_text, *sizes, a, "float32", 2, backward)
            attempt(native.compiled.plan_text, *sizes, 1, "float32", 2, backward, a)
            attempt(native.compiled.cuda_plan_text, *sizes, a, "float32", True, True, backward,
                    facts, False)
            for name, b in itertools.product(facts, numbers):
                hostile = facts | {{"sm_count": b, name: a}}
                for dtype in ("float16", "float64"):
                    for cell in (0, 2):
                        attempt(native.compiled.cuda_plan_text, *sizes, 2, dtype, True, True,
                                backward, hostile, False, "", "", cell)
            attempt(native.compiled.cuda_plan_text, *sizes, 1, "float32", True, True, backward,
                    facts, False, "", "", a)
print("survived")
"""
    assert run_python(code) == "survived\n"


@pytest.mark.parametrize("dtype", ["nan", "", "float32\0", "float8", "Float32", "ﬂoat32"])
def test_plans_of_no_dtype(dtype: str) -> None:
    assert native.compiled is not None
    with pytest.raises(RuntimeError, match="dtype must be float32, float64, bfloat16 or float16"):
        native.compiled.plan_text(1, 1, 1, 1, 0, 1, dtype, 1, False)


def test_device_facts_that_are_none() -> None:
    facts = {"major": 9, "minor": 0, "sm_count": 0, "shared_per_sm": 233472}
    facts |= {"shared_per_block": 232448, "registers_per_sm": 65536}
    facts |= {"max_threads_per_sm": 2048, "l2_bytes": 52428800}
    with pytest.raises(RuntimeError, match="sm_count must be between 1 and 65536, got 0"):
        cuda_plan_text(4, 4, 4, 4, 0, 1, "float32", False, facts)
    del facts["sm_count"]
    with pytest.raises(RuntimeError, match="device facts must hold sm_count"):
        cuda_plan_text(4, 4, 4, 4, 0, 1, "float32", False, facts)


def to_quantized(tensor: Tensor) -> Tensor:
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse": Tensor.to_sparse,
    "quantized": to_quantized,
    "mkldnn": Tensor.to_mkldnn,
    "complex": lambda tensor: tensor.to(torch.complex64),
    "float8": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "uint8": lambda tensor: tensor.to(torch.uint8),
    "0-dimensional": lambda tensor: torch.tensor(1.0),
    "5-dimensional": lambda tensor: torch.zeros(1, 1, 1, 1, 1),
    "4-dimensional": lambda tensor: tensor.expand(1, *(1,) * (3 - tensor.dim()), *tensor.shape),
    "1-dimensional": lambda tensor: tensor.flatten()[:1],
}


@pytest.mark.parametrize("form", FORMS)
def test_tensors_of_other_forms(form: str) -> None:
    """One tensor at a time, in every place of every op."""
    given = arguments()
    backward = backward_arguments(given)
    calls: list[tuple[Callable[..., Any], dict[str, Any], tuple[Any, ...]]] = [
        (forward_op, given, (True, True)),
        (backward_op, backward, (True, True, True)),
        (samples_op, backward, (True, True, 2)),
        (inference_op, {name: given[name] for name in ("input", "h_0", "c_0", "weights")}, (1,)),
    ]
    for op, call, flags in calls:
        for name, tensor in tensors_of(call).items():
            if form in ("mkldnn", "quantized") and not tensor.is_floating_point():
                continue
            try:
                other = FORMS[form](tensor)
            except RuntimeError:
                continue  # torch makes no such tensor
            changed = dict(call)
            if name.startswith("weights"):
                changed["weights"] = list(call["weights"])
                changed["weights"][int(name[8:-1])] = other
            else:
                changed[name] = other
            with pytest.raises((RuntimeError, NotImplementedError)):
                op(*changed.values(), *flags)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 6, 7, 9, 11, 100])
def test_lists_of_another_length(count: int) -> None:
    given = arguments()
    weights = (given["weights"] * 25)[:count]
    for directions in (1, 2):
        states = {"h_0": torch.zeros(directions, N, H), "c_0": torch.zeros(directions, N, H)}
        changed = given | states | {"weights": weights}
        if (directions, count) == (1, 2):
            continue
        with pytest.raises(RuntimeError, match=r"weights must hold|must have shape"):
            run_forward(changed)


@pytest.mark.parametrize("directions", [0, -1, 3, 2**31 + 1, 2**32 + 1, 2**63 - 1])
def test_directions_that_no_int_holds(directions: int) -> None:
    """2**32 + 1 is 1 as an int."""
    given = arguments()
    with pytest.raises(RuntimeError, match="directions must be 1 or 2"):
        inference_op(given["input"], None, None, given["weights"], directions)
    if 0 < directions < 2**40:
        wide = torch.zeros(1, 1, 1).expand(directions, N, H)
        with pytest.raises(RuntimeError, match=f"1 or 2 directions, got {directions}"):
            run_forward(arguments(h_0=wide))


def test_every_kind_of_strides_gives_the_same_bits() -> None:
    given = arguments()
    expected = run_forward(given)
    for name, tensor in tensors_of(given).items():
        padded = torch.empty(*tensor.shape, 2, dtype=tensor.dtype)[..., 1]
        padded.copy_(tensor)
        changed = dict(given)
        if name.startswith("weights"):
            changed["weights"] = list(given["weights"])
            changed["weights"][int(name[8:-1])] = padded
        else:
            changed[name] = padded
        for threads in (1, 2):
            with use_threads(threads):
                results = run_forward(changed)
        for result, bits in zip(results, expected, strict=True):
            assert torch.equal(result, bits), name
