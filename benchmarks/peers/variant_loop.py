# SPDX-License-Identifier: BSD-3-Clause
"""A Python loop over an LSTM's cell with an option, as a researcher writes it in torch.

Ahead of the loop x is multiplied by W_ih^T for all steps at once, masks of all steps are drawn, and
what does not change from step to step is computed once for a call. A step is what is left.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.case import GATES, VARIANTS, Case
from benchmarks.data import Data
from benchmarks.peers.base import Call, Setting
from benchmarks.peers.torch_kit import (
    Forward,
    Inputs,
    checked_in_evaluation,
    make_call,
    make_inputs,
)

States = tuple[Tensor, Tensor]


class Cell(nn.Module):
    """The plain cell; others change what they must.

    Args:
        weights: by FusedLSTM's names of the parameters.
        value: the option's.
    """

    def __init__(self, weights: dict[str, Tensor], value: float) -> None:
        super().__init__()
        for name, tensor in weights.items():
            self.register_parameter(name.removesuffix("_l0"), nn.Parameter(tensor))
        self.value = value

    @property
    def bias(self) -> Tensor:
        return self.bias_ih + self.bias_hh

    def project(self, x: Tensor) -> Tensor:
        """What enters the gates from x, of all steps."""
        return F.linear(x, self.weight_ih, self.bias)

    def constants(self) -> tuple[Tensor, ...]:
        """What each step of a call reads beside the states, W_hh in front."""
        return (self.weight_hh,)

    def masks(self, steps: int, like: Tensor) -> Iterable[tuple[Tensor, ...]]:
        """What each step reads of its own, for states like this one."""
        return [()] * steps

    def forward(self, gates: Tensor, h: Tensor, c: Tensor, w_hh: Tensor) -> States:
        """One step: h and c, from a step of `project`, the states, `constants` and `masks`."""
        return _output(*_halves(torch.addmm(gates, h, w_hh.t()), c))


def _halves(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The output gate ahead of its sigmoid, and c."""
    i, f, g, o = gates.chunk(GATES, 1)
    return o, f.sigmoid() * c + i.sigmoid() * g.tanh()


def _output(o: Tensor, c: Tensor) -> States:
    return o.sigmoid() * c.tanh(), c


class RecurrentDropout(Cell):
    def masks(self, steps: int, like: Tensor) -> Iterable[tuple[Tensor, ...]]:
        return [(F.dropout(torch.ones_like(like), self.value, self.training),)] * steps

    def forward(self, gates: Tensor, h: Tensor, c: Tensor, w_hh: Tensor, mask: Tensor) -> States:
        return super().forward(gates, h * mask, c, w_hh)


class WeightDropout(Cell):
    def constants(self) -> tuple[Tensor, ...]:
        return (F.dropout(self.weight_hh, self.value, self.training),)


class Zoneout(Cell):
    def masks(self, steps: int, like: Tensor) -> Iterator[tuple[Tensor, ...]]:
        # Numbers in both modes: a compiled step is the same, and the checked one is the timed one.
        kept = like.new_full((2, steps, *like.shape), self.value)
        if self.training:
            kept.bernoulli_(self.value)
        return zip(kept[0].unbind(), kept[1].unbind(), strict=True)

    def forward(
        self, gates: Tensor, h: Tensor, c: Tensor, w_hh: Tensor, keep_c: Tensor, keep_h: Tensor
    ) -> States:
        new_h, new_c = super().forward(gates, h, c, w_hh)
        return torch.lerp(new_h, h, keep_h), torch.lerp(new_c, c, keep_c)


