# SPDX-License-Identifier: BSD-3-Clause
"""A Python loop over nn.LSTMCell, as people write it when nn.LSTM does not do what they need."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.case import Case
from benchmarks.data import Data
from benchmarks.peers.base import Call, Setting, refuse
from benchmarks.peers.torch_kit import Inputs, make_call, make_inputs

Step = Callable[[Tensor, tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]


def prepare(case: Case, data: Data, setting: Setting) -> Call:
    cell, inputs = make_cell(case, data, setting)
    return make_call(case, inputs, make_loop(case, cell, inputs), leaves_of(cell))


def make_cell(
    case: Case, data: Data, setting: Setting, kind: type[nn.Module] = nn.LSTMCell
) -> tuple[nn.Module, Inputs]:
    refuse(case, "LSTMCell loop", "op", "ragged", "layers", "bidirectional", "P")
    inputs = make_inputs(case, data, setting)
    cell = kind(case.D, case.H, device=inputs.x.device, dtype=inputs.x.dtype)
    cell.load_state_dict({name[:-3]: tensor for name, tensor in inputs.weights.items()})
    return cell, inputs


def leaves_of(cell: nn.Module) -> dict[str, Tensor]:
    return {f"{name}_l0": parameter for name, parameter in cell.named_parameters()}


def make_loop(case: Case, step: Step, inputs: Inputs):
    keep = (~inputs.resets).to(inputs.x.dtype)[:, :, None]

    def forward():
        h, c = inputs.hx[0][0], inputs.hx[1][0]
        outputs = []
        steps = inputs.x.unbind() if case.T > 1 else (inputs.x[0],)
        for t, x in enumerate(steps):
            if case.resets:
                h, c = h * keep[t], c * keep[t]
            h, c = step(x, (h, c))
            outputs.append(h)
        return torch.stack(outputs) if case.T > 1 else h[None], h[None], c[None]

    return forward
