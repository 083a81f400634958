# SPDX-License-Identifier: BSD-3-Clause
"""One layer as a composite of torch's operations, and its derivatives of any order by torch's own
autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lstm_fused import reference
from lstm_fused._ops import native
from lstm_fused._ops.op_checks import check_layer, check_values
from lstm_fused._torch.autocast import without_autocast
from lstm_fused._torch.private import is_batched_gradient
from lstm_fused.autograd.arguments import (
    IncomingGradients,
    LayerArguments,
    LayerGradient,
    LayerMasks,
    Needs,
    SavedLayer,
    SecondGradient,
)
from lstm_fused.packing import pack_rows, packed_lengths, packed_positions, pad_rows


def composite_first_derivative(
    given: Sequence[int],
    incoming: Sequence[Tensor],
    variables: Sequence[Tensor],
    masks: LayerMasks,
) -> tuple[Tensor, ...]:
    """The composite's gradient: of input, h_0, c_0 and the weights, from the incoming gradients of
    those results of `composite_layer` whose indices are given."""

    def layer(*variables: Tensor) -> tuple[Tensor, ...]:
        outputs = composite_layer(variables, masks)
        return tuple(outputs[k] for k in given)

    results: tuple[Tensor, ...] = torch.func.vjp(layer, *variables)[1](tuple(incoming))
    return results


def composite_second_derivative(
    grad_grads: LayerGradient,
    grads: IncomingGradients,
    saved: SavedLayer,
    weights: Sequence[Tensor],
) -> SecondGradient:
    """`second_derivative` by the composite, which can be differentiated, batched and traced
    further; slower. It does not use what was saved, whose derivatives autograd lacks."""
    given = [k for k, grad in enumerate(grads) if grad is not None]
    wanted = [k for k, grad in enumerate(grad_grads.flatten()) if grad is not None]

    def wanted_results(*arguments: Tensor) -> tuple[Tensor, ...]:
        incoming, variables = arguments[: len(given)], arguments[len(given) :]
        results = composite_first_derivative(given, incoming, variables, saved.masks)
        return tuple(results[k] for k in wanted)

    # NOTE: torch.func and not torch.autograd.grad, which functorch's transforms cannot enter.
    variables = (saved.input, saved.h_0, saved.c_0, *weights)
    pull_back = torch.func.vjp(wanted_results, *(grads[k] for k in given), *variables)[1]
    second = pull_back(tuple(grad_grads.flatten()[k] for k in wanted))
    by_given = dict(zip(given, second, strict=False))
    return SecondGradient(
        [by_given.get(k) for k in range(len(grads))],
        LayerGradient.from_flat(second[len(given) :]),
    )


def forward_mode_derivative(
    function: Callable[..., tuple[Tensor, ...]],
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:
    """The derivative of function at the primals in the direction of the tangents (None: zero).

    NOTE: by reverse mode alone, since a jvp rule cannot enter forward mode itself: the pull-back
    u -> Jᵀu is linear, and its own pull-back takes a tangent v to Jv.
    """
    outputs, pull_back, *_ = torch.func.vjp(function, *primals)
    zeros = tuple(torch.zeros_like(output) for output in outputs)
    _, push_forward, *_ = torch.func.vjp(pull_back, zeros)
    directions = tuple(
        torch.zeros_like(p) if t is None else t for p, t in zip(primals, tangents, strict=True)
    )
    # NOTE: copies, because forward mode asks for the base of a view, which these no longer have.
    return tuple(result.clone() for result in push_forward(directions)[0])


def is_legacy_batched(grad: Tensor | None) -> bool:
    """Whether a gradient is many at once, in torch.autograd.grad(is_grads_batched=True)."""
    return grad is not None and is_batched_gradient(grad)


def composite_gradient(
    grads: IncomingGradients, saved: SavedLayer, weights: Sequence[Tensor], needs: Needs
) -> LayerGradient:
    """The gradient of `composite_layer` by autograd.

    For many gradients at once, in torch.autograd.grad(is_grads_batched=True) and
    jacobian(vectorize=True): their batching knows torch's own operations, and no rules for others.
    """
    variables = (saved.input, saved.h_0, saved.c_0, *weights)
    needed = (needs.input, needs.states, needs.states, *[needs.weights] * len(weights))
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        outputs = composite_layer(variables, saved.masks)
    given = [
        (output, grad) for output, grad in zip(outputs, grads, strict=True) if grad is not None
    ]
    # Some of the weights may be frozen, though gradients of the weights are asked for.
    wanted = [v.requires_grad and need for v, need in zip(variables, needed, strict=True)]
    found = iter(
        torch.autograd.grad(
            [output for output, _ in given],
            [variable for variable, want in zip(variables, wanted, strict=True) if want],
            [grad for _, grad in given],
            create_graph=create_graph,
            allow_unused=True,
        )
    )
    grad_input, grad_h_0, grad_c_0, *grad_weights = (
        next(found) if want else None for want in wanted
    )
    return LayerGradient(grad_input, grad_h_0, grad_c_0, grad_weights)


def check_without_kernels(arguments: LayerArguments, weights: Sequence[Tensor]) -> None:
    """Checks a call on a device without kernels, which plain torch operations are to run.

    Raises:
        RuntimeError: what the ops raise, in their sentences; or it is a CUDA device whose kernels
            are missing where others are there.
    """
    native.check_cuda_kernels(arguments.input.device)
    masks = arguments.masks
    check_layer(arguments.input, arguments.h_0, arguments.c_0, weights, *masks)
    check_values(arguments.input, arguments.h_0.shape[1], masks.lengths, masks.batch_sizes)


def composite_layer(
    variables: Sequence[Tensor], masks: LayerMasks
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`lstm_layer` as a composite of torch's operations, on any device.

    16-bit types compute in float32, as the kernels accumulate.

    Args:
        variables: input, h_0, c_0, and the weights.
    """
    with without_autocast(variables[0].device):
        return _composite_layer(variables, masks)


def _composite_layer(
    variables: Sequence[Tensor], masks: LayerMasks
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = variables[0].dtype
    if dtype in (torch.bfloat16, torch.float16):
        outputs = _composite_layer([variable.float() for variable in variables], masks)
        y, h_n, c_n, cell_states = (t.to(dtype) for t in outputs)
        return y, h_n, c_n, cell_states
    input, h_0, c_0, *weights = variables
    lengths, batch_sizes, reset_mask = masks
    if batch_sizes is None:
        return reference.lstm_layer(
            input, h_0, c_0, weights, lengths=lengths, reset_mask=reset_mask
        )
    batch, steps = h_0.shape[1], batch_sizes.numel()
    positions = packed_positions(batch_sizes, batch).to(input.device)
    padded = pad_rows(input, positions, steps, batch)
    y, h_n, c_n, cell_states = reference.lstm_layer(
        padded, h_0, c_0, weights, lengths=packed_lengths(batch_sizes, batch).to(input.device)
    )
    return pack_rows(y, positions), h_n, c_n, pack_rows(cell_states, positions)
