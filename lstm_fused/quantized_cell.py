# SPDX-License-Identifier: BSD-3-Clause
"""`QuantizedLSTMCell`: one step with weights of 8 or 16 bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lstm_fused._ops import native
from lstm_fused._ops.layer_weights import LayerWeights
from lstm_fused._quantized.base import PackedModule, as_floats, cast_for_autocast
from lstm_fused._quantized.packing import Header, Scales, pack, unpack
from lstm_fused._stream.of_module import packed_stream_of
from lstm_fused._stream.stream import Stream
from lstm_fused._torch.fx import find_proxy, mark_leaf, record_call
from lstm_fused._torch.lstm_checks import Hidden, check_cell_sizes
from lstm_fused.autograd import fast_path
from lstm_fused.cell import FusedLSTMCell


class QuantizedLSTMCell(PackedModule):
    """A :class:`FusedLSTMCell` for inference with packed weights, as
    :class:`~lstm_fused.QuantizedLSTM` has them."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        weights: torch.dtype = torch.int8,
    ) -> None:
        super().__init__(weights)
        FusedLSTMCell(input_size, hidden_size, bias, device="meta")  # raises as nn.LSTMCell
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        self._register_zeros()
        mark_leaf(self)

    @classmethod
    def from_float(
        cls,
        module: Any,
        part: LayerWeights,
        names: Sequence[str],
        weights: torch.dtype,
        scales: Scales | None = None,
    ) -> QuantizedLSTMCell:
        """As QuantizedLSTM's."""
        own = cls.__new__(cls)
        PackedModule.__init__(own, weights)
        own.input_size, own.hidden_size = module.input_size, module.hidden_size
        own.bias = part.b_ih is not None
        own._packed_names = ("packed",)
        own.register_buffer("packed", pack(part, names, weights, scales))
        mark_leaf(own)
        return own

    def _headers(self) -> dict[str, Header]:
        hidden_size = self.hidden_size
        sizes = (self.input_size, hidden_size, hidden_size)
        return {"packed": Header(self.weights, *sizes, False, bool(self.bias))}

    def extra_repr(self) -> str:
        bias = "" if self.bias else ", bias=False"
        return f"{self.input_size}, {self.hidden_size}{bias}, weights={self.weights}"

    def dequantize(self) -> FusedLSTMCell:
        """A FusedLSTMCell with the weights that this module computes with; bias_hh is zero."""
        sizes = (self.input_size, self.hidden_size, self.bias)
        cell = FusedLSTMCell(*sizes, device="cpu", dtype=torch.float32)
        (packed,) = self._packed()
        with torch.no_grad():
            for parameter, weight in zip(cell._weights(), unpack(packed), strict=True):
                parameter.copy_(weight)
        return cell.train(self.training)

    def stream(self, batch_size: int = 1) -> Stream:
        """A stream of this cell; see :meth:`QuantizedLSTM.stream`."""
        return packed_stream_of(self, self._packed, batch_size)

    def forward(self, input: Tensor, hx: Hidden | None = None) -> Hidden:
        """One step: arguments, results and errors are those of :meth:`FusedLSTMCell.forward`.

        Raises:
            RuntimeError: also where the call would need gradients.
        """
        if fast_path.can_run(input, hx, rank=2) and input.dtype is torch.float32:
            self._refuse_gradients(input, hx)
            given = (None, None) if hx is None else hx
            try:
                next_h, next_c = native.lstm_quantized_cell_op(
                    input, *given, *self._packed(), self.hidden_size
                )
            except RuntimeError:
                # Where nn.LSTMCell has a sentence of its own, the op's is another one.
                self._check_sizes(input, hx)
                raise
            return next_h, next_c
        proxy = find_proxy(input, hx)
        if proxy is not None:
            call: Hidden = record_call(proxy, self, input, hx)
            return call
        if input.dim() not in (1, 2):
            raise ValueError(f"LSTMCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
        if hx is not None:
            self._check_states(hx)
        self._refuse_tangents(input, hx)
        input, hx = cast_for_autocast(input, hx)
        is_batched = input.dim() == 2
        if not is_batched:
            input = input.unsqueeze(0)
            hx = None if hx is None else (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
        self._check_sizes(input, hx)
        dtype = input.dtype
        input, hx = as_floats(input, hx)
        h_0, c_0 = (None, None) if hx is None else hx
        h, c = torch.ops.lstm_fused.lstm_quantized_cell.default(
            input, h_0, c_0, *self._packed(), self.hidden_size
        )
        if dtype != torch.float32:
            h, c = h.to(dtype), c.to(dtype)
        # Copies, since a view cannot be detached in place, which loops over a cell do.
        return (h, c) if is_batched else (h.squeeze(0).clone(), c.squeeze(0).clone())

    def _check_states(self, hx: Hidden) -> None:
        if isinstance(hx, Tensor):
            raise TypeError(
                "lstm_cell(): argument 'hx' (position 2) must be tuple of Tensors, not Tensor"
            )
        if len(hx) != 2:
            raise RuntimeError("lstm_cell expects two hidden states")
        for index, value in enumerate(hx):
            if not isinstance(value, Tensor):
                raise TypeError(f"LSTMCell: hx must hold tensors, got {type(value).__name__}")
            if value.dim() not in (1, 2):
                raise ValueError(
                    f"LSTMCell: Expected hx[{index}] to be 1D or 2D, got {value.dim()}D instead"
                )

    def _check_sizes(self, input: Tensor, hx: Hidden | None) -> None:
        """Raises in nn.LSTMCell's sentences where a batch of rows and its states do not fit."""
        self._check_tensors(input, hx, ("h", "c"))
        check_cell_sizes(input, hx or (), self.input_size, self.hidden_size)
