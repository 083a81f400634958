# SPDX-License-Identifier: BSD-3-Clause
"""Problems of a cell with options: layers with masks that are given, so that the truth has them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lstm_fused import reference_options
from lstm_fused._check.problem import Errors, Inputs, Problem, compare, dtype_of
from lstm_fused.autograd.arguments import LayerArguments
from lstm_fused.autograd.options_layer import options_layer
from lstm_fused.reference_options import LayerOptions

# Options that have gradients.
_LEAVES = ("peephole", "reset_h", "reset_c", "gains", "cell_norm")

# Beyond what a cell state grows to, and not beyond the states that are made to be clipped.
_CLIP = 6.0


class OptionInputs(Inputs):
    """The numbers of a problem whose cell has options."""

    def __init__(self, problem: Problem, kind: str) -> None:
        super().__init__(problem, kind)
        directions, rows = len(self.h_0), problem.steps * problem.batch
        units = problem.hidden_size
        given: dict[str, Any] = {"peephole": self.normal(directions, 3, units) * 0.5}
        if problem.what == "options":
            given["h_mask"] = (self._flags(*self.h_0.shape, share=0.7) / 0.7).to(self.h_0.dtype)
            given["keep_c"] = self._flags(directions, rows, units, share=0.2)
            if not problem.proj_size:
                given["keep_h"] = self._flags(directions, rows, units, share=0.1)
            # NOTE: rounding that takes a value to the other side of a limit changes its gradient.
            # Few values are near this one, which 16-bit types round too much for.
            if dtype_of(kind).itemsize > 2:
                given["cell_clip"] = _CLIP
                self.c_0[..., 0] *= 8
        else:
            given["gains"] = 1 + self.normal(directions, 2, 4 * units) * 0.3
            given["cell_norm"] = self.normal(directions, 2, units) * 0.3
            given["cell_norm"][:, 0] += 1
            given["coupled_gates"] = True
            given["zoneout_c"] = 0.2
            given["zoneout_h"] = 0.0 if problem.proj_size else 0.1
        if problem.ragged:
            given["reset_h"] = self.normal(*self.h_0.shape)
            given["reset_c"] = self.normal(*self.c_0.shape)
        self.options = LayerOptions(**given)

    def _flags(self, *shape: int, share: float) -> Tensor:
        return torch.rand(*shape, generator=self.generator) < share

    def run_kernels(self, device: torch.device) -> dict[str, Tensor]:
        """Results and gradients of the kernels in the problem's dtype."""
        return self._run(dtype_of(self.kind), device)

    def run_reference(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Results and gradients of `lstm_fused.reference_options` on the CPU."""
        return self._run(dtype, None)

    def _run(self, dtype: torch.dtype, device: torch.device | None) -> dict[str, Tensor]:
        place = device or torch.device("cpu")

        def leaf(values: Tensor) -> Tensor:
            return values.detach().to(place, dtype).requires_grad_()

        def masks(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.to(place)

        x, h_0, c_0, *weights = map(leaf, (self.x, self.h_0, self.c_0, *self.weights.values()))
        leaves = {
            name: leaf(values)
            for name in _LEAVES
            if (values := getattr(self.options, name)) is not None
        }
        h_mask = self.options.h_mask
        options = self.options._replace(
            **leaves,  # type: ignore[arg-type]
            h_mask=None if h_mask is None else h_mask.to(place, dtype),
            keep_c=masks(self.options.keep_c),
            keep_h=masks(self.options.keep_h),
        )
        lengths, reset_mask = masks(self.lengths), masks(self.reset_mask)
        if device is None:
            outputs = reference_options.lstm_layer(
                x, h_0, c_0, weights, options, lengths=lengths, reset_mask=reset_mask
            )
        else:
            arguments = LayerArguments(x, h_0, c_0, lengths, None, reset_mask)
            outputs = options_layer(arguments, options, weights)
        variables = (x, h_0, c_0, *weights, *leaves.values())
        return self.results(outputs[:3], variables, place, tuple(leaves))


def find_option_errors(problem: Problem, kind: str, device: torch.device) -> Errors:
    """How far the kernels' results lie from float64's, as shares of the error budget, whose rival
    is the reference in the kernels' dtype."""
    inputs = OptionInputs(problem, kind)
    rival = inputs.run_reference(dtype_of(kind))
    return compare(inputs.run_kernels(device), rival, inputs.run_reference(torch.float64), kind)
