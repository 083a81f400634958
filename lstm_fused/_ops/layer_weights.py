# SPDX-License-Identifier: BSD-3-Clause
"""The weights of a layer: a flat list in nn.LSTM's order, as the ops take them, and by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

GATES = 4  # i, f, g, o, whose rows lie one after another in the weights


class LayerWeights(NamedTuple):
    """One direction's weights of one layer; those that the layer lacks are None.

    The values are tensors, or what stands for tensors: shapes, gradients, tangents.
    """

    w_ih: Any  # (4H, D)
    w_hh: Any  # (4H, P)
    b_ih: Any = None  # (4H,)
    b_hh: Any = None  # (4H,), there if b_ih is
    w_hr: Any = None  # (P, H), the output projection

    def flatten(self) -> list[Any]:
        """The weights that are there, in nn.LSTM's order."""
        return [value for value in self if value is not None]


# How many weights a direction has says which they are.
_NAMES: dict[int, tuple[str, ...]] = {
    2: ("w_ih", "w_hh"),
    3: ("w_ih", "w_hh", "w_hr"),
    4: ("w_ih", "w_hh", "b_ih", "b_hh"),
    5: LayerWeights._fields,
}


def is_weight_count(count: int, directions: int) -> bool:
    """Whether a flat list of `count` weights can be that of a layer (or, with the directions of all
    layers, of a stack)."""
    return count % directions == 0 and count // directions in _NAMES


def has_projection(count: int, directions: int) -> bool:
    """Whether a layer of `count` weights projects its output."""
    return "w_hr" in _NAMES[count // directions]


def split_directions(weights: Sequence[Any], directions: int) -> list[LayerWeights]:
    """A layer's flat list by direction."""
    count = len(weights) // directions
    names = _NAMES[count]
    return [
        LayerWeights(**dict(zip(names, weights[d * count : (d + 1) * count], strict=True)))
        for d in range(directions)
    ]


def split_layers(weights: Sequence[Any], num_layers: int) -> list[Sequence[Any]]:
    """A stack's flat list by layer, each a flat list again."""
    if num_layers == 1:
        return [weights]
    count = len(weights) // num_layers
    return [weights[k * count : (k + 1) * count] for k in range(num_layers)]


def weight_sizes(input_size: int, hidden_size: int, output_size: int) -> LayerWeights:
    """The shapes that one direction's weights have."""
    gates = GATES * hidden_size
    return LayerWeights(
        (gates, input_size), (gates, output_size), (gates,), (gates,), (output_size, hidden_size)
    )
