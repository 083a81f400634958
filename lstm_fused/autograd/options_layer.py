# SPDX-License-Identifier: BSD-3-Clause
"""One layer whose cell has options, as a differentiable function.

The forward and the first derivative run in kernels of their own, which the plain layer does not
meet. Beyond them, in transforms, and on devices without such kernels, autograd differentiates
`lstm_fused.reference_options`. Eagerly and under torch.compile the same Function is the autograd:
directly, or as that of an op, for the reasons that `compiled_layer` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lstm_fused import reference_options
from lstm_fused._ops import native
from lstm_fused._ops.arguments import OptionsForwardArguments
from lstm_fused._torch.autocast import without_autocast
from lstm_fused._torch.private import (
    are_transforms_active,
    below_autograd,
    count_dispatch_modes,
    is_forward_mode_on,
    single_level_apply,
    unwrap_if_dead,
)
from lstm_fused.autograd.arguments import (
    TENSOR_TYPES,
    LayerArguments,
    LayerResults,
    LayerTensors,
    unflatten,
)
from lstm_fused.autograd.compiled_layer import is_exporting
from lstm_fused.autograd.composite import check_without_kernels, is_legacy_batched
from lstm_fused.autograd.eager_function import (
    copy_arguments_in_trace,
    copy_in_trace,
    guard_output,
    output_was_overwritten,
)
from lstm_fused.autograd.function_apply import within_transforms
from lstm_fused.packing import pack_rows, packed_lengths, packed_positions, pad_rows
from lstm_fused.reference_options import OPTION_TENSORS, LayerOptions

# NOTE: what it is traced to cannot change under one name: see `eager_function.copy_op`.
_NAME = "lstm_options_layer_v2"

_ARGUMENTS = len(LayerArguments._fields)
_OPTIONS = len(LayerOptions._fields)
_SAVED = 5  # y, gates, cells, normalised, scales


def options_layer(
    arguments: LayerArguments, options: LayerOptions, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs one layer, as `layer.lstm_layer` does; options are taken as checked, and of input's
    dtype."""
    if not has_option_kernels(arguments.input.device):
        check_without_kernels(arguments, weights)
        return composite_options_layer(arguments.tensors, options, weights)
    flat = (*arguments, *options, *weights)
    tensors = [a for a in flat if isinstance(a, Tensor)]
    is_compiling = torch.compiler.is_compiling()
    is_plain = all(type(t) in TENSOR_TYPES for t in tensors)
    if is_forward_mode_on() or (not is_compiling and (are_transforms_active() or not is_plain)):
        return composite_options_layer(arguments.tensors, options, weights)
    is_exported = is_compiling and is_exporting()  # to a program, which has no backward
    if is_compiling and not is_exported:
        results = options_layer_op(*_for_op(arguments, options, weights, False))
    elif not is_exported and torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        results = _apply_eagerly(*(unwrap_if_dead(a) if isinstance(a, Tensor) else a for a in flat))
        if not arguments.return_cell_states:
            results = (*results, results[0].new_empty(0))
    else:
        results = native.lstm_options_forward_op(*_for_op(arguments, options, weights, False))
    y, h_n, c_n, cell_states, *_ = results
    return y, h_n, c_n, cell_states


