# SPDX-License-Identifier: BSD-3-Clause
"""One layer as a node of the autograd graph that is built eagerly, and its gradient.

NOTE: a Function without `setup_context`, and without results that carry no gradient, costs 4 us
less than :class:`lstm_fused.FusedLSTMFunction`; and no transform of torch.func takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lstm_fused._ops import native
from lstm_fused._ops.arguments import BackwardArguments
from lstm_fused._torch.private import (
    are_transforms_active,
    count_dispatch_modes,
    is_view,
    version_of,
)
from lstm_fused.autograd.arguments import (
    TENSOR_TYPES,
    IncomingGradients,
    LayerArguments,
    LayerGradient,
    Needs,
    SavedLayer,
    unflatten,
)
from lstm_fused.autograd.backward_function import FusedLSTMBackwardFunction, run_backward_op
from lstm_fused.autograd.composite import composite_gradient, is_legacy_batched
from lstm_fused.autograd.function_apply import apply
from lstm_fused.autograd.needed_gradients import needed_gradients
from lstm_fused.autograd.saved_rows import rebuild_output


class LayerFunction(torch.autograd.Function):
    """apply(*LayerArguments, *weights) -> (y, h_n, c_n), and cell_states if they are returned; as
    in `lstm_layer`.

    y may be overwritten afterwards, as that of nn.LSTM may in most of its configurations: the
    backward then makes it anew.
    """

    @staticmethod
    def forward(ctx: Any, *flat: Any) -> tuple[Tensor, ...]:
        arguments, weights = LayerArguments.split(flat)
        y, h_n, c_n, cell_states, gates, cells = native.lstm_forward_op(
            *arguments.for_op(weights, True)
        )
        ctx.set_materialize_grads(False)
        saved_y, y, ctx.was_overwritten = guard_output(y, arguments)
        ctx.save_for_backward(*arguments.saved(saved_y, gates, cells), *weights)
        return (y, h_n, c_n, cell_states) if arguments.return_cell_states else (y, h_n, c_n)

    @staticmethod
    def backward(
        ctx: Any,
        grad_y: Tensor | None,
        grad_h_n: Tensor | None,
        grad_c_n: Tensor | None,
        grad_cell_states: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        saved, weights = unflatten(ctx.saved_tensors, SavedLayer)
        if output_was_overwritten(ctx):
            with torch.no_grad():
                saved = saved._replace(y=rebuild_output(saved, weights))
        elif torch.is_grad_enabled():
            # The graph of the gradient outlives this check.
            saved = saved._replace(y=saved.y.clone())
        incoming = IncomingGradients(grad_y, grad_h_n, grad_c_n, grad_cell_states)
        needs = needed_gradients(ctx, Needs.of(ctx.needs_input_grad), saved.input, weights)
        return layer_gradient(incoming, saved, weights, needs).for_arguments()


def guard_output(y: Tensor, arguments: LayerArguments) -> tuple[Tensor, Tensor, Callable[[], bool]]:
    """What to save in the place of y, what to give out as y, and what tells then whether that y has
    been overwritten.

    An alias with a version of its own may be unpacked whatever became of y. What tells of y itself
    is a tensor that shares its version but not its memory, which may so be freed.
    """
    if count_dispatch_modes() > 0 or are_transforms_active() or version_of is None:
        # Versions are not traced. A compiler leaves the copy out where nothing is overwritten.
        copy = copy_in_trace(y) if _has_one_row_or_step(arguments) else y
        return y, y.clone() if copy is y else copy, _is_never_overwritten
    if arguments.input.shape[0] == 1 and arguments.batch_sizes is None and y.is_cpu:
        return y.data, y, _is_never_overwritten  # the backward of one step does not read y
    probe, version = y.detach(), version_of(y)
    probe.data = empty_tensor(y.dtype, y.device)
    return y.data, y, lambda: version_of(probe) != version


@cache
def empty_tensor(dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor without elements, which takes a microsecond to make."""
    return torch.empty(0, dtype=dtype, device=device)


