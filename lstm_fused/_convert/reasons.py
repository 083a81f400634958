# SPDX-License-Identifier: BSD-3-Clause
"""Why a module cannot be swapped for its twin."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from lstm_fused._cell_options import describe_options
from lstm_fused._convert import torchrl
from lstm_fused._convert.subclass import HARMLESS, why_not_rebased
from lstm_fused._ops import native
from lstm_fused._ops.checks import KERNEL_DTYPES
from lstm_fused._torch.module_state import NOT_SHARED, original_class


def why_not_swapped(module: nn.Module, counterpart: type[nn.Module]) -> str | None:
    """Why an instance cannot be replaced by a module of `counterpart`; None if it can."""
    for name in vars(module):
        if name not in HARMLESS and callable(getattr(counterpart, name, None)):
            return (
                f"its instance has a {name} of its own, which would run in the twin as well: "
                "swap first, then patch"
            )
    if vars(module).get("_compiled_call_impl") is not None:
        return "it was compiled by module.compile(): swap first, then compile"
    if _is_sharded(module):
        return "its parameters are sharded: swap first, then shard"
    return None


def why_not_fused(
    module: nn.Module, torch_class: type[nn.Module], fused_class: type[nn.Module]
) -> str | None:
    """Why an nn.LSTM or nn.LSTMCell (`torch_class`), or an instance of a subclass, cannot be
    swapped for a `fused_class`; None if it can."""
    reason = why_not_swapped(module, torch_class)
    if reason is not None:
        return reason
    if any(is_lazy(tensor) for tensor in _tensors(module)):
        return "it is lazy and has no sizes yet: call it once, then convert"
    if isinstance(module, LazyModuleMixin):
        return "it is lazy"
    for name in vars(module).keys() - NOT_SHARED:
        if not hasattr(torch_class, name) and hasattr(fused_class, name):
            return f"its attribute {name} would hide {fused_class.__name__}'s"
    for tensor in _tensors(module):
        if tensor.dtype not in KERNEL_DTYPES and (
            tensor.is_complex() or tensor.is_floating_point()
        ):
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in KERNEL_DTYPES)
            return f"its dtype is {tensor.dtype}, and there are kernels for {names}"
    return why_not_rebased(original_class(module), torch_class, fused_class)


def refuse_unlike(
    module: nn.Module, torch_class: type[nn.Module], fused_class: type[nn.Module]
) -> None:
    """Raises TypeError for a module that cannot be given as a `fused_class`."""
    reason = why_not_fused(module, torch_class, fused_class)
    if reason is not None:
        raise TypeError(f"from_torch cannot take this {type(module).__name__}: {reason}")


def why_not_on_its_device(module: nn.Module) -> str | None:
    """Why a twin would not run kernels where the module is."""
    for tensor in _tensors(module):
        device = tensor.device
        if device.type not in ("cpu", "meta") and not native.has_kernels(device):
            return f"it is on {device}, for which this installation has no kernels"
    return None


def why_not_packed(module: nn.Module) -> str | None:
    """Why the weights of an LSTM or a cell cannot be packed; None if they can."""
    if getattr(module, "learned_state", False):
        return "it has learned_state=True, which packed modules do not have"
    if options := describe_options(getattr(module, "cell_options", None)):
        return f"it has {options}, which packed modules do not have"
    if any(is_lazy(tensor) for tensor in _tensors(module)):
        return "it is lazy and has no sizes yet: call it once, then quantize"
    for tensor in _tensors(module):
        if tensor.device.type != "cpu":
            return f"it is on {tensor.device}, and packed weights are for the CPU"
        if tensor.is_complex():
            return f"its dtype is {tensor.dtype}"
    return None


def why_foreign(module: nn.Module) -> str | None:
    """Why an LSTM that is none of torch.nn's is left; None for what is no such LSTM."""
    kind = type(module)
    name = str(getattr(module, "original_name", kind.__name__))
    if "LSTM" not in name:
        return None
    if isinstance(module, torch.jit.ScriptModule):
        return "it is TorchScript: convert first, then trace under torch.no_grad()"
    if kind.__module__.startswith(("torch.ao.nn", "torch.nn.quantized", "torch.nn.quantizable")):
        return "it is made for quantisation"
    return torchrl.why_foreign(module)


def why_kept_by(owner: nn.Module) -> str | None:
    """Why a module must keep the LSTM that it holds; None if it need not."""
    if type(owner).__name__ == "OptimizedModule":
        return "it was compiled by torch.compile: swap first, then compile"
    return torchrl.why_kept(owner)


def why_kept_within(owner: nn.Module) -> str | None:
    """Why all LSTMs within a module must stay; None if they need not."""
    return "it is inside of FSDP: swap first, then shard" if _is_fsdp(owner) else None


def _is_fsdp(module: nn.Module) -> bool:
    """Whether it is FSDP's, of either generation, and so holds on to the modules within."""
    return any(c.__module__.startswith("torch.distributed.fsdp") for c in type(module).__mro__)


def _is_sharded(module: nn.Module) -> bool:
    return _is_fsdp(module) or any(type(t).__name__ == "DTensor" for t in _tensors(module))


def _tensors(module: nn.Module) -> chain[torch.Tensor]:
    return chain(module.parameters(), module.buffers())