def options_layer_eagerly(
    arguments: LayerArguments, options: LayerOptions, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """y, h_n and c_n of :func:`options_layer`, in a call that may take the fast path
    (`fast_path.can_run`): without what the others need to find out."""
    if not all(type(weight) in TENSOR_TYPES for weight in weights):
        return options_layer(arguments, options, weights)[:3]
    if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
        tensors = (arguments.input, arguments.h_0, arguments.c_0, *options.tensors)
        if weights[0].requires_grad or any(
            tensor is not None and tensor.requires_grad for tensor in (*weights, *tensors)
        ):
            input, h_0, c_0, *own = (t if t is None else unwrap_if_dead(t) for t in tensors)
            results: tuple[Tensor, Tensor, Tensor] = _apply_eagerly(
                *(input, h_0, c_0, *arguments[3:], *own, *options[OPTION_TENSORS:]),
                *map(unwrap_if_dead, weights),
            )
            return results
    y, h_n, c_n, *_ = native.lstm_options_forward_op(*_for_op(arguments, options, weights, False))
    return y, h_n, c_n


def has_option_kernels(device: torch.device) -> bool:
    """Whether kernels serve options there: where they serve the plain layer."""
    return native.has_kernels(device)


def run_with_options(
    arguments: LayerArguments, options: LayerOptions, weights: Sequence[Tensor]
) -> LayerResults:
    """A layer by the kernels, without a graph, with what a backward reads."""
    if not has_option_kernels(arguments.input.device):
        raise RuntimeError(
            f"this installation has no kernels for options of the cell on {arguments.input.device}"
        )
    results = native.lstm_options_forward_op(*_for_op(arguments, options, weights, True))
    return LayerResults._make(results[: len(LayerResults._fields)])


def composite_options_layer(
    tensors: LayerTensors, options: LayerOptions, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`options_layer` as a composite of torch's operations, on any device. 16-bit types
    compute in float32, as the kernels accumulate."""
    with without_autocast(tensors.input.device):
        return _composite(tensors, options, weights)


def _composite(
    tensors: LayerTensors, options: LayerOptions, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = tensors.input.dtype
    if dtype in (torch.bfloat16, torch.float16):
        wide = tensors._replace(
            input=tensors.input.float(), h_0=tensors.h_0.float(), c_0=tensors.c_0.float()
        )
        wide_options = LayerOptions._make(
            o.float() if isinstance(o, Tensor) and o.is_floating_point() else o for o in options
        )
        outputs = _composite(wide, wide_options, [weight.float() for weight in weights])
        y, h_n, c_n, cell_states = (t.to(dtype) for t in outputs)
        return y, h_n, c_n, cell_states
    input, h_0, c_0, lengths, batch_sizes, reset_mask = tensors
    if batch_sizes is None:
        return reference_options.lstm_layer(
            input, h_0, c_0, weights, options, lengths=lengths, reset_mask=reset_mask
        )
    batch, steps = h_0.shape[1], batch_sizes.numel()
    positions = packed_positions(batch_sizes, batch).to(input.device)
    padded = pad_rows(input, positions, steps, batch)

    def padded_flags(keep: Tensor | None) -> Tensor | None:
        if keep is None:
            return None
        rows = [pad_rows(own, positions, steps, batch).flatten(0, 1) for own in keep]
        return torch.stack(rows)

    options = options._replace(
        keep_c=padded_flags(options.keep_c), keep_h=padded_flags(options.keep_h)
    )
    y, h_n, c_n, cell_states = reference_options.lstm_layer(
        padded,
        h_0,
        c_0,
        weights,
        options,
        lengths=packed_lengths(batch_sizes, batch).to(input.device),
    )
    return pack_rows(y, positions), h_n, c_n, pack_rows(cell_states, positions)


class OptionsFunction(torch.autograd.Function):
    """apply(*LayerArguments, *LayerOptions, *weights) -> (y, h_n, c_n, cell_states, gates, cells,
    normalised, scales), of which the last four, and cell_states unless they are returned, carry no
    gradient.

    y may be overwritten afterwards: the backward then makes it anew.
    """

    @staticmethod
    def forward(ctx: Any, *flat: Any) -> tuple[Tensor, ...]:
        results = _run_forward(ctx, flat)
        returns_cell_states = ctx.flags[0]
        ctx.mark_non_differentiable(*results[4 if returns_cell_states else 3 :])
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors, rest = unflatten(ctx.saved_tensors, LayerTensors)
        options = LayerOptions._make((*rest[:OPTION_TENSORS], *ctx.scalars))
        saved, weights = (
            rest[OPTION_TENSORS : OPTION_TENSORS + _SAVED],
            rest[OPTION_TENSORS + _SAVED :],
        )
        arguments = LayerArguments(*tensors, *ctx.flags)
        incoming = [*grads[:3], grads[3] if arguments.return_cell_states else None]
        if torch.is_grad_enabled() or (
            not torch.compiler.is_compiling() and any(map(is_legacy_batched, incoming))
        ):
            return _composite_gradient(ctx, incoming, tensors, options, weights)
        if output_was_overwritten(ctx) or saved[1].dim() < 3:
            # The forward once more: to the same bits, since its masks are given.
            again = arguments._replace(recompute=False)
            y, _, _, _, *for_backward = native.lstm_options_forward_op(
                *_for_op(again, options, weights, True)
            )
            saved = (y, *for_backward)
        needs = ctx.needs_input_grad
        need_states = needs[1] or needs[2]
        option_needs = needs[_ARGUMENTS : _ARGUMENTS + OPTION_TENSORS]
        need_weights = any(needs[_ARGUMENTS + _OPTIONS :])
        grad_input, grad_h_0, grad_c_0, grad_weights, *grad_options = (
            native.lstm_options_backward_op(
                *incoming,
                *(tensors.input, tensors.h_0, tensors.c_0, list(weights), *tensors.masks),
                *(*options.tensors, *ctx.scalars, *saved),
                *(needs[0], need_states, need_weights, any(option_needs)),
            )
        )
        found = [g if g.numel() else None for g in grad_options]
        peephole, reset_h, reset_c, gains, cell_norm = found
        return (
            grad_input if needs[0] else None,
            grad_h_0 if need_states else None,
            grad_c_0 if need_states else None,
            *(None,) * (_ARGUMENTS - 3),
            *(peephole, None, None, None, reset_h, reset_c, gains, cell_norm),
            *(None,) * (_OPTIONS - OPTION_TENSORS),
            *(grad_weights if need_weights else [None] * len(weights)),
        )


class EagerOptionsFunction(OptionsFunction):
    """:class:`OptionsFunction` without the results that carry no gradient, which cost half a
    microsecond each."""

    @staticmethod
    def forward(ctx: Any, *flat: Any) -> tuple[Tensor, ...]:
        results = _run_forward(ctx, flat)
        returns_cell_states = ctx.flags[0]
        return results[: 4 if returns_cell_states else 3]


_apply = single_level_apply(OptionsFunction)
_apply_eagerly = single_level_apply(EagerOptionsFunction)


def _run_forward(ctx: Any, flat: Sequence[Any]) -> tuple[Tensor, ...]:
    """Runs the kernels, and saves what the backward reads."""
    weights: Sequence[Tensor]
    arguments, options, weights = _split(flat)
    if count_dispatch_modes() > 0:
        copies = map(copy_in_trace, options.tensors)
        options = LayerOptions._make((*copies, *options[OPTION_TENSORS:]))
        arguments, weights = copy_arguments_in_trace(arguments, weights)
    y, h_n, c_n, cell_states, *for_backward = native.lstm_options_forward_op(
        *_for_op(arguments, options, weights, True)
    )
    ctx.set_materialize_grads(False)
    saved_y, y, ctx.was_overwritten = guard_output(y, arguments)
    ctx.flags = arguments[len(LayerTensors._fields) :]
    ctx.scalars = options[OPTION_TENSORS:]
    ctx.save_for_backward(*arguments.tensors, *options.tensors, saved_y, *for_backward, *weights)
    return y, h_n, c_n, cell_states, *for_backward


def _composite_gradient(
    ctx: Any,
    grads: Sequence[Tensor | None],
    tensors: LayerTensors,
    options: LayerOptions,
    weights: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:
    """The gradient by autograd through the composite; differentiable where grad mode is on."""
    create_graph = torch.is_grad_enabled()
    no_flags = (None,) * (_ARGUMENTS - len(tensors))
    arguments: tuple[Any, ...] = (*tensors, *no_flags, *options, *weights)
    with torch.enable_grad():
        outputs = composite_options_layer(tensors, options, weights)
    given = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None]
    wanted = [
        need and isinstance(a, Tensor) and a.requires_grad
        for a, need in zip(arguments, ctx.needs_input_grad, strict=True)
    ]
    found = iter(
        torch.autograd.grad(
            [output for output, _ in given],
            [a for a, want in zip(arguments, wanted, strict=True) if want],
            [grad for _, grad in given],
            create_graph=create_graph,
            allow_unused=True,
        )
    )
    return tuple(next(found) if want else None for want in wanted)


def _split(flat: Sequence[Any]) -> tuple[LayerArguments, LayerOptions, list[Any]]:
    arguments, options, weights = unflatten(flat, LayerArguments, LayerOptions)
    return arguments, options, list(weights)


def _for_op(
    arguments: LayerArguments,
    options: LayerOptions,
    weights: Sequence[Tensor],
    save_for_backward: bool,
) -> tuple[Any, ...]:
    """The arguments of the op lstm_options_forward."""
    recompute = arguments.recompute and save_for_backward
    return (
        *(arguments.input, arguments.h_0, arguments.c_0, list(weights), *arguments.masks),
        *(*options.tensors, *options[OPTION_TENSORS:]),
        *(save_for_backward, arguments.return_cell_states, recompute),
    )


def _differentiate(*op_arguments: Any) -> tuple[Tensor, ...]:
    """The op's autograd."""
    given = OptionsForwardArguments._make(op_arguments)
    input, h_0, c_0, weights = given[:4]
    options = LayerOptions._make(getattr(given, name) for name in LayerOptions._fields)
    tensors = options.tensors
    arguments = LayerArguments.from_op(given.plain)
    variables = (input, h_0, c_0, *weights, *(t for t in tensors if t is not None))
    if are_transforms_active():
        results = composite_options_layer(arguments.tensors, options, weights)
        return (*results, *(input.new_empty(0) for _ in range(_SAVED - 1)))
    if torch.is_grad_enabled() and any(v.requires_grad for v in variables):
        with within_transforms():
            return _apply(*arguments, *options, *weights)  # type: ignore[no-any-return]
    if below_autograd is None:
        return native.lstm_options_forward_op(*op_arguments)  # type: ignore[no-any-return]
    with below_autograd():
        return options_layer_op(*op_arguments)  # type: ignore[no-any-return]


options_layer_op: Any = None
if native.compiled is not None:
    if not hasattr(torch.ops.lstm_fused, _NAME):  # else another copy of this package has it
        _library: Any = torch.library.Library("lstm_fused", "FRAGMENT")  # type: ignore[no-untyped-call]
        _library.define(
            f"{_NAME}(Tensor input, Tensor h_0, Tensor c_0, Tensor[] weights, Tensor? lengths, "
            "Tensor? batch_sizes, Tensor? reset_mask, Tensor? peephole, Tensor? h_mask, "
            "Tensor? keep_c, Tensor? keep_h, Tensor? reset_h, Tensor? reset_c, Tensor? gains, "
            "Tensor? cell_norm, bool coupled_gates, float cell_clip, float zoneout_c, "
            "float zoneout_h, bool save_for_backward, bool return_cell_states, bool recompute) -> "
            "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
        )
        _library.impl(_NAME, native.lstm_options_forward_op, "CompositeExplicitAutograd")
        _library.impl(_NAME, _differentiate, "Autograd")
    options_layer_op = getattr(torch.ops.lstm_fused, _NAME).default
