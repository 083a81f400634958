# SPDX-License-Identifier: BSD-3-Clause
"""The ops of one layer, and arguments for them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from kit.cases import LayerCase, make_inputs

forward_op: Any = torch.ops.lstm_fused.lstm_forward.default
backward_op: Any = torch.ops.lstm_fused.lstm_backward.default

PACKED = LayerCase(5, 4, 3, 7, P=2, bidirectional=True, lengths=(5, 4, 2, 1))
SOME = [
    LayerCase(4, 3, 2, 5),
    LayerCase(3, 0, 2, 5, P=2, bidirectional=True),
    LayerCase(5, 13, 3, 17, bidirectional=True, layout="strided", bias=False),
    LayerCase(4, 3, 2, 9, P=3, reset=0.3, layout="transposed"),
    LayerCase(4, 3, 2, 5, lengths=(2, 4, 0), reset=0.3, bidirectional=True),
]


def forward_arguments(case: LayerCase, packed: bool = False, **changes: Any) -> dict[str, Any]:
    """The forward op's arguments by name; all of them without a gradient (design, trap 9)."""
    inputs = make_inputs(case)
    arguments = {
        "input": inputs.input,
        "h_0": inputs.h_0,
        "c_0": inputs.c_0,
        "weights": list(inputs.weights.values()),
        "lengths": inputs.lengths,
        "batch_sizes": None,
        "reset_mask": inputs.reset_mask,
        "save_for_backward": True,
        "return_cell_states": True,
    }
    if packed:
        assert inputs.lengths is not None
        data, batch_sizes, *_ = pack_padded_sequence(inputs.input, inputs.lengths)
        arguments |= {"input": data, "batch_sizes": batch_sizes, "lengths": None}
    return arguments | changes


def backward_arguments(
    case: LayerCase, packed: bool = False, *, op: Any = forward_op, **changes: Any
) -> dict[str, Any]:
    """The backward op's arguments by name, of what the forward `op` gave."""
    forward = forward_arguments(case, packed)
    y, h_n, c_n, cell_states, gates, cells = op(*forward.values())
    shared = {k: forward[k] for k in list(forward)[:7]}
    return {
        "grad_y": torch.ones_like(y),
        "grad_h_n": torch.ones_like(h_n),
        "grad_c_n": torch.ones_like(c_n),
        "grad_cell_states": torch.ones_like(cell_states),
        **shared,
        "y": y,
        "gates": gates,
        "cells": cells,
        "need_input": True,
        "need_states": True,
        "need_weights": True,
    } | changes


def assert_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        call()
    assert message in str(caught.value)
