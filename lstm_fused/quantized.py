# SPDX-License-Identifier: BSD-3-Clause
"""`QuantizedLSTM`: inference with weights of 8 or 16 bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lstm_fused._ops import checks, native
from lstm_fused._ops.layer_weights import LayerWeights
from lstm_fused._quantized.base import PackedModule, as_floats, cast_for_autocast
from lstm_fused._quantized.packing import Header, Scales, pack, unpack
from lstm_fused._stream.of_module import packed_stream_of
from lstm_fused._stream.stream import Stream
from lstm_fused._torch.fx import find_proxy, mark_leaf, record_call
from lstm_fused._torch.lstm_checks import Hidden
from lstm_fused.autograd import fast_path
from lstm_fused.module import FusedLSTM


class QuantizedLSTM(PackedModule):
    """A :class:`FusedLSTM` for inference whose weights are packed, as int8, bfloat16 or float16.

    With few rows a step takes the time in which its weights are read, so fewer bytes are less time.
    int8 weights have a scale for each row of 4H, and only they are rounded: activations keep 16
    bits. Input and states may have any of FusedLSTM's dtypes, which the results have too; what is
    computed is float32.

    Made by :func:`lstm_fused.quantize`; a module that is constructed has zero weights, to load a
    state_dict into.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size:
            as FusedLSTM. dropout is kept for `dequantize`.
        weights: torch.int8, torch.bfloat16 or torch.float16.
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
        *,
        weights: torch.dtype = torch.int8,
    ) -> None:
        super().__init__(weights)
        options = (num_layers, bias, batch_first, dropout, bidirectional, proj_size)
        FusedLSTM(input_size, hidden_size, *options, device="meta")  # raises as nn.LSTM
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self._register_zeros()
        mark_leaf(self)

    @classmethod
    def from_float(
        cls,
        module: Any,
        parts: Sequence[LayerWeights],
        names: Sequence[Sequence[str]],
        weights: torch.dtype,
        scales: Sequence[Scales] | None = None,
    ) -> QuantizedLSTM:
        """A module with the options of `module` and these weights, of each layer and direction.

        Raises:
            ValueError: a weight, which is named, is not finite.
        """
        own = cls.__new__(cls)
        PackedModule.__init__(own, weights)
        for name in _OPTIONS:
            setattr(own, name, getattr(module, name))
        own.proj_size = getattr(module, "proj_size", 0)
        own._packed_names = tuple(own._headers())
        for index, name in enumerate(own._packed_names):
            scale = None if scales is None else scales[index]
            own.register_buffer(name, pack(parts[index], names[index], weights, scale))
        mark_leaf(own)
        return own

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def _output_size(self) -> int:
        return self.proj_size or self.hidden_size

    def _headers(self) -> dict[str, Header]:
        headers = {}
        for layer in range(self.num_layers):
            features = self._output_size * self._directions if layer else self.input_size
            for suffix in ("", "_reverse")[: self._directions]:
                headers[f"packed_l{layer}{suffix}"] = Header(
                    self.weights,
                    features,
                    self.hidden_size,
                    self._output_size,
                    self.proj_size > 0,
                    bool(self.bias),
                )
        return headers

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            text += "" if value == default else f", {name}={value}"
        return f"{text}, weights={self.weights}"

    def flatten_parameters(self) -> None:
        """Does nothing; it is here since models call it on their nn.LSTM."""

    def dequantize(self) -> FusedLSTM:
        """A FusedLSTM with the weights that this module computes with; b_hh is zero, since both
        biases are kept as their sum."""
        options = {name: getattr(self, name) for name in (*_OPTIONS, "proj_size")}
        lstm = FusedLSTM(**options, device="cpu", dtype=torch.float32)
        flat = [weight for packed in self._packed() for weight in unpack(packed)]
        with torch.no_grad():
            for parameter, weight in zip(lstm._weights(), flat, strict=True):
                parameter.copy_(weight)
        return lstm.train(self.training)

    def stream(self, batch_size: int = 1) -> Stream:
        """A stream of this module, with the module's own bits; see :meth:`FusedLSTM.stream`. It
        keeps a copy of the packed weights, as small as they are.

        Raises:
            TypeError, ValueError, RuntimeError: as :meth:`FusedLSTM.stream`.
        """
        if self.bidirectional:
            raise ValueError("a stream has one direction, got a bidirectional QuantizedLSTM")
        return packed_stream_of(self, self._packed, batch_size, batch_first=self.batch_first)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Hidden | None = None,
        *,
        lengths: Tensor | None = None,
        reset_mask: Tensor | None = None,
        return_cell_states: bool = False,
    ) -> Any:
        """Runs the LSTM: arguments, results and errors are those of :meth:`FusedLSTM.forward`.

        Raises:
            RuntimeError: also where the call would need gradients.
        """
        if (
            lengths is None
            and reset_mask is None
            and not return_cell_states
            and fast_path.can_run(input, hx, rank=3)
            and input.dtype is torch.float32  # type: ignore[union-attr]
        ):
            assert isinstance(input, Tensor)
            self._refuse_gradients(input, hx)
            x = input.transpose(0, 1) if self.batch_first else input
            states = (None, None) if hx is None else hx
            try:
                y, h_n, c_n, _ = native.lstm_quantized_op(
                    *(x, *states, self._packed(), None, None, None),
                    *(self.hidden_size, self.proj_size or self.hidden_size),
                    *(2 if self.bidirectional else 1, False),
                )
            except RuntimeError:
                # Where nn.LSTM has a sentence of its own, the op's is another one.
                self._check_sizes(input, hx, None)
                raise
            return y.transpose(0, 1) if self.batch_first else y, (h_n, c_n)
        proxy = find_proxy(input, hx, lengths, reset_mask)
        if proxy is not None:
            masks = {"lengths": lengths, "reset_mask": reset_mask}
            flags = {"return_cell_states": return_cell_states}
            return record_call(proxy, self, input, hx, **masks, **flags)
        _check_pair(hx)
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx, lengths, reset_mask, return_cell_states)
        if input.dim() not in (2, 3):
            raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {input.dim()}D instead")
        if input.dim() == 3:
            return self._run(input, hx, lengths, None, reset_mask, return_cell_states)

        # Run a batch of one row.
        rows = 0 if self.batch_first else 1
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
            checks.check_reset_mask(reset_mask, input.shape[:1], input.device, checks.IN_PYTHON)
            reset_mask = reset_mask.unsqueeze(rows)
        y, (h_n, c_n), *rest = self._run(
            input.unsqueeze(rows), hx, None, None, reset_mask, return_cell_states
        )
        return y.squeeze(rows), (h_n.squeeze(1), c_n.squeeze(1)), *(c.squeeze(rows) for c in rest)

    def _forward_packed(
        self,
        input: PackedSequence,
        hx: Hidden | None,
        lengths: Tensor | None,
        reset_mask: Tensor | None,
        return_cell_states: bool,
    ) -> Any:
        checks.refuse_packed_masks(lengths, reset_mask, checks.IN_PYTHON)
        data, batch_sizes, order, back = input
        if hx is None:
            runs, batch = self.num_layers * self._directions, int(batch_sizes[0])
            hx = (
                data.new_zeros(runs, batch, self._output_size),
                data.new_zeros(runs, batch, self.hidden_size),
            )
        elif order is not None:
            hx = (hx[0].index_select(1, order), hx[1].index_select(1, order))
        y, (h_n, c_n), *rest = self._run(data, hx, None, batch_sizes, None, return_cell_states)
        if back is not None:
            h_n, c_n = h_n.index_select(1, back), c_n.index_select(1, back)
        return (
            PackedSequence(y, batch_sizes, order, back),
            (h_n, c_n),
            *(PackedSequence(c, batch_sizes, order, back) for c in rest),
        )

    def _run(
        self,
        input: Tensor,
        hx: Hidden | None,
        lengths: Tensor | None,
        batch_sizes: Tensor | None,
        reset_mask: Tensor | None,
        return_cell_states: bool,
    ) -> Any:
        self._refuse_tangents(input, hx)
        input, hx = cast_for_autocast(input, hx)
        self._check_sizes(input, hx, batch_sizes)
        dtype = input.dtype
        input, hx = as_floats(input, hx)
        is_batch_first = self.batch_first and batch_sizes is None
        if batch_sizes is None:
            lengths = checks.place_lengths(lengths, input, is_batch_first)
            if reset_mask is not None:
                checks.check_reset_mask(reset_mask, input.shape[:2], input.device, checks.IN_PYTHON)
        if is_batch_first:
            input = input.transpose(0, 1).contiguous()
            reset_mask = None if reset_mask is None else reset_mask.transpose(0, 1).contiguous()
        h_0, c_0 = (None, None) if hx is None else hx
        y, h_n, c_n, cells = torch.ops.lstm_fused.lstm_quantized.default(
            *(input, h_0, c_0, self._packed(), lengths, batch_sizes, reset_mask),
            *(self.hidden_size, self._output_size, self._directions, return_cell_states),
        )
        if dtype != torch.float32:
            y, h_n, c_n, cells = (result.to(dtype) for result in (y, h_n, c_n, cells))
        if is_batch_first:
            y = y.transpose(0, 1)
            cells = cells.transpose(0, 1) if return_cell_states else cells
        return (y, (h_n, c_n), cells) if return_cell_states else (y, (h_n, c_n))

    def _check_sizes(self, input: Tensor, hx: Hidden | None, batch_sizes: Tensor | None) -> None:
        """Raises in nn.LSTM's sentences where input and states do not fit."""
        self._check_tensors(input, hx)
        rank = 3 if batch_sizes is None else 2
        if input.dim() != rank:
            raise RuntimeError(f"input must have {rank} dimensions, got {input.dim()}")
        if self.input_size != input.size(-1):
            raise RuntimeError(
                "input.size(-1) must be equal to input_size. "
                f"Expected {self.input_size}, got {input.size(-1)}"
            )
        rows_dim = 0 if self.batch_first else 1
        if batch_sizes is None:
            checks.check_steps(input.shape[1 - rows_dim])
        if hx is None:
            return
        if hx[0].dim() != 3 or hx[1].dim() != 3:
            raise RuntimeError(
                "For batched 3-D input, hx and cx should "
                f"also be 3-D but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
            )
        batch = hx[0].shape[1] if batch_sizes is not None else input.shape[rows_dim]
        runs = self.num_layers * self._directions
        for index, features in enumerate((self._output_size, self.hidden_size)):
            expected = (runs, batch, features)
            if hx[index].size() != expected:
                raise RuntimeError(
                    f"Expected hidden[{index}] size {expected}, got {list(hx[index].size())}"
                )


def _check_pair(hx: Any) -> None:
    """Raises in nn.LSTM's sentences unless hx is two tensors, or None."""
    if hx is None:
        return
    if isinstance(hx, Tensor):
        raise TypeError("lstm: hx must be a tuple of two tensors, (h_0, c_0), got a tensor")
    if len(hx) != 2:
        raise RuntimeError("lstm expects two hidden states")
    for state in hx:
        if not isinstance(state, Tensor):
            raise TypeError(f"lstm: hx must hold tensors, got {type(state).__name__}")


_DEFAULTS: dict[str, Any] = {
    "num_layers": 1,
    "bias": True,
    "batch_first": False,
    "dropout": 0.0,
    "bidirectional": False,
    "proj_size": 0,
}
_OPTIONS = ("input_size", "hidden_size", *(name for name in _DEFAULTS if name != "proj_size"))
