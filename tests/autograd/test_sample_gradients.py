# SPDX-License-Identifier: BSD-3-Clause
"""The op lstm_sample_gradients: the weights' gradients of each sample of a batch, against the
reference's over the rows of that sample alone."""

from typing import Any

import pytest
import torch
from kit.cases import LayerCase
from kit.numeric import assert_bitwise_equal, assert_within_budget
from kit.ops import PACKED, SOME, assert_refused, backward_op
from kit.ours import in_dtype
from kit.sample_gradients import assert_exact, sample_arguments, sample_truth
from kit.settings import DTYPES, use_threads
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

op: Any = torch.ops.lstm_fused.lstm_sample_gradients.default

# Each with numbers of samples that divide its rows.
CASES = [
    (LayerCase(1, 1, 1, 1), (1,)),
    (LayerCase(1, 6, 3, 5), (6, 2)),
    (LayerCase(7, 6, 3, 17), (1, 2, 3, 6)),
    (LayerCase(7, 6, 5, 33, bidirectional=True, lengths=(0, 7, 3, 1, 5, 2), reset=0.3), (3, 6)),
    (LayerCase(6, 4, 40, 9, P=4, bidirectional=True, reset=0.4, poison=True), (2, 4)),
    (LayerCase(5, 4, 3, 20, P=7, lengths=(5, 0, 0, 0), bias=False), (2, 4)),
    # More rows than a block of sums holds, and more columns than a panel.
    (LayerCase(270, 4, 70, 12, lengths=(270, 256, 257, 2)), (2, 4)),
    (LayerCase(9, 5, 70, 130, P=66, lengths=(9, 8, 8, 3, 1), layout="transposed"), (5,)),
    (LayerCase(4, 0, 3, 5), (1, 3)),
]
cases = pytest.mark.parametrize(("case", "samples"), CASES, ids=str)
PACKED_CASES = [(PACKED, (1, 2, 4)), (LayerCase(270, 4, 70, 12, lengths=(270, 257, 256, 2)), (4,))]


def call(arguments: dict[str, Any], samples: int, *needs: bool) -> Any:
    return op(*arguments.values(), *(needs or (True, True)), samples)


@cases
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_the_references(
    case: LayerCase, samples: tuple[int, ...], dtype: torch.dtype, isa: str
) -> None:
    arguments = sample_arguments(in_dtype(case, dtype))
    for count in samples:
        grad_input, grad_h_0, grad_c_0, found = call(arguments, count)
        assert_exact(found, sample_truth(arguments, count, arguments["lengths"]), dtype)
        expected = backward_op(*arguments.values(), True, True, True)
        for mine, bits in zip((grad_input, grad_h_0, grad_c_0), expected, strict=False):
            assert_bitwise_equal(mine, bits)


@pytest.mark.parametrize(("case", "samples"), PACKED_CASES, ids=str)
def test_gradients_of_packed_sequences(case: LayerCase, samples: tuple[int, ...]) -> None:
    arguments = sample_arguments(case, packed=True)
    padded = dict(arguments)
    for name in ("grad_y", "grad_cell_states", "input"):
        data = PackedSequence(arguments[name], arguments["batch_sizes"])
        padded[name], lengths = pad_packed_sequence(data)
    for count in samples:
        assert_exact(call(arguments, count)[3], sample_truth(padded, count, lengths), case.dtype)


@cases
def test_bits_do_not_depend_on_threads(case: LayerCase, samples: tuple[int, ...]) -> None:
    """No bit depends on there being more threads than samples, which then share each of them."""
    arguments = sample_arguments(case)
    for count in samples:
        with use_threads(1):
            expected = call(arguments, count)[3]
        for threads in (2, 5):
            with use_threads(threads):
                found = call(arguments, count)[3]
            for mine, bits in zip(found, expected, strict=True):
                assert_bitwise_equal(mine, bits)


@pytest.mark.parametrize("case", SOME, ids=str)
def test_gradients_add_up_to_those_of_the_batch(case: LayerCase) -> None:
    arguments = sample_arguments(in_dtype(case, torch.float64))
    *_, expected = backward_op(*arguments.values(), True, True, True)
    *_, found = call(arguments, max(case.N, 1))
    for mine, whole in zip(found, expected, strict=True):
        assert_within_budget("sum", mine.sum(0), None, whole, torch.float64)


def test_what_is_not_needed_is_empty() -> None:
    arguments = sample_arguments(SOME[0])
    everything = call(arguments, 3)
    least = call(arguments, 3, False, False)
    assert [t.shape for t in least[:3]] == [(0,)] * 3
    for mine, bits in zip(least[3], everything[3], strict=True):
        assert_bitwise_equal(mine, bits)
    storages = [t.untyped_storage()._cdata for t in (*everything[:3], *everything[3])]
    assert len(set(storages)) == len(storages)


@pytest.mark.parametrize("samples", [0, -1, 2, 4, 7])
def test_samples_that_do_not_divide_the_rows_are_refused(samples: int) -> None:
    message = f"samples must be at least 1 and divide the 3 rows of h_0, got {samples}"
    assert_refused(lambda: call(sample_arguments(SOME[0]), samples), message)


def test_saved_tensors_that_do_not_fit_are_refused() -> None:
    arguments = sample_arguments(SOME[0])
    changed = arguments | {"cells": arguments["cells"][..., :-1]}
    message = "cells must have shape (1, 12, 5), got (1, 12, 4)"
    assert_refused(lambda: call(changed, 3), message)


@pytest.mark.parametrize("case", SOME, ids=str)
def test_opcheck(case: LayerCase) -> None:
    samples = max(case.N, 1)
    for needs in ((True, True), (False, False)):
        torch.library.opcheck(op, (*sample_arguments(case).values(), *needs, samples))


def test_meta_tensors_have_the_real_forms() -> None:
    arguments = sample_arguments(SOME[2])
    meta = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to("meta"), arguments)
    real, fake = (torch.utils._pytree.tree_leaves(call(a, 13)) for a in (arguments, meta))
    assert [(t.shape, t.stride(), t.dtype) for t in real] == [
        (t.shape, t.stride(), t.dtype) for t in fake
    ]
