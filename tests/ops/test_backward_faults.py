# SPDX-License-Identifier: BSD-3-Clause
"""Faults that only the backward ops can meet, which no user calls: the op and its fake have one
sentence for each."""

from typing import Any

import pytest
import torch
from torch import Tensor, zeros
from torch._subclasses import FakeTensorMode

D, H = 3, 5
LAYER_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "shape of cells": (
        {"cells": zeros(1, 8, H - 1)},
        "cells must have shape (1, 8, 5), got (1, 8, 4)",
    ),
    "dtype of cells": (
        {"cells": zeros(1, 8, H).half()},
        "cells must be torch.float32, got torch.float16",
    ),
    "shape of gates": (
        {"gates": zeros(1, 8, H)},
        "gates must have shape (1, 8, 20), got (1, 8, 5)",
    ),
    "dtype of grad_y": (
        {"grad_y": zeros(4, 2, H).double()},
        "grad_y must have input's dtype, torch.float32, got torch.float64",
    ),
}
CELL_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "shape of cells": ({"cells": zeros(2, H - 1)}, "cells must have shape (2, 5), got (2, 4)"),
    "dtype of cells": (
        {"cells": zeros(2, H).double()},
        "cells must be torch.float32, got torch.float64",
    ),
    "shape of gates": ({"gates": zeros(2, H)}, "gates must have shape (2, 20), got (2, 5)"),
    "shape of grad_h_next": (
        {"grad_h_next": zeros(3, H)},
        "grad_h_next must have shape (2, 5), got (3, 5)",
    ),
}
op_and_fake = pytest.mark.parametrize("device", ["cpu", "meta"], ids=["op", "fake op"])


def on(device: str, value: Any) -> Any:
    """Tensors of the same sizes on a device."""
    if isinstance(value, list):
        return [on(device, each) for each in value]
    return torch.zeros_like(value, device=device) if isinstance(value, Tensor) else value


def sentence_of(op: Any, device: str, *arguments: Any) -> str:
    with pytest.raises(RuntimeError) as caught:
        op(*(on(device, argument) for argument in arguments))
    return str(caught.value).splitlines()[0]


def make_weights() -> list[Tensor]:
    return [zeros(4 * H, D), zeros(4 * H, H), zeros(4 * H), zeros(4 * H)]


def layer_arguments() -> dict[str, Any]:
    """The arguments that all ops of a layer take, of T = 4 steps and N = 2 rows."""
    return {
        **{"input": zeros(4, 2, D), "h_0": zeros(1, 2, H), "c_0": zeros(1, 2, H)},
        **{"weights": make_weights(), "lengths": None, "batch_sizes": None, "reset_mask": None},
    }


def backward_arguments(**changes: Any) -> list[Any]:
    given = {
        **{"grad_y": None, "grad_h_n": None, "grad_c_n": None, "grad_cell_states": None},
        **layer_arguments(),
        **{"y": zeros(4, 2, H), "gates": zeros(1, 8, 4 * H), "cells": zeros(1, 8, H)},
    }
    return list((given | changes).values())


@op_and_fake
@pytest.mark.parametrize("op", ["lstm_backward", "lstm_sample_gradients"])
@pytest.mark.parametrize(("changes", "sentence"), LAYER_FAULTS.values(), ids=LAYER_FAULTS)
def test_a_layer(op: str, changes: dict[str, Any], sentence: str, device: str) -> None:
    last = True if op == "lstm_backward" else 2
    arguments = (*backward_arguments(**changes), True, True, last)
    assert sentence_of(getattr(torch.ops.lstm_fused, op), device, *arguments) == sentence


@op_and_fake
@pytest.mark.parametrize("samples", [0, -1, 3, 4])
def test_samples(samples: int, device: str) -> None:
    op = torch.ops.lstm_fused.lstm_sample_gradients
    found = sentence_of(op, device, *backward_arguments(), True, True, samples)
    assert found == f"samples must be at least 1 and divide the 2 rows of h_0, got {samples}"


@op_and_fake
@pytest.mark.parametrize(("changes", "sentence"), CELL_FAULTS.values(), ids=CELL_FAULTS)
def test_a_cell(changes: dict[str, Any], sentence: str, device: str) -> None:
    given = {
        **{"grad_h_next": None, "grad_c_next": None},
        **{"input": zeros(2, D), "h": zeros(2, H), "c": zeros(2, H), "weights": make_weights()},
        **{"gates": zeros(2, 4 * H), "cells": zeros(2, H)},
    }
    arguments = (*(given | changes).values(), True, True, True)
    op = torch.ops.lstm_fused.lstm_cell_backward
    assert sentence_of(op, device, *arguments) == sentence


def test_fake_ops_on_cuda_refuse_packed_input() -> None:
    """As the op does; see test_batch_sizes_are_refused of tests/cuda/test_parity.py."""
    with FakeTensorMode():
        given = layer_arguments() | {"input": zeros(4, D), "batch_sizes": zeros(2).long()}
        arguments = [on("cuda", value) for value in given.values()]
        with pytest.raises(RuntimeError, match="the CUDA kernels take padded sequences"):
            torch.ops.lstm_fused.lstm_forward(*arguments, False, False)
