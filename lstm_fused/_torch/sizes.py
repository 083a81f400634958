# SPDX-License-Identifier: BSD-3-Clause
"""Sizes of a module, such as hidden_size, that are assigned after construction.

Kernels take sizes from the weights. So a size that was assigned, and that no weight has followed,
would change nothing; nn.LSTM raises in its sentences for some of them and in kernels for others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

GATES = 4
# The attributes from which the number and the shapes of the weights follow.
SIZES = frozenset(["input_size", "hidden_size", "num_layers", "bias", "bidirectional", "proj_size"])

Shape = tuple[Any, ...]


def is_new_size(module: nn.Module, name: str, value: Any) -> bool:
    """Whether an assignment changes a size that the module has."""
    return name in SIZES and bool(vars(module).get(name, value) != value)


def shapes_of_lstm(module: nn.RNNBase) -> list[Shape]:
    """The shapes of the weights that a stack of these sizes has, in nn.LSTM's order."""
    hidden_size, directions = module.hidden_size, 2 if module.bidirectional else 1
    output_size = module.proj_size or hidden_size
    gates = GATES * hidden_size
    shapes: list[Shape] = []
    for layer in range(module.num_layers):
        input_size = module.input_size if layer == 0 else directions * output_size
        block: list[Shape] = [(gates, input_size), (gates, output_size)]
        if module.bias:
            block += [(gates,), (gates,)]
        if module.proj_size:
            block.append((output_size, hidden_size))
        shapes += block * directions
    return shapes


def refuse_other_sizes(
    module: nn.Module, names: Sequence[str], weights: Sequence[Tensor], shapes: Sequence[Shape]
) -> None:
    """Raises for weights that are not those of the module's sizes.

    Raises:
        RuntimeError: what weights the sizes ask for, what there are, and what to do.
    """
    sizes = ", ".join(f"{k}={v!r}" for k, v in vars(module).items() if k in SIZES)
    remedy = "assign weights of these sizes as well, or build a new module"
    if len(weights) != len(shapes):
        raise RuntimeError(
            f"{type(module).__name__} with {sizes} must have {len(shapes)} weights, got "
            f"{len(weights)}: {remedy}"
        )
    for name, weight, shape in zip(names, weights, shapes, strict=True):
        if tuple(weight.shape) != shape:
            raise RuntimeError(
                f"{type(module).__name__} with {sizes} must have a {name} of shape {shape}, got "
                f"{tuple(weight.shape)}: {remedy}"
            )


def have_other_sizes(module: nn.Module, names: Sequence[str], shapes: Sequence[Shape]) -> bool:
    """Whether parameters of a module are not of its sizes. Weights that are no parameters, as
    parametrized ones, are not looked at."""
    if len(names) != len(shapes):
        return True
    parameters = module._parameters
    for name, shape in zip(names, shapes, strict=True):
        if name in parameters:
            parameter = parameters[name]
            if parameter is None or tuple(parameter.shape) != shape:
                return True
    return False
