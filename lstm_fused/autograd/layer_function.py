# SPDX-License-Identifier: BSD-3-Clause
"""One layer as a node of the autograd graph that is built eagerly, and its gradient.

NOTE: what has no `setup_context`, and no results that carry no gradient, costs 4 us less than
:class:`lstm_fused.FusedLSTMFunction`; and no transform of torch.func takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lstm_fused._ops import native
from lstm_fused._torch.private import are_transforms_active, count_dispatch_modes, version_of
from lstm_fused.autograd.backward_function import FusedLSTMBackwardFunction
from lstm_fused.autograd.composite import is_legacy_batched, reference_gradient
from lstm_fused.autograd.function_apply import apply
from lstm_fused.autograd.needed_gradients import Needs, needed_gradients
from lstm_fused.autograd.saved_rows import rebuild_output


class SavedLayer(NamedTuple):
    """What the backward of a layer reads, but for the weights."""

    input: Tensor
    h_0: Tensor
    c_0: Tensor
    lengths: Tensor | None
    batch_sizes: Tensor | None
    reset_mask: Tensor | None
    y: Tensor
    gates: Tensor
    cells: Tensor

    @property
    def masks(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return self.lengths, self.batch_sizes, self.reset_mask


class LayerGradient(NamedTuple):
    """Gradients; those of what needs none are None, or empty tensors."""

    input: Tensor | None
    h_0: Tensor | None
    c_0: Tensor | None
    weights: Sequence[Tensor | None]


def unpack_saved(saved_tensors: Sequence[Any]) -> tuple[SavedLayer, list[Tensor]]:
    count = len(SavedLayer._fields)
    return SavedLayer._make(saved_tensors[:count]), list(saved_tensors[count:])


class LayerFunction(torch.autograd.Function):
    """apply(input, h_0, c_0, lengths, batch_sizes, reset_mask, return_cell_states, recompute,
    *weights) -> (y, h_n, c_n), and cell_states if they are returned; as in `lstm_layer`.

    y may be overwritten afterwards, as that of nn.LSTM may in most of its configurations: the
    backward then makes it anew.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        h_0: Tensor,
        c_0: Tensor,
        lengths: Tensor | None,
        batch_sizes: Tensor | None,
        reset_mask: Tensor | None,
        return_cell_states: bool,
        recompute: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        masks = (lengths, batch_sizes, reset_mask)
        y, h_n, c_n, cell_states, gates, cells = native.lstm_forward_op(
            input, h_0, c_0, weights, *masks, True, return_cell_states, recompute
        )
        ctx.set_materialize_grads(False)
        kept, y, ctx.is_overwritten = keep(SavedLayer(input, h_0, c_0, *masks, y, gates, cells))
        ctx.save_for_backward(*kept, *weights)
        return (y, h_n, c_n, cell_states) if return_cell_states else (y, h_n, c_n)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, weights = unpack_saved(ctx.saved_tensors)
        if is_lost(ctx):
            with torch.no_grad():
                y = rebuild_output(
                    *saved[:3], weights, saved.masks, gates=saved.gates, cells=saved.cells
                )
            saved = saved._replace(y=y)
        elif torch.is_grad_enabled():
            # The graph of the gradient outlives this check.
            saved = saved._replace(y=saved.y.clone())
        own = ctx.needs_input_grad
        may_need = Needs(own[0], own[1] or own[2], any(own[8:]))
        result = layer_gradient(
            (*grads, None)[:4], saved, weights, needed_gradients(ctx, may_need, len(weights))
        )
        return *result[:3], *([None] * 5), *result.weights


def keep(saved: SavedLayer) -> tuple[SavedLayer, Tensor, Callable[[], bool]]:
    """What to save, what to hand out as y, and what tells then whether that y has been overwritten.

    An alias with a version of its own may be unpacked whatever became of y. What tells of y itself
    is a tensor that shares its version but not its memory, which may so be freed.
    """
    y = saved.y
    if count_dispatch_modes() > 0 or are_transforms_active() or version_of is None:
        # Versions are not traced. A compiler leaves the copy out where nothing is overwritten.
        return saved, y.clone(), _is_never_overwritten
    if saved.input.shape[0] == 1 and saved.batch_sizes is None and y.is_cpu:
        return (
            saved._replace(y=y.data),
            y,
            _is_never_overwritten,
        )  # the backward of one step does not read y
    probe, version = y.detach(), version_of(y)
    probe.data = y.new_empty(0)
    return saved._replace(y=y.data), y, lambda: version_of(probe) != version


def copied_in_trace(tensor: Any) -> Any:
    """A copy in a trace, for the forward and the backward, of a state or a mask, which programs
    change in place from call to call, and of which a layer may see a view: Inductor's views share
    no version with what they show.

    NOTE: by an op of our own, since a partitioner that meets `clone` saves what is cloned, and
    makes the copy in the backward, when it is too late.
    """
    if tensor is None or count_dispatch_modes() == 0:
        return tensor
    return copy_op(tensor)


def is_lost(ctx: Any) -> bool:
    """Whether the y that was saved may have been overwritten."""
    if ctx.is_overwritten is _is_never_overwritten:
        return False
    # Compiled autograd cannot ask at the time of its calls.
    return torch.compiler.is_compiling() or ctx.is_overwritten()


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
    grads: Sequence[Tensor | None], saved: SavedLayer, weights: list[Tensor], needs: Needs
) -> LayerGradient:
    """The gradients of a layer; differentiable where grad mode is on.

    Args:
        grads: incoming gradients of y, h_n, c_n and cell_states, None where there is none.
    """
    if not torch.compiler.is_compiling() and any(map(is_legacy_batched, grads)):
        variables = (saved.input, saved.h_0, saved.c_0, *weights)
        needed = (needs.input, needs.states, needs.states, *([needs.weights] * len(weights)))
        first, by_weight = reference_gradient(grads, variables, needed, saved.masks)
        return LayerGradient(first[0], first[1], first[2], by_weight)
    arguments = (*grads, *saved, *needs, *weights)
    if torch.compiler.is_compiling() and torch.is_grad_enabled():
        result = FusedLSTMBackwardFunction.apply(*arguments)  # type: ignore[no-untyped-call]
    elif torch.is_grad_enabled():  # create_graph=True: the gradient is to be differentiated
        result = apply(FusedLSTMBackwardFunction, *arguments)
    else:
        result = FusedLSTMBackwardFunction.forward(*arguments)
    grad_input, grad_h_0, grad_c_0, *grad_weights = result
    return LayerGradient(
        grad_input if needs.input else None,
        grad_h_0 if needs.states else None,
        grad_c_0 if needs.states else None,
        grad_weights if needs.weights else [None] * len(weights),
    )
