# SPDX-License-Identifier: BSD-3-Clause
"""Arguments and truths for the op lstm_sample_gradients, of any device."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kit.cases import LayerCase
from kit.numeric import assert_within_budget
from kit.ops import backward_arguments
from lstm_fused import reference


def sample_arguments(case: LayerCase, packed: bool = False, **changes: Any) -> dict[str, Any]:
    """The backward op's arguments, with random gradients, but for what is needed."""
    arguments = backward_arguments(case, packed, **changes)
    generator = torch.Generator().manual_seed(3)
    for name in ("grad_y", "grad_h_n", "grad_c_n", "grad_cell_states"):
        like = arguments[name]
        arguments[name] = torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)
    return {name: value for name, value in arguments.items() if not name.startswith("need_")}


def sample_truth(
    arguments: dict[str, Any], samples: int, lengths: Tensor | None
) -> Sequence[Tensor]:
    """By the reference in float64, of padded sequences: over the rows of each sample alone."""
    names = ["grad_y", "grad_h_n", "grad_c_n", "grad_cell_states", "input", "h_0", "c_0"]
    tensors = [arguments[name].double() for name in names]
    weights = [weight.double() for weight in arguments["weights"]]
    by_sample = []
    for sample in range(samples):
        rows = slice(sample, None, samples)
        reset_mask = arguments["reset_mask"]
        *_, grad_weights = reference.lstm_layer_backward(
            *(tensor[:, rows] for tensor in tensors),
            weights,
            lengths=None if lengths is None else lengths[rows],
            reset_mask=None if reset_mask is None else reset_mask[:, rows],
        )
        by_sample.append(grad_weights)
    return [torch.stack(grads) for grads in zip(*by_sample, strict=True)]


def assert_exact(found: Sequence[Tensor], truth: Sequence[Tensor], dtype: torch.dtype) -> None:
    for index, (mine, expected) in enumerate(zip(found, truth, strict=True)):
        assert mine.dtype == dtype and mine.is_contiguous()
        assert_within_budget(f"weight {index}", mine, None, expected, dtype)