def copy_in_trace(tensor: Any) -> Any:
    """A copy in a trace, for the forward and the backward, of a state or a mask, which programs
    change in place from call to call, and of which a layer may see a view: Inductor's views share
    no version with what they show.

    NOTE: by an op of our own, since a partitioner that meets `clone` saves what is cloned, and
    makes the copy in the backward, when it is too late.
    """
    return copy_op(tensor) if _is_of_trace(tensor) else tensor


def copy_arguments_in_trace(
    arguments: LayerArguments, weights: Sequence[Tensor]
) -> tuple[LayerArguments, Sequence[Tensor]]:
    """The arguments and the weights of a layer, with copies in a trace of what `copy_in_trace` is
    for, and of an input and weights that are views."""
    input = arguments.input
    if is_view(input):
        input = copy_in_trace(input)
    copied = arguments._replace(
        input=input,
        h_0=copy_in_trace(arguments.h_0),
        c_0=copy_in_trace(arguments.c_0),
        lengths=copy_in_trace(arguments.lengths),
        batch_sizes=copy_in_trace(arguments.batch_sizes),
        reset_mask=copy_in_trace(arguments.reset_mask),
    )
    return copied, [copy_in_trace(w) if is_view(w) else w for w in weights]


def _is_of_trace(tensor: Any) -> bool:
    """Whether a tensor stands for another in a trace, and is not one of a mode that looks on."""
    return tensor is not None and count_dispatch_modes() > 0 and type(tensor) not in TENSOR_TYPES


def _has_one_row_or_step(arguments: LayerArguments) -> bool:
    """Whether callers may get a view of y, of which nothing needs to be moved for `batch_first` or
    unbatched input."""
    sizes = (arguments.h_0.shape[1], arguments.input.shape[0])
    return any(type(size) is int and size == 1 for size in sizes)


def output_was_overwritten(ctx: Any) -> bool:
    """Whether the y that was saved may have been overwritten."""
    if ctx.was_overwritten is _is_never_overwritten:
        return False
    # Compiled autograd cannot ask at the time of its calls.
    return torch.compiler.is_compiling() or ctx.was_overwritten()


def _is_never_overwritten() -> bool:
    return False


# NOTE: torch keeps compiled graphs on disk, under the names of the ops that they were traced from.
# A change of what an op of ours is traced to needs another number in its name.
copy_op: Any = None
if native.compiled is not None:
    if not hasattr(torch.ops.lstm_fused, "copy_v1"):  # else another copy of this package has it
        _library: Any = torch.library.Library("lstm_fused", "FRAGMENT")  # type: ignore[no-untyped-call]
        _library.define("copy_v1(Tensor tensor) -> Tensor")
        _library.impl(
            "copy_v1",
            lambda tensor: tensor.clone(memory_format=torch.contiguous_format),
            "CompositeExplicitAutograd",
        )
    copy_op = torch.ops.lstm_fused.copy_v1.default


def layer_gradient(
    grads: IncomingGradients, saved: SavedLayer, weights: Sequence[Tensor], needs: Needs
) -> LayerGradient:
    """The gradients of a layer; differentiable where grad mode is on."""
    if not torch.compiler.is_compiling() and any(map(is_legacy_batched, grads)):
        return composite_gradient(grads, saved, weights, needs)
    input, h_0, c_0, *masks_and_saved = saved
    arguments = BackwardArguments._make(
        (*grads, input, h_0, c_0, weights, *masks_and_saved, *needs)
    )
    if not torch.is_grad_enabled():
        grad_input, grad_h_0, grad_c_0, grad_weights = run_backward_op(arguments)
    else:  # create_graph=True: the gradient is to be differentiated
        if torch.compiler.is_compiling():
            result = FusedLSTMBackwardFunction.apply(*arguments.flatten())  # type: ignore[no-untyped-call]
        else:
            result = apply(FusedLSTMBackwardFunction, *arguments.flatten())
        grad_input, grad_h_0, grad_c_0, *grad_weights = result
    return LayerGradient(
        grad_input if needs.input else None,
        grad_h_0 if needs.states else None,
        grad_c_0 if needs.states else None,
        grad_weights if needs.weights else [None] * len(weights),
    )
