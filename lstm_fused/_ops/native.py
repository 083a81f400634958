# SPDX-License-Identifier: BSD-3-Clause
"""The compiled ops, loaded, with their shapes for fake tensors; and which device has which."""

from __future__ import annotations

import os
import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lstm_fused._ops.fakes import FAKES
from lstm_fused._ops.load_problem import explain_failure
from lstm_fused._torch.private import builtin_of

# The extension module and the one with the CUDA kernels. Each is None where it did not load, which
# mypy is not told, since it knows a module's functions by the module's own name only: ask before
# use.
if TYPE_CHECKING:
    from lstm_fused import _C, _C_cuda

    compiled = _C
    compiled_cuda = _C_cuda
else:
    compiled = compiled_cuda = None

# Without the compiled part, and without a word: for programs that want plain torch operations.
wants_fallback = os.environ.get("LSTM_FUSED_FALLBACK") == "1"
try:
    if not wants_fallback:
        compiled = import_module("lstm_fused._C")
except ImportError as error:
    if hasattr(torch.ops.lstm_fused, "lstm_forward"):
        raise  # the ops of another library stand in the way
    problem = explain_failure(error, torch.__version__, Path(__file__).parents[1])
    warnings.warn(
        f"lstm_fused: the compiled kernels did not load, and slow torch operations run in their "
        f"place; {problem} (LSTM_FUSED_FALLBACK=1 asks for this without a warning)",
        stacklevel=2,
    )

# Why there are no CUDA kernels.
cuda_problem = ""
if wants_fallback:
    cuda_problem = "LSTM_FUSED_FALLBACK=1 asks for plain torch operations"
elif torch.version.cuda is None:
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
    """Whether this device's kernels take a PackedSequence's data as it is, not padded."""
    return device.type != "cuda"


def saves_packed_rows(device: torch.device) -> bool:
    """Whether the gates and cells that this device's kernels save of padded sequences with lengths
    are rows of data in a PackedSequence's order (`packing.saved_positions`), and not those of the
    padded input."""
    return device.type != "cuda"


# The CPU's ops for `fast_path`; None: all calls go the general path.
lstm_inference_op: Any = None
lstm_cell_op: Any = None
lstm_cell_backward_op: Any = None
lstm_quantized_op: Any = None
lstm_quantized_cell_op: Any = None
if compiled is not None:
    for name, fake in FAKES.items():
        torch.library.register_fake(f"lstm_fused::{name}", fake)
    lstm_cell_op = builtin_of(torch.ops.lstm_fused.lstm_cell.default)
    lstm_cell_backward_op = builtin_of(torch.ops.lstm_fused.lstm_cell_backward.default)
    lstm_quantized_op = builtin_of(torch.ops.lstm_fused.lstm_quantized.default)
    lstm_quantized_cell_op = builtin_of(torch.ops.lstm_fused.lstm_quantized_cell.default)
    lstm_forward_op = torch.ops.lstm_fused.lstm_forward.default
    lstm_inference_op = builtin_of(torch.ops.lstm_fused.lstm_inference.default)
    lstm_options_forward_op = torch.ops.lstm_fused.lstm_options_forward.default
    lstm_options_backward_op = torch.ops.lstm_fused.lstm_options_backward.default
    lstm_backward_op = torch.ops.lstm_fused.lstm_backward.default
    lstm_sample_gradients_op = torch.ops.lstm_fused.lstm_sample_gradients.default
