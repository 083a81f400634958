# SPDX-License-Identifier: BSD-3-Clause
"""What FusedLSTM's forward does beyond its fast path: every layout of input, masks, options."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lstm_fused._cell_options import CellOption, CellOptions, OptionsRunner, check_reset_state
from lstm_fused._ops.checks import IN_PYTHON, check_reset_mask, refuse_packed_masks
from lstm_fused._torch.lstm_checks import CheckedAsTorch, Hidden
from lstm_fused._torch.torch_kernels import run_torch
from lstm_fused._variants import drop_recurrent_weights, learned_states
from lstm_fused.autograd import lstm_layer
from lstm_fused.functional import StackOptions, lstm_stack


class GeneralPath(CheckedAsTorch):
    """The options of FusedLSTM, and its calls in general."""

    # Modules that were an nn.LSTM once have no such attributes of their own.
    backend = "auto"
    recompute = False
    forget_bias: float | None = None
    init: str | None = None
    learned_state = False
    weight_dropout = 0.0
    cell_options: CellOptions | None = None
    recurrent_dropout: Any = CellOption("recurrent_dropout")
    zoneout: Any = CellOption("zoneout")
    layer_norm: Any = CellOption("layer_norm")
    peephole: Any = CellOption("peephole")
    cell_clip: Any = CellOption("cell_clip")
    coupled_gates: Any = CellOption("coupled_gates")
    # What runs a layer. `lstm_fused.trace` sets another, and a backend that is neither, so that a
    # call takes the general path, for the time of a call.
    _run_layer = staticmethod(lstm_layer)

    def _forward_generally(
        self,
        input: Tensor | PackedSequence,
        hx: Hidden | None,
        *,
        lengths: Tensor | None,
        reset_mask: Tensor | None,
        reset_state: Hidden | None,
        return_cell_states: bool,
    ) -> Any:
        if isinstance(input, PackedSequence):
            refuse_packed_masks(lengths, reset_mask, IN_PYTHON)
            if reset_state is not None:
                raise ValueError("reset_state needs reset_mask, got None")
            return self._forward_packed(input, hx, return_cell_states)
        if input.dim() not in (2, 3):
            raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {input.dim()}D instead")
        if input.dim() == 2:
            return self._forward_unbatched(
                input, hx, lengths, reset_mask, reset_state, return_cell_states
            )
        self._check_hidden_rank(hx)
        y, h_n, c_n, cell_states = self._run(
            input,
            hx,
            lengths=lengths,
            reset_mask=reset_mask,
            reset_state=reset_state,
            return_cell_states=return_cell_states,
        )
        if return_cell_states:
            return y, (h_n, c_n), cell_states
        return y, (h_n, c_n)

    def _forward_unbatched(
        self,
        input: Tensor,
        hx: Hidden | None,
        lengths: Tensor | None,
        reset_mask: Tensor | None,
        reset_state: Hidden | None,
        return_cell_states: bool,
    ) -> Any:
        batch_dim = 0 if self.batch_first else 1
        if hx is not None:
            if hx[0].dim() != 2 or hx[1].dim() != 2:
                raise RuntimeError(
                    "For unbatched 2-D input, hx and cx should "
                    f"also be 2-D but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
                )
            hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        if lengths is not None:
            raise ValueError("lengths needs batched 3-D input, got unbatched 2-D input")
        if reset_mask is not None:
            check_reset_mask(reset_mask, input.shape[:1], input.device, IN_PYTHON)
            reset_mask = reset_mask.unsqueeze(batch_dim)
        y, h_n, c_n, cell_states = self._run(
            input.unsqueeze(batch_dim),
            hx,
            reset_mask=reset_mask,
            reset_state=reset_state,
            return_cell_states=return_cell_states,
        )
        hidden = (h_n.squeeze(1), c_n.squeeze(1))
        if return_cell_states:
            assert cell_states is not None
            return y.squeeze(batch_dim), hidden, cell_states.squeeze(batch_dim)
        return y.squeeze(batch_dim), hidden

    def _forward_packed(
        self, input: PackedSequence, hx: Hidden | None, return_cell_states: bool
    ) -> Any:
        data, batch_sizes, sorted_indices, unsorted_indices = input
        y, h_n, c_n, cell_states = self._run(
            data,
            None if hx is None else self.permute_hidden(hx, sorted_indices),
            batch_sizes=batch_sizes,
            return_cell_states=return_cell_states,
        )
        hidden = self.permute_hidden((h_n, c_n), unsorted_indices)
        packed_y = PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices)
        if return_cell_states:
            assert cell_states is not None
            packed_c = PackedSequence(cell_states, batch_sizes, sorted_indices, unsorted_indices)
            return packed_y, hidden, packed_c
        return packed_y, hidden

    def _run(
        self,
        input: Tensor,
        hx: Hidden | None,
        *,
        lengths: Tensor | None = None,
        batch_sizes: Tensor | None = None,
        reset_mask: Tensor | None = None,
        reset_state: Hidden | None = None,
        return_cell_states: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        weights = self._weights()
        self._check_input(input, batch_sizes, weights[0].dtype)
        if self.weight_dropout and self.training:
            blocks = self.num_layers * (2 if self.bidirectional else 1)
            weights = drop_recurrent_weights(weights, blocks, self.weight_dropout)
        if hx is None and self.learned_state:
            hx = learned_states(self, self.get_expected_hidden_size(input, batch_sizes)[1])
        elif hx is None:
            sizes = self.get_expected_hidden_size(input, batch_sizes)
            h_0 = torch.zeros(sizes, dtype=input.dtype, device=input.device)
            if self.proj_size > 0:
                sizes = self.get_expected_cell_size(input, batch_sizes)
                c_0 = torch.zeros(sizes, dtype=input.dtype, device=input.device)
            else:
                c_0 = h_0
            hx = (h_0, c_0)
        else:
            self._check_hidden(input, hx, batch_sizes)
            if isinstance(hx, Tensor):
                raise TypeError("lstm: hx must be a tuple of two tensors, (h_0, c_0), got a tensor")
            if len(hx) != 2:
                raise RuntimeError("lstm expects two hidden states")
        if self.backend == "cudnn":
            extras = (
                *(lengths, reset_mask, reset_state),
                *(return_cell_states or None, self.recompute or None),
            )
            return (*run_torch(self, input, hx, weights, batch_sizes, extras), None)
        run_layer = self._run_layer
        if self.cell_options is not None or reset_state is not None:
            if reset_state is not None:
                reset_state = check_reset_state(reset_state, reset_mask, self, hx[0].shape[1])
            run_layer = OptionsRunner(self, reset_state, run_layer)
        options = StackOptions(
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            # NOTE: not read where it is not needed; compile(dynamic=True) takes a float for a
            # variable, and traces everything once more when it turns out to be a constant.
            dropout=self.dropout if self.training and self.num_layers > 1 else 0.0,
            training=self.training,
            batch_first=self.batch_first,
            return_cell_states=return_cell_states,
            recompute=self.recompute,
        )
        return lstm_stack(
            input,
            hx,
            weights,
            options,
            lengths=lengths,
            batch_sizes=batch_sizes,
            reset_mask=reset_mask,
            run_layer=run_layer,
        )
