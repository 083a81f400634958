# SPDX-License-Identifier: BSD-3-Clause
"""The checks of nn.LSTM's forward, in its sentences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lstm_fused._torch.autocast import is_autocast_enabled
from lstm_fused._torch.flat_weights import ByName

Hidden = tuple[Tensor, Tensor]


def check_cell_sizes(
    input: Tensor, hx: Sequence[Tensor], input_size: int, hidden_size: int
) -> None:
    """Raises in nn.LSTMCell's sentences where rows (N, D) and their states do not fit a cell."""
    if input.size(1) != input_size:
        raise RuntimeError(
            f"input has inconsistent input_size: got {input.size(1)} expected {input_size}"
        )
    for index, state in enumerate(hx):
        if state.size(0) != input.size(0):
            raise RuntimeError(
                f"Input batch size {input.size(0)} doesn't match hidden{index} "
                f"batch size {state.size(0)}"
            )
        if state.dim() != 2 or state.size(1) != hidden_size:
            raise RuntimeError(
                f"hidden{index} has inconsistent hidden_size: got {state.size(1)}, "
                f"expected {hidden_size}"
            )


class CheckedAsTorch(ByName):
    """An nn.RNNBase with the sizes and the checks of nn.LSTM: methods that subclasses of nn.LSTM
    call and override, too."""

    def _check_input(self, input: Tensor, batch_sizes: Tensor | None, dtype: torch.dtype) -> None:
        if input.dtype != dtype and not is_autocast_enabled(input.device):
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({dtype}). "
                f"Convert input: input.to({dtype}), or convert model: model.to({input.dtype})"
            )
        expected = 2 if batch_sizes is not None else 3
        if input.dim() != expected:
            raise RuntimeError(f"input must have {expected} dimensions, got {input.dim()}")
        if self.input_size != input.size(-1):
            raise RuntimeError(
                "input.size(-1) must be equal to input_size. "
                f"Expected {self.input_size}, got {input.size(-1)}"
            )

    def _check_hidden_rank(self, hx: Hidden | None) -> None:
        if hx is not None and (hx[0].dim() != 3 or hx[1].dim() != 3):
            raise RuntimeError(
                "For batched 3-D input, hx and cx should "
                f"also be 3-D but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
            )

    def _check_hidden(self, input: Tensor, hx: Hidden, batch_sizes: Tensor | None) -> None:
        self.check_hidden_size(
            hx[0],
            self.get_expected_hidden_size(input, batch_sizes),
            "Expected hidden[0] size {}, got {}",
        )
        self.check_hidden_size(
            hx[1],
            self.get_expected_cell_size(input, batch_sizes),
            "Expected hidden[1] size {}, got {}",
        )

    def get_expected_cell_size(
        self, input: Tensor, batch_sizes: Tensor | None
    ) -> tuple[int, int, int]:
        """(num_layers·L, N, H), as nn.LSTM's method."""
        layers, batch, _ = self.get_expected_hidden_size(input, batch_sizes)
        return layers, batch, self.hidden_size

    def check_forward_args(  # type: ignore[override]
        self, input: Tensor, hidden: Hidden, batch_sizes: Tensor | None
    ) -> None:
        """Raises as nn.LSTM does for shapes and dtypes that do not fit."""
        self._check_input(input, batch_sizes, self._weights()[0].dtype)
        self._check_hidden(input, hidden, batch_sizes)

    def permute_hidden(  # type: ignore[override]
        self, hx: Hidden, permutation: Tensor | None
    ) -> Hidden:
        """Permutes the rows of both states; None leaves them."""
        if permutation is None:
            return hx
        return hx[0].index_select(1, permutation), hx[1].index_select(1, permutation)
