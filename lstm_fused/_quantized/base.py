# SPDX-License-Identifier: BSD-3-Clause
"""What the quantized modules share: buffers of packed weights, and the refusal of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from lstm_fused._ops.checks import check_tensors
from lstm_fused._quantized.packing import (
    Header,
    check_weight_dtype,
    pack,
    why_not_loaded,
    zero_weights,
)
from lstm_fused._torch.autocast import is_autocast_enabled
from lstm_fused._torch.jit import refuse_script
from lstm_fused._torch.lstm_checks import Hidden
from lstm_fused._torch.private import is_forward_mode_on
from lstm_fused._torch.sizes import is_new_size


class PackedModule(nn.Module):
    """A module whose weights are packed, once, in buffers of bytes.

    Casts to another dtype leave them as they are. Input and states have one floating dtype, which
    is that of the results too; what is computed in between is float32.
    """

    weights: torch.dtype
    _packed_names: tuple[str, ...] = ()

    def __init__(self, weights: torch.dtype) -> None:
        super().__init__()
        check_weight_dtype(weights)
        self.weights = weights
        self.training = False

    def __prepare_scriptable__(self) -> NoReturn:
        refuse_script(self, "Script its dequantize().to_torch(), in floating point")

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses another size than that of the packed weights, which would change nothing."""
        if is_new_size(self, name, value):
            raise AttributeError(
                f"{type(self).__name__}.{name} must stay {vars(self)[name]!r}, as its weights were "
                f"packed, got {value!r}: quantize a module of that size"
            )
        super().__setattr__(name, value)

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
            elif isinstance(packed, nn.Parameter):
                state_dict[prefix + name] = packed.detach()  # else assign=True makes it a parameter
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
        if torch.is_grad_enabled() and (
            self.training
            or input.requires_grad
            or (hx is not None and any(state.requires_grad for state in hx))
        ):
            self._refuse_derivatives()

    def _refuse_tangents(self, input: Tensor, hx: Sequence[Tensor] | None) -> None:
        """`_refuse_gradients`, and in forward mode too, which the fast path leaves alone."""
        self._refuse_gradients(input, hx)
        if not torch.compiler.is_compiling() and is_forward_mode_on():
            for tensor in (input, *(hx or ())):
                pair = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
                if pair.tangent is not None:
                    self._refuse_derivatives()

    def _refuse_derivatives(self) -> NoReturn:
        raise RuntimeError(
            f"{type(self).__name__} is for inference and has no gradients: call it in eval() mode "
            "with inputs that need none, or under torch.no_grad(); or train its dequantize()"
        )

    def _check_tensors(
        self, input: Tensor, hx: Sequence[Tensor] | None, names: tuple[str, str] = ("h_0", "c_0")
    ) -> None:
        """One floating dtype and one device, on which the packed weights are."""
        if input.device.type not in ("cpu", "meta"):
            name = type(self).__name__
            raise RuntimeError(f"{name} runs on the CPU, got input on {input.device}")
        check_tensors(input, hx or (), (), names=names)
        device = self._packed()[0].device
        if device != input.device:
            raise RuntimeError(
                "Input and parameter tensors are not at the same device, found input tensor at "
                f"{input.device} and parameter tensor at {device}"
            )


def as_floats(input: Tensor, hx: Hidden | None) -> tuple[Tensor, Hidden | None]:
    """Input and states in float32, in which packed weights compute."""
    return input.float(), None if hx is None else (hx[0].float(), hx[1].float())


def cast_for_autocast(input: Tensor, hx: Hidden | None) -> tuple[Tensor, Hidden | None]:
    """float32 of what autocast has made of it, so that results are float32."""
    return as_floats(input, hx) if is_autocast_enabled(input.device) else (input, hx)
