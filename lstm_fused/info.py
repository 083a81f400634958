# SPDX-License-Identifier: BSD-3-Clause
"""What was built, and what a call will do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lstm_fused._cell_options import describe_options
from lstm_fused._ops import native
from lstm_fused._torch.autocast import compute_dtype
from lstm_fused._torch.private import call_on_shapes
from lstm_fused.autograd.options_layer import has_option_kernels
from lstm_fused.cell import FusedLSTMCell
from lstm_fused.module import FusedLSTM
from lstm_fused.quantized import QuantizedLSTM
from lstm_fused.quantized_cell import QuantizedLSTMCell

# What a step is made of, by the kind of the cell: with options, with norms.
_WHAT_OPTIONS_COST = (
    "each step's products, then the cell, on the same units by the same thread",
    "each step's products, then norms and the cell by whole rows: a barrier more in each step",
)
_WHAT_OPTIONS_COST_CUDA = (
    "persistent, in the epilogue of each step's product, by kernels of their own; stepwise, in a "
    "kernel that follows the product",
    "no persistent kernels: each step's product, then norms and the cell in a kernel of its own, a "
    "block for each row",
)

# The modules that explain takes.
Explained = FusedLSTM | FusedLSTMCell | QuantizedLSTM | QuantizedLSTMCell

_NO_REFUSALS = {"cta": "", "group": ""}


def build_info() -> dict[str, Any]:
    """What this installation holds and what it uses on this machine.

    Keys: version, torch, kernels (whether the compiled part loaded), cuda (whether the CUDA kernels
    did), isas (instruction sets built in and runnable here, rising), isa (the one in use),
    compiler, threads; with cuda also cuda_architectures and cuda_version, of the toolkit that built
    the kernels, and without it cuda_problem.
    """
    from lstm_fused import __version__

    info: dict[str, Any] = {
        "version": __version__,
        "torch": torch.__version__,
        "kernels": native.compiled is not None,
        "cuda": native.compiled_cuda is not None,
        "threads": torch.get_num_threads(),
    }
    if native.compiled is not None:
        info["isas"] = native.compiled.available_isas()
        info["isa"] = native.compiled.best_isa()
        info["compiler"] = native.compiled.compiler()
    if native.compiled_cuda is not None:
        info["cuda_architectures"] = native.compiled_cuda.architectures().split()
        info["cuda_version"] = native.compiled_cuda.cuda_version()
    else:
        info["cuda_problem"] = native.cuda_problem
    return info


def explain(module: Explained, x: Tensor | PackedSequence) -> str:
    """Prints, and returns, which kernels a call takes and how, layer by layer.

    Args:
        module: the module to be called.
        x: an input as for its forward; only shape, dtype and device matter. Under autocast the
            dtype is autocast's, as in the call.

    Raises:
        TypeError: another module.
        ValueError, RuntimeError: an input that the module would refuse.
    """
    text = "\n".join(explain_lines(module, x))
    print(text)
    return text


def explain_lines(module: Explained, x: Tensor | PackedSequence) -> list[str]:
    """What `explain` prints: a line of the call, and then one for each layer's plan."""
    module = getattr(module, "_orig_mod", module)  # what torch.compile wraps
    if isinstance(module, QuantizedLSTM | QuantizedLSTMCell):
        return _explain_quantized(module, x)
    if not isinstance(module, FusedLSTM | FusedLSTMCell):
        raise TypeError(
            f"explain takes a FusedLSTM or a FusedLSTMCell, got {type(module).__name__}"
        )
    data = x.data if isinstance(x, PackedSequence) else x
    # Raises where the call would; a PackedSequence's rows serve as a batch of one.
    call_on_shapes(module.forward, data.unsqueeze(1) if isinstance(x, PackedSequence) else x)
    dtype = str(compute_dtype(data)).removeprefix("torch.")
    if getattr(module, "backend", "auto") == "cudnn":
        return [f'{data.device.type}, {dtype}: torch\'s own kernels, as backend="cudnn" asks for']
    if not native.has_kernels(data.device):
        native.check_cuda_kernels(data.device)
        return [f"{data.device.type}: no kernels for this device, plain torch operations run"]
    assert native.compiled is not None
    steps, batch = _steps_and_batch(module, x)
    data_rows = data.shape[0] if isinstance(x, PackedSequence) else steps * batch
    layers, directions, proj, hidden = 1, 1, 0, module.hidden_size
    if isinstance(module, FusedLSTM):
        layers, proj = module.num_layers, module.proj_size
        directions = 2 if module.bidirectional else 1
    recompute = getattr(module, "recompute", False)
    options = getattr(module, "cell_options", None)
    if options is not None and not has_option_kernels(data.device):
        return [
            f"{data.device.type}: no kernels for {describe_options(options)}, plain torch "
            "operations run"
        ]
    cell = 0 if options is None else 2 if options.layer_norm else 1
    is_cuda = data.device.type == "cuda"
    facts, refusals = _of_device(data.device) if is_cuda else ({}, {})
    lines = [
        f"{data.device.type}, {dtype}: T={steps} N={batch} layers={layers} directions={directions}"
        + ("" if is_cuda else f" threads={torch.get_num_threads()}")
    ]
    for layer in range(layers):
        input_size = module.input_size if layer == 0 else (proj or hidden) * directions
        shape = (steps, batch, input_size, hidden, proj, directions, dtype)
        for backward in (False, True):
            if is_cuda:
                plan = cuda_plan_text(*shape, backward, facts, recompute, refusals, cell)
            else:
                plan = native.compiled.plan_text(
                    *shape, torch.get_num_threads(), backward, data_rows, cell
                )
            name = "backward" if backward else "forward "
            lines.append(f"  layer {layer} {name} D={input_size} H={hidden}: {plan}")
    if options is not None:
        cost = (_WHAT_OPTIONS_COST_CUDA if is_cuda else _WHAT_OPTIONS_COST)[cell - 1]
        lines.append(f"  {describe_options(options)}: {cost}")
    elif layers > 1 and not is_cuda and not isinstance(x, PackedSequence):
        sizes = (steps, batch, module.input_size, hidden, proj, directions, layers)
        text = native.compiled.stack_text(*sizes, dtype, torch.get_num_threads())
        lines.append(f"  stack, without gradients: {text}")
    if recompute:
        lines.append("  recompute: the forward saves no gates, the backward rebuilds the gates")
    return lines


