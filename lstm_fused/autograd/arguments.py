# SPDX-License-Identifier: BSD-3-Clause
"""What the functions of a layer take, save and give, by name.

torch.autograd.Function takes and saves a flat row of values: named tuples one after another, and at
the end the weights, whose number varies. `unflatten` and `LayerArguments.split` read it again. One
more argument of a layer is one more field of `LayerArguments`, which `for_op` passes on; and of
`SavedLayer`, if the backward reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import Parameter

from lstm_fused._ops.arguments import ForwardArguments


class LayerMasks(NamedTuple):
    """Which steps of which rows take place, and where states are reset."""

    lengths: Tensor | None  # int32 or int64 (N,)
    batch_sizes: Tensor | None  # int64 (T,) on the CPU, of packed input
    reset_mask: Tensor | None  # bool (T, N)


class LayerTensors(NamedTuple):
    """The tensors that one layer takes, but for its weights."""

    input: Tensor  # (T, N, D), or (M, D) with batch_sizes
    h_0: Tensor  # (L, N, P)
    c_0: Tensor  # (L, N, H)
    lengths: Tensor | None
    batch_sizes: Tensor | None
    reset_mask: Tensor | None

    @property
    def masks(self) -> LayerMasks:
        return LayerMasks(self.lengths, self.batch_sizes, self.reset_mask)


class LayerArguments(NamedTuple):
    """All arguments of one layer, but for its weights."""

    input: Tensor
    h_0: Tensor
    c_0: Tensor
    lengths: Tensor | None = None
    batch_sizes: Tensor | None = None
    reset_mask: Tensor | None = None
    return_cell_states: bool = False
    recompute: bool = False

    @property
    def tensors(self) -> LayerTensors:
        return LayerTensors._make(self[: len(LayerTensors._fields)])

    @property
    def masks(self) -> LayerMasks:
        return LayerMasks(self.lengths, self.batch_sizes, self.reset_mask)

    @classmethod
    def split(cls, flat: Sequence[Any]) -> tuple[LayerArguments, Sequence[Any]]:
        """The arguments and the weights, of a flat row."""
        return cls._make(flat[:_ARGUMENTS]), flat[_ARGUMENTS:]

    @classmethod
    def from_op(cls, arguments: ForwardArguments) -> LayerArguments:
        """From the arguments of those ops, without what is the op's alone."""
        return cls(**{name: getattr(arguments, name) for name in cls._fields})

    def for_op(self, weights: Sequence[Any], save_for_backward: Any) -> tuple[Any, ...]:
        """The arguments of the ops lstm_forward and lstm_layer."""
        input, h_0, c_0, lengths, batch_sizes, reset_mask, return_cell_states, recompute = self
        return (
            *(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask),
            *(save_for_backward, return_cell_states, recompute),
        )

    def saved(self, y: Tensor, gates: Tensor, cells: Tensor) -> SavedLayer:
        """What to save of a forward that gave these."""
        input, h_0, c_0, lengths, batch_sizes, reset_mask, _, _ = self
        return SavedLayer(input, h_0, c_0, lengths, batch_sizes, reset_mask, y, gates, cells)


_ARGUMENTS = len(LayerArguments._fields)

# Classes of tensors that change nothing of what torch's functions do.
TENSOR_TYPES = (Tensor, Parameter)


class LayerResults(NamedTuple):
    """The results of the ops lstm_forward and lstm_layer. Those not asked for are empty."""

    y: Tensor  # input's layout, L·P features
    h_n: Tensor  # (L, N, P)
    c_n: Tensor  # (L, N, H)
    cell_states: Tensor  # y's layout, L·H features
    gates: Tensor  # (L, M, 4H), for the backward
    cells: Tensor  # (L, M, H), for the backward


class IncomingGradients(NamedTuple):
    """The gradients of a layer's results; None where there is none."""

    y: Tensor | None
    h_n: Tensor | None
    c_n: Tensor | None
    cell_states: Tensor | None


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
    def tensors(self) -> LayerTensors:
        return LayerTensors._make(self[: len(LayerTensors._fields)])

    @property
    def masks(self) -> LayerMasks:
        return LayerMasks(self.lengths, self.batch_sizes, self.reset_mask)


class Needs(NamedTuple):
    """Which gradients are asked for; h_0's and c_0's go together, and so do the weights'."""

    input: bool
    states: bool
    weights: bool

    @classmethod
    def of(cls, needs_input_grad: Sequence[bool]) -> Needs:
        """From the `needs_input_grad` of a function of `LayerArguments` and the weights."""
        input, h_0, c_0 = needs_input_grad[:3]
        return cls(input, h_0 or c_0, any(needs_input_grad[_ARGUMENTS:]))


class LayerGradient(NamedTuple):
    """The gradients of a layer's variables; of what needs none they are None, or empty tensors."""

    input: Tensor | None
    h_0: Tensor | None
    c_0: Tensor | None
    weights: Sequence[Tensor | None]

    @classmethod
    def from_flat(cls, flat: Sequence[Tensor | None]) -> LayerGradient:
        input, h_0, c_0, *weights = flat
        return cls(input, h_0, c_0, weights)

    def flatten(self) -> tuple[Tensor | None, ...]:
        return self.input, self.h_0, self.c_0, *self.weights

    def for_arguments(self) -> tuple[Tensor | None, ...]:
        """For `LayerArguments` and the weights: None for masks and flags."""
        return self.input, self.h_0, self.c_0, *_NO_GRADIENTS, *self.weights


class SecondGradient(NamedTuple):
    """The gradients of what a layer's gradient is a function of."""

    incoming: Sequence[Tensor | None]  # of y, h_n, c_n, cell_states, as `IncomingGradients`
    layer: LayerGradient


# None for the fields of `LayerArguments` after input, h_0 and c_0.
_NO_GRADIENTS = (None,) * (_ARGUMENTS - 3)


def unflatten(flat: Sequence[Any], *kinds: Any) -> list[Any]:
    """Reads named tuples of these kinds from the beginning of a flat row: each of them, and last
    what is left over."""
    parts: list[Any] = []
    begin = 0
    for kind in kinds:
        end = begin + len(kind._fields)
        parts.append(kind._make(flat[begin:end]))
        begin = end
    parts.append(flat[begin:])
    return parts
