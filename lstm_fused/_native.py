# SPDX-License-Identifier: BSD-3-Clause
"""Loads the compiled ops and tells torch their shapes, their batching rules and their work."""

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
from lstm_fused._fakes import FAKES
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
    for name, fake in FAKES.items():
        torch.library.register_fake(f"lstm_fused::{name}", fake)
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
    for name in ("lstm_cell", "lstm_cell_backward"):
        cell_op = getattr(torch.ops.lstm_fused, name).default
        torch.library.register_vmap(f"lstm_fused::{name}", partial(vmap_one_by_one, cell_op))
    register_flop_formulas()