def _explain_quantized(
    module: QuantizedLSTM | QuantizedLSTMCell, x: Tensor | PackedSequence
) -> list[str]:
    data = x.data if isinstance(x, PackedSequence) else x
    assert native.compiled is not None
    call_on_shapes(module.forward, data.unsqueeze(1) if isinstance(x, PackedSequence) else x)
    steps, batch = _steps_and_batch(module, x)
    weights, threads = str(module.weights).removeprefix("torch."), torch.get_num_threads()
    layers, directions, proj, hidden = 1, 1, 0, module.hidden_size
    if isinstance(module, QuantizedLSTM):
        layers, proj = module.num_layers, module.proj_size
        directions = 2 if module.bidirectional else 1
    lines = [
        f"cpu, {weights} weights: T={steps} N={batch} layers={layers} directions={directions} "
        f"threads={threads}"
    ]
    for layer in range(layers):
        input_size = module.input_size if layer == 0 else (proj or hidden) * directions
        sizes = (steps, batch, input_size, hidden, proj, directions)
        plan = native.compiled.quantized_plan_text(*sizes, weights, threads)
        lines.append(f"  layer {layer} D={input_size} H={hidden}: {plan}")
    return lines


def cuda_plan_text(
    steps: int,
    batch: int,
    input_size: int,
    hidden_size: int,
    proj_size: int,
    directions: int,
    dtype: str,
    backward: bool,
    facts: dict[str, int],
    recompute: bool = False,
    refusals: Mapping[str, str] = _NO_REFUSALS,
    cell: int = 0,
) -> str:
    """The plan of one layer on a CUDA device of the given facts, in one line, and why.

    Facts are those of csrc/cuda/device_facts.h: major, minor, sm_count, shared_per_sm,
    shared_per_block, registers_per_sm, max_threads_per_sm, l2_bytes. Refusals: why kernels of one
    block ("cta") and groups of blocks ("group") are off there, if they are. Cell: 0, or 1 with
    options, 2 with layer_norm among them. No GPU is needed.
    """
    assert native.compiled is not None
    return native.compiled.cuda_plan_text(
        steps,
        batch,
        input_size,
        hidden_size,
        proj_size,
        directions,
        dtype,
        torch.backends.cuda.matmul.fp32_precision == "tf32",
        torch.is_grad_enabled(),
        backward,
        facts,
        recompute,
        refusals["cta"],
        refusals["group"],
        cell,
    )


def _of_device(device: torch.device) -> tuple[dict[str, int], dict[str, str]]:
    """The facts of a CUDA device, and the refusals."""
    assert native.compiled_cuda is not None
    index = torch.cuda.current_device() if device.index is None else device.index
    return native.compiled_cuda.device_facts(index), native.compiled_cuda.refusals(index)


def _steps_and_batch(module: Explained, x: Tensor | PackedSequence) -> tuple[int, int]:
    if isinstance(x, PackedSequence):
        return x.batch_sizes.numel(), int(x.batch_sizes[0])
    if isinstance(module, FusedLSTMCell | QuantizedLSTMCell):
        return 1, x.shape[0] if x.dim() == 2 else 1
    if x.dim() == 2:
        return x.shape[0], 1
    time_dim = 1 if module.batch_first else 0
    return x.shape[time_dim], x.shape[1 - time_dim]
