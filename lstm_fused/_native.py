# SPDX-License-Identifier: BSD-3-Clause
"""Loads the compiled ops and tells torch their shapes (fake kernels)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lstm_fused._autocast import without_autocast
from lstm_fused._batching import (
    vmap_backward,
    vmap_forward,
    vmap_one_by_one,
    weight_gradients_of_samples,
)
from lstm_fused._checks import check_layer, check_saved
from lstm_fused._flops import register_flop_formulas

GATES = 4

# The extension module, or None where it did not load.
compiled: ModuleType | None = None
try:
    compiled = import_module("lstm_fused._C")
except ImportError as error:
    if hasattr(torch.ops.lstm_fused, "lstm_forward"):
        raise  # the ops of another library stand in the way
    warnings.warn(
        f"lstm_fused: the compiled kernels did not load ({error}); the slow pure-PyTorch fallback "
        "runs in their place. Reinstall with `pip install --no-build-isolation .` in an "
        f"environment that holds torch {torch.__version__}.",
        stacklevel=2,
    )

# The module with the CUDA kernels, or None, and then why.
compiled_cuda: ModuleType | None = None
cuda_problem = ""
if torch.version.cuda is None:
    cuda_problem = f"torch {torch.__version__} is no CUDA build"
elif compiled is not None:
    try:
        compiled_cuda = import_module("lstm_fused._C_cuda")
    except ModuleNotFoundError:
        cuda_problem = "they were not built"
    except ImportError as error:
        cuda_problem = f"they did not load: {error}"


def has_kernels(device: torch.device) -> bool:
    """Whether compiled kernels serve this device; "meta" only has their shapes."""
    if device.type == "cuda":
        return compiled_cuda is not None
    return compiled is not None and device.type in ("cpu", "meta")


def check_cuda_kernels(device: torch.device) -> None:
    """Raises RuntimeError, with a remedy, for a CUDA device that lacks its kernels.

    A torch for ROCm, which calls its devices "cuda" too, and an installation without any kernel,
    which has warned of it, run on plain torch operations instead.
    """
    if device.type == "cuda" and compiled is not None and not has_kernels(device):
        if torch.version.hip is not None:
            return
        raise RuntimeError(
            f"FusedLSTM: input is on {device}, but this installation has no CUDA kernels "
            f"({cuda_problem}). Reinstall with `LSTM_FUSED_CUDA=1 pip install "
            "--no-build-isolation .` where nvcc >= 12.4 and a CUDA build of torch are installed, "
            "or move the module and its input to the CPU."
        )


def takes_batch_sizes(device: torch.device) -> bool:
    """Whether this device's kernels take a PackedSequence's data as it is, and save what the
    backward needs in such rows for padded sequences too (`packing.saved_positions`)."""
    return device.type != "cuda"


def has_sample_gradients(device: torch.device) -> bool:
    """Whether this device's kernels give the weights' gradients of each sample, and not only what
    they are products of."""
    return device.type != "cuda"


def _accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fake_lstm_forward(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: list[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset_mask: Tensor | None,
    save_for_backward: bool,
    return_cell_states: bool,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    check_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask)
    directions, batch, output_size = h_0.shape
    hidden_size = c_0.shape[2]
    leading = input.shape[:-1]
    rows = 1
    for size in leading:  # NOTE: not leading.numel(), which would specialise symbolic sizes
        rows = rows * size
    accumulator = _accumulator_dtype(input.dtype)
    y = input.new_empty((*leading, directions * output_size))
    h_n = input.new_empty((directions, batch, output_size))
    c_n = input.new_empty((directions, batch, hidden_size))
    if return_cell_states:
        cell_states = input.new_empty((*leading, directions * hidden_size))
    else:
        cell_states = input.new_empty((0,))
    saves_gates = save_for_backward and not recompute
    gates = input.new_empty((directions, rows, GATES * hidden_size) if saves_gates else (0,))
    cells = input.new_empty(
        (directions, rows, hidden_size) if save_for_backward else (0,), dtype=accumulator
    )
    return y, h_n, c_n, cell_states, gates, cells


def _fake_lstm_inference(
    input: Tensor, h_0: Tensor | None, c_0: Tensor | None, weights: list[Tensor], directions: int
) -> tuple[Tensor, Tensor, Tensor]:
    gates, output_size = weights[1].shape
    batch = input.shape[1]
    h = input.new_empty((directions, batch, output_size)) if h_0 is None else h_0
    c = input.new_empty((directions, batch, gates // GATES)) if c_0 is None else c_0
    return _fake_lstm_forward(input, h, c, weights, None, None, None, False, False)[:3]


def _fake_lstm_cell(
    input: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    weights: list[Tensor],
    save_for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, hidden_size = input.shape[0], weights[1].shape[1]
    states = [input.new_empty((rows, hidden_size)) if s is None else s for s in (h, c)]
    layer = (input.unsqueeze(0), *(state.unsqueeze(0) for state in states), weights)
    check_layer(*layer, None, None, None)
    saved = (rows, GATES * hidden_size) if save_for_backward else (0,)
    return (
        input.new_empty((rows, hidden_size)),
        input.new_empty((rows, hidden_size)),
        input.new_empty(saved),
        input.new_empty(
            (rows, hidden_size) if save_for_backward else (0,),
            dtype=_accumulator_dtype(input.dtype),
        ),
    )


def _fake_lstm_cell_backward(
    grad_h_next: Tensor | None,
    grad_c_next: Tensor | None,
    input: Tensor,
    h: Tensor,
    c: Tensor,
    weights: list[Tensor],
    gates: Tensor,
    cells: Tensor,
    need_input: bool,
    need_states: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    layer = [tensor.unsqueeze(0) for tensor in (input, h, c)]
    check_layer(*layer, weights, None, None, None)
    grads = [None if g is None else g.unsqueeze(0) for g in (grad_h_next, grad_c_next)]
    saved = (layer[1], gates.unsqueeze(0), cells.unsqueeze(0))
    check_saved(*layer, (None, *grads, None), saved)
    return (
        input.new_empty(input.shape if need_input else (0,)),
        input.new_empty(h.shape if need_states else (0,)),
        input.new_empty(c.shape if need_states else (0,)),
        [w.new_empty(w.shape) for w in weights] if need_weights else [],
    )


def _fake_lstm_backward(
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_cell_states: Tensor | None,
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: list[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset_mask: Tensor | None,
    y: Tensor,
    gates: Tensor,
    cells: Tensor,
    need_input: bool,
    need_states: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    check_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask)
    grads = (grad_y, grad_h_n, grad_c_n, grad_cell_states)
    check_saved(input, h_0, c_0, grads, (y, gates, cells))
    # NOTE: the results are contiguous whatever the arguments' strides; empty_like would copy them.
    grad_input = input.new_empty(input.shape if need_input else (0,))
    grad_h_0 = input.new_empty(h_0.shape if need_states else (0,))
    grad_c_0 = input.new_empty(c_0.shape if need_states else (0,))
    grad_weights = [w.new_empty(w.shape) for w in weights] if need_weights else []
    return grad_input, grad_h_0, grad_c_0, grad_weights


def _fake_lstm_sample_gradients(
    *arguments: Any,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    results = _fake_lstm_backward(*(*arguments[:-1], True))
    samples = arguments[-1]
    return *results[:3], [grad.new_empty((samples, *grad.shape)) for grad in results[3]]


def _fake_lstm_gate_gradients(
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_cell_states: Tensor | None,
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: list[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset_mask: Tensor | None,
    y: Tensor,
    gates: Tensor,
    cells: Tensor,
) -> tuple[Tensor, ...]:
    check_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask)
    grads = (grad_y, grad_h_n, grad_c_n, grad_cell_states)
    check_saved(input, h_0, c_0, grads, (y, gates, cells))
    (directions, _, output_size), hidden_size, rows = h_0.shape, c_0.shape[2], cells.shape[1]
    projections = directions if len(weights) // directions in (3, 5) else 0
    return (
        input.new_empty(input.shape),
        input.new_empty(h_0.shape),
        input.new_empty(c_0.shape),
        input.new_empty((directions, rows, GATES * hidden_size)),
        input.new_empty((directions, rows, output_size)),
        input.new_empty((rows, input.shape[-1])),
        input.new_empty((projections, rows, output_size)),
        input.new_empty((projections, rows, hidden_size)),
    )


def sample_gradients(
    arguments: Sequence[Any], needs: tuple[bool, bool], samples: int
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """What the op lstm_backward gives for its arguments, but for the weights' gradients: those of
    each sample, (B, …), row n of the batch being of sample n % B. `needs`: input's, states'."""
    if has_sample_gradients(arguments[4].device):
        result = lstm_sample_gradients_op(*arguments, *needs, samples)
    else:
        with without_autocast(arguments[4].device):
            grad_input, grad_h_0, grad_c_0, *operands = lstm_gate_gradients_op(*arguments)
            grad_weights = weight_gradients_of_samples(operands, arguments[7], samples)
        result = grad_input, grad_h_0, grad_c_0, grad_weights
    return result  # type: ignore[no-any-return]


# The CPU's ops for `_direct`; None: all calls go the general way.
lstm_inference_op: Any = None
lstm_cell_op: Any = None
lstm_cell_backward_op: Any = None
if compiled is not None:
    torch.library.register_fake("lstm_fused::lstm_forward", _fake_lstm_forward)
    torch.library.register_fake("lstm_fused::lstm_inference", _fake_lstm_inference)
    torch.library.register_fake("lstm_fused::lstm_backward", _fake_lstm_backward)
    torch.library.register_fake("lstm_fused::lstm_sample_gradients", _fake_lstm_sample_gradients)
    torch.library.register_fake("lstm_fused::lstm_gate_gradients", _fake_lstm_gate_gradients)
    torch.library.register_fake("lstm_fused::lstm_cell", _fake_lstm_cell)
    torch.library.register_fake("lstm_fused::lstm_cell_backward", _fake_lstm_cell_backward)
    lstm_cell_op = torch.ops.lstm_fused.lstm_cell.default._op
    lstm_cell_backward_op = torch.ops.lstm_fused.lstm_cell_backward.default._op
    lstm_forward_op = torch.ops.lstm_fused.lstm_forward.default
    lstm_inference_op = torch.ops.lstm_fused.lstm_inference.default._op
    lstm_backward_op = torch.ops.lstm_fused.lstm_backward.default
    lstm_sample_gradients_op = torch.ops.lstm_fused.lstm_sample_gradients.default
    lstm_gate_gradients_op = torch.ops.lstm_fused.lstm_gate_gradients.default
    torch.library.register_vmap("lstm_fused::lstm_forward", partial(vmap_forward, lstm_forward_op))
    # The backward comes here as an op, and not as a function, where grad mode is off.
    torch.library.register_vmap(
        "lstm_fused::lstm_backward",
        partial(vmap_backward, lstm_backward_op, sample_gradients),
    )
    torch.library.register_vmap(
        "lstm_fused::lstm_sample_gradients", partial(vmap_one_by_one, lstm_sample_gradients_op)
    )
    torch.library.register_vmap(
        "lstm_fused::lstm_gate_gradients", partial(vmap_one_by_one, lstm_gate_gradients_op)
    )
    register_flop_formulas()
