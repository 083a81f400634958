# SPDX-License-Identifier: BSD-3-Clause
"""`FusedLSTMCell`, the drop-in replacement of `torch.nn.LSTMCell`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lstm_fused._convert.reasons import refuse_unlike
from lstm_fused._ops.checks import check_tensors
from lstm_fused._stream.of_module import stream_of
from lstm_fused._stream.stream import Stream
from lstm_fused._torch.autocast import is_autocast_enabled, result_dtypes
from lstm_fused._torch.fx import find_proxy, mark_leaf, record_call
from lstm_fused._torch.jit import refuse_script
from lstm_fused._torch.lstm_checks import check_cell_sizes
from lstm_fused._torch.module_state import share_state, to_torch
from lstm_fused._torch.module_weights import weights_of
from lstm_fused._torch.sizes import is_new_size
from lstm_fused.autograd import fast_path
from lstm_fused.functional import StackOptions, lstm_stack

_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class FusedLSTMCell(nn.modules.rnn.RNNCellBase):
    """`nn.LSTMCell` with the kernels of :class:`FusedLSTM`: one step, one layer.

    Args:
        input_size: D, features of the input.
        hidden_size: H, features of the state.
        bias: use b_ih and b_hh.
        device, dtype: of the parameters.

    It has no `recompute`: the gates of one step are not worth a second product.

    Example:
        >>> cell = FusedLSTMCell(10, 20)
        >>> state = None
        >>> for x in torch.randn(5, 3, 10):
        ...     state = cell(x, state)
        >>> h, c = state
        >>> h.shape
        torch.Size([3, 20])
    """

    _torch_class: type[nn.Module] = nn.LSTMCell
    # Whether a size, or None for a bias, was assigned after construction.
    _is_resized = False
    __prepare_scriptable__ = refuse_script

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 4, device, dtype)
        mark_leaf(self)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            input: (N, D), or (D,) unbatched.
            hx: h and c, (N, H) each, or (H,) unbatched; zero if None.

        Returns:
            The next h and c, of the shapes of hx.

        Raises:
            ValueError, TypeError, RuntimeError: as nn.LSTMCell.
        """
        if (hx is not None or not self._is_resized) and fast_path.can_run(input, hx, rank=2):
            try:
                return fast_path.run_cell(input, hx, self._weights())
            except RuntimeError:
                # Where nn.LSTMCell has a sentence of its own, the op's is another one.
                self._check_arguments(input, hx)
                raise
        proxy = find_proxy(input, hx)
        if proxy is not None:
            call: tuple[Tensor, Tensor] = record_call(proxy, self, input, hx)
            return call
        if hx is None and self._is_resized:
            # Zeros of this size, which need not be that of the weights.
            sizes = (*input.shape[:-1], self.hidden_size)
            hx = (input.new_zeros(sizes), input.new_zeros(sizes))
        self._check_arguments(input, hx)
        is_batched = input.dim() == 2
        if not is_batched:
            input = input.unsqueeze(0)
            hx = None if hx is None else (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
        if hx is None:
            zeros = torch.zeros(
                input.size(0), self.hidden_size, dtype=input.dtype, device=input.device
            )
            hx = (zeros, zeros)
        states = (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
        _, h, c, _ = lstm_stack(input.unsqueeze(0), states, self._weights(), StackOptions())
        h, c = h.squeeze(0), c.squeeze(0)
        dtypes = result_dtypes(input, hx[1], cell=True)
        if dtypes is not None:
            h, c = h.to(dtypes[0]), c.to(dtypes[1])
        if not is_batched:
            h, c = h.squeeze(0), c.squeeze(0)
        # Copies, since a view cannot be detached in place, which loops over a cell do.
        return h.clone(), c.clone()

    def __setattr__(self, name: str, value: Any) -> None:
        is_new_bias = name in _NAMES[2:] and (value is None) == self.bias
        if is_new_bias or is_new_size(self, name, value):
            self.__dict__["_is_resized"] = True
        super().__setattr__(name, value)

    def _weights(self) -> list[Any]:
        own = self._parameters
        if not self._is_resized:
            if self.bias:
                return weights_of(self, _NAMES)
            if own.get("bias_ih") is None and own.get("bias_hh") is None:
                return weights_of(self, _NAMES[:2])
        weights = weights_of(self, _NAMES[:2])
        # As in nn.LSTMCell the biases that are there count, and not the attribute.
        given = [own[name] if name in own else getattr(self, name, None) for name in _NAMES[2:]]
        there = [bias for bias in given if bias is not None]
        if there:
            weights += [torch.zeros_like(there[0]) if bias is None else bias for bias in given]
        return weights

    def _note_sizes(self) -> None:
        """Notes whether the sizes or biases that another module gave are other than usual."""
        own: Any = self._parameters
        weights = zip(_NAMES[:2], (self.input_size, self.hidden_size), strict=True)
        lacks = self.bias and any(name in own and own[name] is None for name in _NAMES[2:])
        if lacks or any((w,) != own[k].shape[1:] for k, w in weights if own.get(k) is not None):
            self.__dict__["_is_resized"] = True

    def _check_arguments(self, input: Tensor, hx: tuple[Tensor, Tensor] | None) -> None:
        """Raises in nn.LSTMCell's sentences where the arguments do not fit."""
        if input.dim() not in (1, 2):
            raise ValueError(f"LSTMCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
        if hx is not None:
            for index, value in enumerate(hx):
                if value.dim() not in (1, 2):
                    raise ValueError(
                        f"LSTMCell: Expected hx[{index}] to be 1D or 2D, got {value.dim()}D instead"
                    )
            if isinstance(hx, Tensor):
                raise TypeError(
                    "lstm_cell(): argument 'hx' (position 2) must be tuple of Tensors, not Tensor"
                )
            if len(hx) != 2:
                raise RuntimeError("lstm_cell expects two hidden states")
        if input.dim() == 1:
            input = input.unsqueeze(0)
            hx = None if hx is None else (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
        input_size, hidden_size = self.input_size, self.hidden_size
        if self._is_resized:
            input_size, hidden_size = (weight.shape[1] for weight in self._weights()[:2])
        check_cell_sizes(input, hx or (), input_size, hidden_size)
        if not is_autocast_enabled(input.device):
            check_tensors(input, hx or (), self._weights(), names=("h", "c"))

    def stream(self, batch_size: int = 1) -> Stream:
        """A stream of this cell, as :meth:`FusedLSTM.stream` gives one of a module."""
        return stream_of(self, self._weights, 1, batch_size)

    @classmethod
    def from_torch(cls, module: nn.LSTMCell) -> FusedLSTMCell:
        """A FusedLSTMCell with the very Parameter objects and hooks of an nn.LSTMCell.

        Raises:
            TypeError: as :meth:`FusedLSTM.from_torch`.
        """
        if not isinstance(module, FusedLSTMCell._torch_class):
            raise TypeError(f"from_torch takes an nn.LSTMCell, got {type(module).__name__}")
        refuse_unlike(module, FusedLSTMCell._torch_class, cls)
        return share_state(module, cls)

    def to_torch(self) -> nn.LSTMCell:
        """An nn.LSTMCell with this module's very Parameter objects and hooks; of a converted
        subclass, one of that class."""
        cell: nn.LSTMCell = to_torch(self)
        return cell
