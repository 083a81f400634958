# SPDX-License-Identifier: BSD-3-Clause
"""The gradients of the weights for each sample of a batch apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lstm_fused._ops import native
from lstm_fused._torch.autocast import without_autocast


def has_sample_gradients(device: torch.device) -> bool:
    """Whether this device's kernels give the weights' gradients of each sample, and not only what
    they are products of."""
    return device.type != "cuda"


def sample_gradients(
    arguments: Sequence[Any], needs: tuple[bool, bool], samples: int
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """What the op lstm_backward gives for its arguments, but for the weights' gradients: those of
    each sample, (B, …), row n of the batch being of sample n % B. `needs`: input's, states'."""
    if has_sample_gradients(arguments[4].device):
        result = native.lstm_sample_gradients_op(*arguments, *needs, samples)
    else:
        with without_autocast(arguments[4].device):
            grad_input, grad_h_0, grad_c_0, *operands = native.lstm_gate_gradients_op(*arguments)
            grad_weights = weight_gradients_of_samples(operands, arguments[7], samples)
        result = grad_input, grad_h_0, grad_c_0, grad_weights
    return result  # type: ignore[no-any-return]


def weight_gradients_of_samples(
    operands: Sequence[Tensor], weights: Sequence[Tensor], samples: int
) -> list[Tensor]:
    """Products over each sample's own rows, of what lstm_gate_gradients gives."""
    grad_gates, previous, x, grad_output, unprojected = (
        split_rows(t, t.dim() - 2, samples) for t in operands
    )

    def product(left: Tensor, right: Tensor) -> Tensor:  # (rows, B, F), (rows, B, G) -> (B, F, G)
        return left.permute(1, 2, 0) @ right.transpose(0, 1)

    directions = grad_gates.shape[0]
    each = len(weights) // directions
    grads: list[Tensor] = []
    for d in range(directions):
        grads += [product(grad_gates[d], x), product(grad_gates[d], previous[d])]
        if each >= 4:
            grad_bias = grad_gates[d].sum(0)
            grads += [grad_bias, grad_bias.clone()]  # NOTE: two tensors; .grad must not alias
        if each in (3, 5):
            grads.append(product(grad_output[d], unprojected[d]))
    return grads


def split_rows(tensor: Tensor, axis: int, samples: int) -> Tensor:
    """Dimension `axis` of rows·B as two: rows, and B samples."""
    sizes = tensor.shape
    return tensor.view(*sizes[:axis], sizes[axis] // samples, samples, *sizes[axis + 1 :])
