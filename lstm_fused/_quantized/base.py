# SPDX-License-Identifier: BSD-3-Clause
"""What the quantized modules share: buffers of packed weights, and the refusal of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lstm_fused._quantized.packing import (
    Header,
    check_weight_dtype,
    pack,
    why_not_loaded,
    zero_weights,
)
from lstm_fused._torch.autocast import is_autocast_enabled
from lstm_fused._torch.jit import refuse_script

Hidden = tuple[Tensor, Tensor]


class PackedModule(nn.Module):
    """A module whose weights are packed, once, in buffers of bytes.

    Casts to another dtype leave them as they are: input, output and states are float32.
    """

    weights: torch.dtype
    _packed_names: tuple[str, ...] = ()
    __prepare_scriptable__ = refuse_script

    def __init__(self, weights: torch.dtype) -> None:
        super().__init__()
        check_weight_dtype(weights)
        self.weights = weights
        self.training = False

    def _headers(self) -> dict[str, Header]:
        """What each buffer holds, by the buffers' names."""
        raise NotImplementedError

    def _register_zeros(self) -> None:
        self._packed_names = tuple(self._headers())
        for name, header in self._headers().items():
            zeros = zero_weights(header)
            names = [""] * len(zeros.flatten())
            self.register_buffer(name, pack(zeros, names, self.weights))

    def _packed(self) -> list[Tensor]:
        # NOTE: nn.Module's own way to an attribute takes half a microsecond for each.
        buffers: Any = self._buffers
        return [buffers[name] for name in self._packed_names]

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Refuses packed weights of another format, type or size, and leaves this module's then."""
        faults = []
        for name, header in self._headers().items():
            packed = state_dict.get(prefix + name)
            reason = None if packed is None else why_not_loaded(packed, header)
            if reason is not None:
                faults.append(f"{prefix}{name}: {reason}")
        if faults:
            error_msgs += faults
            return
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )

    def _refuse_gradients(self, input: Tensor, hx: Sequence[Tensor] | None) -> None:
        """Raises RuntimeError where a call would have to be differentiated."""
        if not torch.is_grad_enabled():
            return
        name = type(self).__name__
        needs_grad = input.requires_grad or any(state.requires_grad for state in hx or ())
        if self.training or needs_grad:
            raise RuntimeError(
                f"{name} is for inference and has no gradients: call it in eval() mode with inputs "
                "that need none, or under torch.no_grad(); or train its dequantize()"
            )

    def _check_floats(self, input: Tensor, hx: Sequence[Tensor] | None) -> None:
        name = type(self).__name__
        for what, tensor in (("input", input), *zip(("h_0", "c_0"), hx or (), strict=False)):
            if tensor.device.type not in ("cpu", "meta"):
                raise RuntimeError(f"{name} runs on the CPU, got {what} on {tensor.device}")
            if tensor.dtype != torch.float32:
                raise ValueError(f"{name} takes torch.float32, got {what} of {tensor.dtype}")


def cast_for_autocast(input: Tensor, hx: Hidden | None) -> tuple[Tensor, Hidden | None]:
    """float32, in which packed weights compute, of what autocast has made of it."""
    if not is_autocast_enabled(input.device):
        return input, hx
    states = None if hx is None else (hx[0].float(), hx[1].float())
    return input.float(), states
