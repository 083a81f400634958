# SPDX-License-Identifier: BSD-3-Clause
"""Differential privacy with Opacus: :class:`DPFusedLSTM`, in the place of opacus.layers.DPLSTM.

Importing this module needs opacus, and registers the gradients of each sample with it.

NOTE: Opacus hooks a module's positional tensors and its first output alone, and would miss what
comes in by states, lengths and masks, and what goes back by states. So the hooked modules here are
layers that take their tensors by place and give one tensor that holds y, h_n and c_n.
"""

from __future__ import annotations

from typing import Any

import torch
from opacus.grad_sample import register_grad_sampler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lstm_fused._torch.lstm_checks import Hidden
from lstm_fused._variants import why_not_torchs
from lstm_fused.functional import StackOptions, lstm_stack
from lstm_fused.module import FusedLSTM


class _Layer(FusedLSTM):
    """One layer: (x, h_0, c_0 [, lengths] [, reset_mask]) -> y, h_n, c_n in one tensor; each with
    the rows in dimension 1, or 0 with batch_first."""

    def forward(self, input: Tensor, *others: Tensor) -> Tensor:  # type: ignore[override]
        by_row = [input, *others] if self.batch_first else _swapped((input, *others))
        result = self.by_row(self._weights(), *by_row)
        return result if self.batch_first else result.transpose(0, 1)

    def by_row(
        self, weights: list[Tensor], x: Tensor, h_0: Tensor, c_0: Tensor, *masks: Tensor
    ) -> Tensor:
        """The layer for tensors whose dimension 0 are the rows: (N, features of all results)."""
        resets = next((mask for mask in masks if mask.dtype == torch.bool), None)
        lengths = next((mask for mask in masks if mask.dtype != torch.bool), None)
        y, h_n, c_n, _ = lstm_stack(
            x,
            (h_0.transpose(0, 1), c_0.transpose(0, 1)),
            weights,
            StackOptions(bidirectional=self.bidirectional, batch_first=True),
            lengths=None if lengths is None else lengths.squeeze(1),
            reset_mask=resets,
        )
        return torch.cat([y.flatten(1), *(s.transpose(0, 1).flatten(1) for s in (h_n, c_n))], dim=1)


@register_grad_sampler(_Layer)  # type: ignore[untyped-decorator]
def _gradients_of_each_sample(
    layer: _Layer, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Opacus hands all of them over with the rows in dimension 0."""
    parameters = list(layer.parameters())

    def of_one(backprop: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        def run(*weights: Tensor) -> Tensor:
            return layer.by_row(list(weights), *(t.unsqueeze(0) for t in inputs))

        weights = [parameter.detach() for parameter in parameters]
        gradients: tuple[Tensor, ...] = torch.func.vjp(run, *weights)[1](backprop.unsqueeze(0))
        return gradients

    with torch.no_grad():
        gradients = torch.func.vmap(of_one)(backprops, *activations)
    pairs = zip(parameters, gradients, strict=True)
    return {parameter: gradient for parameter, gradient in pairs if parameter.requires_grad}


class DPFusedLSTM(nn.Module):
    """FusedLSTM for opacus.GradSampleModule and PrivacyEngine: its arguments, state_dict and
    results. batch_first must be that of the GradSampleModule.

    return_cell_states is not offered, and h_0 and c_0 must be batched as the input is.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, dropout
        self.bidirectional, self.proj_size = bidirectional, proj_size
        self.directions = 2 if bidirectional else 1
        output_size = self.directions * (proj_size or hidden_size)
        layers = [
            _Layer(
                output_size if k else input_size,
                hidden_size,
                bias=bias,
                batch_first=batch_first,
                bidirectional=bidirectional,
                proj_size=proj_size,
            )
            for k in range(num_layers)
        ]
        self.layers = nn.ModuleList(layers)
        # Parameters must live where Opacus hooks them; a state_dict names them as nn.LSTM does.
        self._own_names = {
            name.replace("_l0", f"_l{k}"): f"layers.{k}.{name}"
            for k, layer in enumerate(layers)
            for name, _ in layer.named_parameters()
        }
        self.register_state_dict_post_hook(  # type: ignore[no-untyped-call]
            DPFusedLSTM._rename_saved
        )
        self.register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]
            DPFusedLSTM._rename_loaded
        )

    def _rename_saved(self, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        for name, own_name in self._own_names.items():
            if prefix + own_name in state:
                state[prefix + name] = state.pop(prefix + own_name)

    def _rename_loaded(self, state: dict[str, Any], prefix: str, *others: Any) -> None:
        for name, own_name in self._own_names.items():
            if prefix + name in state:
                state[prefix + own_name] = state.pop(prefix + name)

    @classmethod
    def from_fused(cls, module: FusedLSTM) -> DPFusedLSTM:
        """A copy of a FusedLSTM; without `recompute`, which gradients of each sample do not use.

        Raises:
            ValueError: an option by which the module computes what nn.LSTM does not.
        """
        if reason := why_not_torchs(module):
            raise ValueError(f"DPFusedLSTM has no {reason}")
        names = "input_size hidden_size num_layers bias batch_first dropout bidirectional proj_size"
        weight = next(module.parameters())
        with weight.device:
            own = cls(**{name: getattr(module, name) for name in names.split()})
        own.to(dtype=weight.dtype)
        own.load_state_dict(module.state_dict())
        return own.train(module.training)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Hidden | None = None,
        *,
        lengths: Tensor | None = None,
        reset_mask: Tensor | None = None,
    ) -> tuple[Any, Hidden]:
        """As :class:`lstm_fused.FusedLSTM`, for batched input."""
        if isinstance(input, PackedSequence):
            padded, lengths = pad_packed_sequence(input, self.batch_first)
            y, hidden = self(padded, hx, lengths=lengths, reset_mask=reset_mask)
            return pack_padded_sequence(y, lengths, self.batch_first, enforce_sorted=False), hidden
        batch_dim = 0 if self.batch_first else 1
        rows, steps = input.shape[batch_dim], input.shape[1 - batch_dim]
        if hx is None:
            sizes = (self.num_layers * self.directions, rows)
            h_0 = input.new_zeros(*sizes, self.proj_size or self.hidden_size)
            hx = h_0, input.new_zeros(*sizes, self.hidden_size)
        masks = [] if lengths is None else [lengths.to(input.device).unsqueeze(1 - batch_dim)]
        masks += [] if reset_mask is None else [reset_mask]
        widths = (steps * hx[0].shape[2], hx[0].shape[2], hx[1].shape[2])
        y, final = input, []
        for k, layer in enumerate(self.layers):
            if k > 0:
                y = F.dropout(y, self.dropout, self.training)
            own = slice(k * self.directions, (k + 1) * self.directions)
            states = [s[own].transpose(0, 1) if self.batch_first else s[own] for s in hx]
            result = layer(y, *states, *masks)
            by_row = result if self.batch_first else result.transpose(0, 1)
            parts = by_row.split([self.directions * width for width in widths], dim=1)
            y, h_n, c_n = (
                part.unflatten(1, (steps if j == 0 else self.directions, -1))
                for j, part in enumerate(parts)
            )
            y = y if self.batch_first else y.transpose(0, 1)
            final.append((h_n.transpose(0, 1), c_n.transpose(0, 1)))
        return y, (torch.cat([h for h, _ in final]), torch.cat([c for _, c in final]))


def _swapped(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [tensor.transpose(0, 1) for tensor in tensors]
