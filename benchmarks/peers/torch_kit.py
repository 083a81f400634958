# SPDX-License-Identifier: BSD-3-Clause
"""What the peers made of torch share: tensors, settings, and calls with and without gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from benchmarks.case import Case
from benchmarks.data import Data
from benchmarks.peers.base import Call, Setting

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# y, a tensor or a PackedSequence, h_n and c_n.
Forward = Callable[[], tuple[Any, Tensor, Tensor]]


@dataclass(frozen=True)
class Inputs:
    """A case's data as tensors on the device."""

    x: Tensor
    hx: tuple[Tensor, Tensor]
    grad_y: Tensor
    lengths: Tensor
    resets: Tensor
    weights: dict[str, Tensor]

    @property
    def packed(self) -> PackedSequence:
        return self.pack(self.x)

    def pack(self, padded: Tensor) -> PackedSequence:
        return pack_padded_sequence(padded, self.lengths, enforce_sorted=False)


def make_inputs(case: Case, data: Data, setting: Setting) -> Inputs:
    """A case's numbers as tensors. Also sets what torch keeps for the whole process: threads,
    gradients, TF32."""
    torch.set_num_threads(setting.threads)
    torch.set_grad_enabled(case.training)
    torch.backends.cuda.matmul.allow_tf32 = case.dtype == "tf32"
    torch.backends.cudnn.allow_tf32 = case.dtype == "tf32"

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(setting.device, DTYPES[case.dtype])

    return Inputs(
        x=tensor(data.x).requires_grad_(case.training),
        hx=(tensor(data.h_0), tensor(data.c_0)),
        grad_y=tensor(data.grad_y),
        lengths=torch.from_numpy(data.lengths),
        resets=torch.from_numpy(data.resets).to(setting.device),
        weights={name: tensor(array) for name, array in data.weights.items()},
    )


def make_module(
    kind: type[nn.Module], case: Case, inputs: Inputs, **options: float | bool
) -> nn.Module:
    """nn.LSTM, or what has its constructor and parameter names, with the case's weights."""
    module = kind(
        case.D,
        case.H,
        num_layers=case.layers,
        bidirectional=case.bidirectional,
        proj_size=case.P,
        device=inputs.x.device,
        dtype=inputs.x.dtype,
        **options,
    )
    module.load_state_dict(inputs.weights)
    return module.train(case.training)


def make_call(
    case: Case,
    inputs: Inputs,
    forward: Forward,
    leaves: dict[str, Tensor],
    note: str = "",
    unnamed: Sequence[Tensor] = (),
) -> Call:
    """A call of `forward`; in training followed by the gradients of x and, unless the case wants
    x's alone, of the leaves.

    Args:
        leaves: by nn.LSTM's names of the parameters.
        unnamed: parameters without a counterpart there: differentiated, not checked.
    """
    alone = case.mode == "grad_input"
    wanted = [inputs.x] if alone else [inputs.x, *leaves.values(), *unnamed]
    grad_y = inputs.pack(inputs.grad_y).data if case.ragged == "packed" else inputs.grad_y

    def train() -> tuple[Any, ...]:
        y, h_n, c_n = forward()
        root = y.data if isinstance(y, PackedSequence) else y
        return y, h_n, c_n, torch.autograd.grad(root, wanted, grad_y)

    def results() -> dict[str, np.ndarray]:
        y, h_n, c_n, *rest = train() if case.training else forward()
        if isinstance(y, PackedSequence):
            y, _ = pad_packed_sequence(y, total_length=case.T)
        found = {"y": y, "h_n": h_n, "c_n": c_n}
        if rest:
            names = ["grad_x", *(f"grad_{name}" for name in leaves)]
            found |= dict(zip(names, rest[0], strict=False))
        return {name: to_array(value) for name, value in found.items()}

    return Call(train if case.training else forward, results, note)


def checked_in_evaluation(case: Case, call: Call, module: nn.Module) -> Call:
    """A call that draws masks, with the results that the module has in evaluation mode, where two
    implementations agree.

    Those of the call itself are looked at too: masks are drawn, and shapes are the same.
    """
    if not case.draws_masks:
        return call

    def results() -> dict[str, np.ndarray]:
        drawn = call.results()
        module.eval()
        expected = call.results()
        module.train()
        for name, values in drawn.items():
            if values.shape != expected[name].shape or not np.isfinite(values).all():
                raise ArithmeticError(
                    f"{name} in training: shape {values.shape}, wanted finite values of shape "
                    f"{expected[name].shape}"
                )
        if np.array_equal(drawn["y"], expected["y"]):
            raise ArithmeticError(f"{case.variant}: y in training is that of evaluation")
        return expected

    return replace(call, results=results)


def to_array(tensor: Tensor) -> np.ndarray:
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return tensor.detach().to("cpu", wide).numpy()
