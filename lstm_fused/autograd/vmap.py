# SPDX-License-Identifier: BSD-3-Clause
"""One layer under torch.vmap: B samples become rows of one batch, row n of sample b being n·B + b.

Weights that differ from sample to sample (ensembles) mean a call for each of them, since then
nothing is shared; so does the backward of a forward that was not mapped (torch.func.jacrev).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lstm_fused._ops import native
from lstm_fused._ops.arguments import BackwardArguments, ForwardArguments
from lstm_fused._torch.private import TransformType, all_interpreters, is_forward_mode_on

# As torch gives them to vmap rules: an int or None for each argument, nested as the arguments are.
Dims = Any


def vmap_forward(call: Callable[..., Any], info: Any, in_dims: Dims, *arguments: Any) -> Any:
    """The rule of `call`, which takes the arguments of the ops lstm_forward and lstm_layer."""
    given, dims = ForwardArguments(*arguments), ForwardArguments(*in_dims)
    if _any_mapped(dims.weights) or dims.batch_sizes is not None:
        return vmap_one_by_one(call, info, in_dims, *arguments)
    fold = _Fold(info.batch_size, packed=given.batch_sizes is not None)
    results = call(*given._replace(**fold.layer(given, dims)))
    # y, h_n, c_n, cell_states, and for lstm_forward gates and cells.
    axes = (fold.rows, 1, 1, fold.rows, 1, 1)
    return fold.split(tuple(zip(results, axes, strict=False)))


def vmap_backward(
    call: Callable[..., Any],
    info: Any,
    in_dims: Dims,
    *arguments: Any,
) -> Any:
    """The rule of `call`, which takes the arguments of the op lstm_backward; the weights' gradients
    are those of each sample, by the op lstm_sample_gradients."""
    given, dims = BackwardArguments._make(arguments), BackwardArguments._make(in_dims)
    if (
        _any_mapped(dims.weights)
        or dims.batch_sizes is not None
        or dims.cells is None  # the forward was not mapped; of gates None also says: none saved
        or (given.need_weights and _is_differentiated(arguments))
    ):
        return vmap_one_by_one(call, info, in_dims, *arguments)
    fold = _Fold(info.batch_size, packed=given.batch_sizes is not None)
    folded = given._replace(
        **fold.layer(given, dims),
        grad_y=fold.into_rows(given.grad_y, dims.grad_y, fold.rows),
        grad_h_n=fold.into_rows(given.grad_h_n, dims.grad_h_n, 1),
        grad_c_n=fold.into_rows(given.grad_c_n, dims.grad_c_n, 1),
        grad_cell_states=fold.into_rows(given.grad_cell_states, dims.grad_cell_states, fold.rows),
        y=fold.into_rows(given.y, dims.y, fold.rows),
        gates=fold.into_rows(given.gates, dims.gates, 1),
        cells=fold.into_rows(given.cells, dims.cells, 1),
    )
    if given.need_weights:
        needs = (folded.need_input, folded.need_states)
        found = native.lstm_sample_gradients_op(*folded[:-3], *needs, info.batch_size)
    else:
        found = call(*folded)
    grad_input, grad_h_0, grad_c_0, grad_weights = found
    results, result_dims = fold.split(((grad_input, fold.rows), (grad_h_0, 1), (grad_c_0, 1)))
    return (*results, grad_weights), (*result_dims, [0] * len(grad_weights))


class _QuantizedArguments(NamedTuple):
    """Arguments of the op lstm_quantized."""

    input: Any
    h_0: Any
    c_0: Any
    packed: Any
    lengths: Any
    batch_sizes: Any
    reset_mask: Any
    hidden_size: Any
    output_size: Any
    directions: Any
    return_cell_states: Any


def vmap_quantized(call: Callable[..., Any], info: Any, in_dims: Dims, *arguments: Any) -> Any:
    """The rule of `call`, which takes the arguments of the op lstm_quantized."""
    given, dims = _QuantizedArguments(*arguments), _QuantizedArguments(*in_dims)
    if _any_mapped(dims.packed) or dims.batch_sizes is not None:
        return vmap_one_by_one(call, info, in_dims, *arguments)
    fold = _Fold(info.batch_size, packed=given.batch_sizes is not None)
    results = call(*given._replace(**fold.layer(given, dims)))
    return fold.split(tuple(zip(results, (fold.rows, 1, 1, fold.rows), strict=True)))


def vmap_quantized_cell(call: Callable[..., Any], info: Any, in_dims: Dims, *arguments: Any) -> Any:
    """The rule of `call`, which takes the arguments of the op lstm_quantized_cell."""
    *tensors, packed, hidden_size = arguments
    *dims, packed_dim, _ = in_dims
    if packed_dim is not None:
        return vmap_one_by_one(call, info, in_dims, *arguments)
    fold = _Fold(info.batch_size, packed=True)
    rows = (fold.into_rows(t, dim, fold.rows) for t, dim in zip(tensors, dims, strict=True))
    h, c = call(*rows, packed, hidden_size)
    return fold.split(((h, fold.rows), (c, fold.rows)))


def vmap_one_by_one(call: Callable[..., Any], info: Any, in_dims: Dims, *arguments: Any) -> Any:
    """A rule for anything: a call for each sample."""

    def pick(argument: Any, dim: Dims, index: int) -> Any:
        if dim is None:
            return argument
        if isinstance(argument, list | tuple):
            return [pick(a, d, index) for a, d in zip(argument, dim, strict=True)]
        return argument.select(dim, index)

    def stack(results: Sequence[Any]) -> tuple[Any, Any]:
        if isinstance(results[0], Tensor):
            return torch.stack(list(results)), 0
        stacked = [stack(parts) for parts in zip(*results, strict=True)]
        kind = list if isinstance(results[0], list) else tuple
        return kind(value for value, _ in stacked), kind(dim for _, dim in stacked)

    if info.batch_size == 0:
        raise ValueError("torch.vmap of an LSTM needs at least 1 sample, got 0")
    calls = (
        [pick(a, d, index) for a, d in zip(arguments, in_dims, strict=True)]
        for index in range(info.batch_size)
    )
    return stack([call(*of_sample) for of_sample in calls])


def _is_differentiated(arguments: Sequence[Any]) -> bool:
    """Whether derivatives may be asked of what is computed here from the arguments."""
    if all_interpreters is None or TransformType is None:
        return True
    kinds = {transform.key() for transform in all_interpreters()}
    if is_forward_mode_on() or kinds - {TransformType.Vmap}:
        return True
    return torch.is_grad_enabled() and _any_requires_grad(arguments)


def _any_requires_grad(arguments: Sequence[Any]) -> bool:
    return any(
        _any_requires_grad(argument)
        if isinstance(argument, list | tuple)
        else isinstance(argument, Tensor) and argument.requires_grad
        for argument in arguments
    )


class _Fold:
    """Moves B samples between a dimension of their own and the rows of one batch."""

    def __init__(self, samples: int, packed: bool) -> None:
        if samples == 0:
            raise ValueError("torch.vmap of an LSTM needs at least 1 sample, got 0")
        self.samples = samples
        self.rows = 0 if packed else 1  # the dimension of rows in input and y

    def into_rows(self, tensor: Tensor | None, dim: int | None, axis: int) -> Tensor | None:
        """The samples in dimension `dim` (None: all the same) become rows of dimension `axis`."""
        if tensor is None or (tensor.numel() == 0 and tensor.dim() == 1):
            return tensor  # not given
        if dim is None:
            tensor = tensor.unsqueeze(axis + 1)
            sizes = [-1] * tensor.dim()
            sizes[axis + 1] = self.samples
            tensor = tensor.expand(sizes)
        else:
            tensor = tensor.movedim(dim, axis + 1)
        return tensor.flatten(axis, axis + 1)

    def layer(
        self,
        given: ForwardArguments | BackwardArguments | _QuantizedArguments,
        dims: ForwardArguments | BackwardArguments | _QuantizedArguments,
    ) -> dict[str, Any]:
        """The layer's own tensors, but for the weights, by name."""
        return {
            "input": self.into_rows(given.input, dims.input, self.rows),
            "h_0": self.into_rows(given.h_0, dims.h_0, 1),
            "c_0": self.into_rows(given.c_0, dims.c_0, 1),
            "lengths": self.into_rows(given.lengths, dims.lengths, 0),
            "batch_sizes": (
                None if given.batch_sizes is None else given.batch_sizes * self.samples
            ),
            "reset_mask": self.into_rows(given.reset_mask, dims.reset_mask, 1),
        }

    def split(self, results: Sequence[tuple[Tensor, int]]) -> tuple[tuple[Any, ...], Any]:
        """Results and their dimension of rows -> results and their dimension of samples."""
        tensors: list[Tensor] = []
        dims: list[int | None] = []
        for tensor, axis in results:
            if tensor.dim() == 1:  # not asked for
                tensors.append(tensor)
                dims.append(None)
            else:
                sizes = tensor.shape
                rows = sizes[axis] // self.samples
                tensors.append(tensor.view(*sizes[:axis], rows, self.samples, *sizes[axis + 1 :]))
                dims.append(axis + 1)
        return tuple(tensors), tuple(dims)


def _any_mapped(dims: Dims) -> bool:
    if isinstance(dims, list | tuple):
        return any(_any_mapped(dim) for dim in dims)
    return dims is not None


def _register(name: str, rule: Callable[..., Any]) -> None:
    op = getattr(torch.ops.lstm_fused, name).default
    torch.library.register_vmap(f"lstm_fused::{name}", partial(rule, op))


if native.compiled is not None:
    _register("lstm_forward", vmap_forward)
    # The backward comes here as an op, and not as a function, where grad mode is off.
    _register("lstm_backward", vmap_backward)
    _register("lstm_quantized", vmap_quantized)
    _register("lstm_quantized_cell", vmap_quantized_cell)
    for _name in ("lstm_sample_gradients", "lstm_cell", "lstm_cell_backward"):
        _register(_name, vmap_one_by_one)