class LayerNorm(Cell):
    def project(self, x: Tensor) -> Tensor:
        gates = F.linear(x, self.weight_ih)
        return F.layer_norm(gates, gates.shape[-1:], self.gamma[0], self.bias)

    def constants(self) -> tuple[Tensor, ...]:
        return self.weight_hh, self.gamma[1], self.gamma_c, self.beta_c

    def forward(
        self,
        gates: Tensor,
        h: Tensor,
        c: Tensor,
        w_hh: Tensor,
        gain_h: Tensor,
        gain_c: Tensor,
        bias_c: Tensor,
    ) -> States:
        recurrent = h @ w_hh.t()
        o, c = _halves(gates + F.layer_norm(recurrent, recurrent.shape[-1:], gain_h), c)
        return o.sigmoid() * F.layer_norm(c, c.shape[-1:], gain_c, bias_c).tanh(), c


class Peephole(Cell):
    def constants(self) -> tuple[Tensor, ...]:
        return self.weight_hh, *self.peephole.unbind()

    def forward(
        self,
        gates: Tensor,
        h: Tensor,
        c: Tensor,
        w_hh: Tensor,
        w_ci: Tensor,
        w_cf: Tensor,
        w_co: Tensor,
    ) -> States:
        i, f, g, o = torch.addmm(gates, h, w_hh.t()).chunk(GATES, 1)
        c = (f + w_cf * c).sigmoid() * c + (i + w_ci * c).sigmoid() * g.tanh()
        return _output(o + w_co * c, c)


class CellClip(Cell):
    def forward(self, gates: Tensor, h: Tensor, c: Tensor, w_hh: Tensor) -> States:
        o, c = _halves(torch.addmm(gates, h, w_hh.t()), c)
        return _output(o, c.clamp(-self.value, self.value))


class CoupledGates(Cell):
    """Without the products of the input gate, whose weights have no effect."""

    def project(self, x: Tensor) -> Tensor:
        units = self.weight_hh.shape[1]
        return F.linear(x, self.weight_ih[units:], self.bias[units:])

    def constants(self) -> tuple[Tensor, ...]:
        return (self.weight_hh[self.weight_hh.shape[1] :],)

    def forward(self, gates: Tensor, h: Tensor, c: Tensor, w_hh: Tensor) -> States:
        f, g, o = torch.addmm(gates, h, w_hh.t()).chunk(GATES - 1, 1)
        f = f.sigmoid()
        return _output(o, f * c + (1 - f) * g.tanh())


CELLS: dict[str, type[Cell]] = {
    "plain": Cell,
    "recurrent_dropout": RecurrentDropout,
    "weight_dropout": WeightDropout,
    "zoneout": Zoneout,
    "layer_norm": LayerNorm,
    "peephole": Peephole,
    "cell_clip": CellClip,
    "coupled_gates": CoupledGates,
}


def prepare(case: Case, data: Data, setting: Setting) -> Call:
    cell, inputs = make_cell(case, data, setting)
    forward = make_loop(cell, inputs, cell)
    call = make_call(case, inputs, forward, leaves_of(cell), "loop over such a cell")
    return checked_in_evaluation(case, call, cell)


def make_cell(case: Case, data: Data, setting: Setting) -> tuple[Cell, Inputs]:
    inputs = make_inputs(case, data, setting)
    cell = CELLS[case.variant](inputs.weights, VARIANTS[case.variant])
    return cell.train(case.training), inputs


def leaves_of(cell: Cell) -> dict[str, Tensor]:
    return {f"{name}_l0": parameter for name, parameter in cell.named_parameters()}


def make_loop(cell: Cell, inputs: Inputs, step: Callable[..., States]) -> Forward:
    """
    Args:
        step: the cell, or what was compiled from it.
    """

    def forward() -> tuple[Tensor, Tensor, Tensor]:
        h, c = inputs.hx[0][0], inputs.hx[1][0]
        gates = cell.project(inputs.x).unbind()
        constants: Sequence[Tensor] = cell.constants()
        outputs = []
        for now, masks in zip(gates, cell.masks(len(gates), h), strict=True):
            h, c = step(now, h, c, *constants, *masks)
            outputs.append(h)
        return torch.stack(outputs), h[None], c[None]

    return forward
