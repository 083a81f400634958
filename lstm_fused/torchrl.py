# SPDX-License-Identifier: BSD-3-Clause
"""TorchRL: :class:`FusedLSTMModule`, in the place of torchrl.modules.LSTMModule.

Importing this module needs torchrl. `lstm_fused.convert` imports it by itself where it meets an
LSTMModule, whose own code would take a FusedLSTM for TorchRL's LSTM in Python.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict.nn import dispatch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.modules import LSTMModule

from lstm_fused import functional
from lstm_fused._ops.layer_weights import split_layers
from lstm_fused.convert import convert
from lstm_fused.module import FusedLSTM


class FusedLSTMModule(LSTMModule):  # type: ignore[misc]
    """LSTMModule over a FusedLSTM: its arguments, keys and results.

    In recurrent mode a batch whose `is_init` is set in mid-sequence is not split into trajectories,
    if the states recorded at their beginnings are zero, as TorchRL's collectors leave them:
    `is_init` becomes FusedLSTM's `reset_mask`. Other batches, and bidirectional ones, are split by
    TorchRL, and run with `lengths`. recurrent_backend "scan" and "triton" remain TorchRL's.

    Args:
        args, kwargs: those of LSTMModule; `lstm` may be a FusedLSTM or an nn.LSTM, batch_first.
        python_based: False.

    Raises:
        ValueError: as LSTMModule, and for python_based.
    """

    lstm: Any

    def __init__(self, *args: Any, python_based: bool = False, **kwargs: Any) -> None:
        if python_based:
            raise ValueError("python_based must be False: a FusedLSTMModule runs a FusedLSTM")
        super().__init__(*args, **kwargs)
        self.lstm = convert(self.lstm)

    def make_cudnn_based(self) -> FusedLSTMModule:
        """Puts a FusedLSTM in the place of an LSTM in Python, as `make_python_based` makes it."""
        if not isinstance(self.lstm, FusedLSTM):
            super().make_cudnn_based()
            self.lstm = convert(self.lstm)
        return self

    @dispatch  # type: ignore[untyped-decorator]
    def forward(self, tensordict: Any) -> Any:
        """As LSTMModule.forward."""
        if not self._resets_inside(tensordict):
            return super().forward(tensordict)
        rows = tensordict if tensordict.ndim > 1 else tensordict.unsqueeze(0)
        rows = rows if rows.ndim == 2 else rows.flatten(0, -2)
        x, h_in, c_in = (rows.get(key, None) for key in self.in_keys[:3])
        is_init = rows["is_init"].squeeze(-1)
        hx = None if h_in is None else (h_in[:, 0].transpose(0, 1), c_in[:, 0].transpose(0, 1))
        y, *states = self._every_state(x, hx, _resets(is_init))
        is_end = is_init.roll(-1, dims=1)
        is_end[:, -1] = True
        results = (y, *(_at(is_end, s) for s in states))
        for key, result in zip(self.out_keys, results, strict=True):
            rows.set(key, result)
        if rows is not tensordict:
            tensordict.update(rows.reshape(tensordict.shape))
        return tensordict

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _resets_inside(self, tensordict: Any) -> bool:
        """Whether trajectories begin in mid-sequence, all of them with a state of zero."""
        lstm = self.lstm
        if (
            not isinstance(lstm, FusedLSTM)
            or lstm.bidirectional
            or not self.recurrent_mode
            or self.recurrent_backend not in ("pad", "auto")
            or tensordict.ndim == 0
            or lstm._forward_hooks
            or lstm._forward_pre_hooks
            or lstm._backward_hooks
        ):
            return False
        is_init = tensordict["is_init"].squeeze(-1)
        is_reset = _resets(is_init.reshape(-1, is_init.shape[-1]))
        if not is_reset.any():
            return False
        states = [tensordict.get(key, None) for key in self.in_keys[1:3]]
        if states[0] is None and states[1] is None:
            return True
        for state in states:
            if state is None or (state.requires_grad and torch.is_grad_enabled()):
                return False
            if state.reshape(*is_reset.shape, *state.shape[-2:])[is_reset].any():
                return False
        return True

    def _every_state(
        self, x: Tensor, hx: tuple[Tensor, Tensor] | None, reset_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """y (B, T, P), and the states of all layers after every step: (B, T, num_layers, P or H).

        NOTE: layer by layer, since FusedLSTM gives the cell states of the last layer alone.
        """
        lstm = self.lstm
        weights, count = lstm._weights(), lstm.num_layers
        if hx is None:
            sizes = (count, x.shape[0])
            h_0 = x.new_zeros(*sizes, lstm.proj_size or lstm.hidden_size)
            hx = h_0, x.new_zeros(*sizes, lstm.hidden_size)
        y = x
        all_h: list[Any] = []
        all_c: list[Any] = []
        for k, layer_weights in enumerate(split_layers(weights, count)):
            if k > 0:
                y = F.dropout(y, lstm.dropout, lstm.training)
            y, _, _, c = functional.lstm(
                y,
                (hx[0][k : k + 1], hx[1][k : k + 1]),
                layer_weights,
                batch_first=True,
                reset_mask=reset_mask,
                return_cell_states=True,
                recompute=lstm.recompute,
            )
            all_h.append(y)
            all_c.append(c)
        return y, torch.stack(all_h, -2), torch.stack(all_c, -2)

    def _lstm(
        self,
        input: Tensor,
        batch: int,
        steps: int,
        device: Any,
        dtype: Any,
        hidden0_in: Tensor | None = None,
        hidden1_in: Tensor | None = None,
        splits: Tensor | None = None,
        is_init: Tensor | None = None,
        backend: str = "pad",
    ) -> tuple[Tensor, Tensor, Tensor]:
        """LSTMModule's, where rows are whole trajectories of `splits` steps."""
        if (
            splits is None
            or is_init is not None
            or not isinstance(self.lstm, FusedLSTM)
            or (hidden0_in is None) != (hidden1_in is None)
        ):
            place = (input, batch, steps, device, dtype, hidden0_in, hidden1_in, splits)
            result: tuple[Tensor, Tensor, Tensor] = super()._lstm(
                *place, is_init=is_init, backend=backend
            )
            return result
        hx = None
        if hidden0_in is not None and hidden1_in is not None:
            hx = hidden0_in[:, 0].transpose(0, 1), hidden1_in[:, 0].transpose(0, 1)
        y, finals = self.lstm(input, hx, lengths=splits)
        is_end = torch.arange(1, steps + 1, device=splits.device) == splits[:, None]
        h, c = (_at(is_end, s.transpose(0, 1)[:, None]) for s in finals)
        return y, h, c


def _resets(is_init: Tensor) -> Tensor:
    """Steps (B, T) before which the state is reset. LSTMModule takes the state of a row's first
    step as it is recorded."""
    is_reset = is_init.clone()
    is_reset[:, 0] = False
    return is_reset


def _at(is_there: Tensor, states: Tensor) -> Tensor:
    """States (B, T or 1, num_states, P or H) at the steps (B, T) marked, 0 elsewhere."""
    return torch.where(is_there[:, :, None, None], states, states.new_zeros(()))


def settle(owner: nn.Module) -> bool:
    """Makes an LSTMModule a FusedLSTMModule, in place, or leads back, as fits what it holds.
    Whether its class has changed."""
    wanted = FusedLSTMModule if isinstance(owner.lstm, FusedLSTM) else LSTMModule
    if type(owner) is wanted:
        return False
    owner.__class__ = wanted
    return True
