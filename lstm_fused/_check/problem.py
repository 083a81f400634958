# SPDX-License-Identifier: BSD-3-Clause
"""Problems with known results, and how far a module's lie from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from lstm_fused import reference
from lstm_fused.module import FusedLSTM

# What rounding may come to, in units of the results' magnitude. docs/numerics.md has the reasons;
# TF32 has float16's bits.
FLOORS = {
    "float64": 1e-13,
    "float32": 5e-6,
    "tf32": 2.5e-3,
    "float16": 2.5e-3,
    "bfloat16": 2e-2,
}
KINDS = tuple(FLOORS)


@dataclass(frozen=True)
class Problem:
    """A layer and its input.

    ragged: rows of several lengths, and resets.
    what: "options" or "norms" of a cell that has some, or "packed weights"; "": nn.LSTM's layer.
    """

    hidden_size: int
    proj_size: int = 0
    bidirectional: bool = True
    ragged: bool = False
    steps: int = 17
    batch: int = 9
    input_size: int = 12
    what: str = ""


class Errors(NamedTuple):
    """The largest errors, each as a share of what is allowed; at most 1 is right. None: there is no
    backward."""

    forward: float
    backward: float | None


def dtype_of(kind: str) -> torch.dtype:
    """The dtype of the tensors of a kind of products."""
    dtype: torch.dtype = getattr(torch, "float32" if kind == "tf32" else kind)
    return dtype


Module = TypeVar("Module", bound=nn.Module)

# Arguments of FusedLSTM by which a call takes the kernels.
_OPTIONS: dict[str, dict[str, Any]] = {
    "options": {"peephole": True, "recurrent_dropout": 0.1, "cell_clip": 4.0},
    "norms": {"layer_norm": True, "coupled_gates": True, "zoneout": (0.1, 0.0)},
}


def make_module(
    module_type: type[Module], problem: Problem, dtype: torch.dtype, device: torch.device
) -> Module:
    """A module with nn.LSTM's constructor, for a problem."""
    return module_type(
        problem.input_size,
        problem.hidden_size,
        bidirectional=problem.bidirectional,
        proj_size=problem.proj_size,
        dtype=dtype,
        device=device,
        **(_OPTIONS.get(problem.what, {}) if issubclass(module_type, FusedLSTM) else {}),
    )


class Inputs:
    """The numbers of a problem, on the CPU; the same in every process."""

    def __init__(self, problem: Problem, kind: str) -> None:
        self.problem, self.kind = problem, kind
        seed = problem.hidden_size + 1000 * problem.ragged
        self.generator = generator = torch.Generator().manual_seed(seed)
        dtype, normal = dtype_of(kind), self.normal
        p = problem
        directions, output = 2 if p.bidirectional else 1, p.proj_size or p.hidden_size
        layer = make_module(nn.LSTM, p, dtype, torch.device("meta"))
        scale = p.hidden_size**-0.5
        self.weights = {
            name: (normal(*parameter.shape) * scale).to(dtype)
            for name, parameter in layer.named_parameters()
        }
        self.x = normal(p.steps, p.batch, p.input_size)
        self.h_0 = normal(directions, p.batch, output)
        self.c_0 = normal(directions, p.batch, p.hidden_size)
        self.grads = (
            normal(p.steps, p.batch, directions * output),
            normal(directions, p.batch, output),
            normal(directions, p.batch, p.hidden_size),
        )
        self.lengths: Tensor | None = None
        self.reset_mask: Tensor | None = None
        if p.ragged:
            self.lengths = torch.arange(p.batch) * 5 % (p.steps + 1)
            self.reset_mask = torch.rand(p.steps, p.batch, generator=generator) < 0.1

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(dtype_of(self.kind))

    def run(self, module_type: type[nn.Module], device: torch.device) -> dict[str, Tensor]:
        """Results and gradients of a module in the problem's dtype."""
        module = make_module(module_type, self.problem, dtype_of(self.kind), device)
        module.load_state_dict(self.weights)
        x, h_0, c_0 = (t.to(device).requires_grad_() for t in (self.x, self.h_0, self.c_0))
        options = {
            name: mask.to(device)
            for name, mask in (("lengths", self.lengths), ("reset_mask", self.reset_mask))
            if mask is not None
        }
        y, (h_n, c_n) = module(x, (h_0, c_0), **options)
        return self.results((y, h_n, c_n), (x, h_0, c_0, *module.parameters()), device)

    def run_reference(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Results and gradients of `lstm_fused.reference` on the CPU."""
        tensors = (self.x, self.h_0, self.c_0, *self.weights.values())
        x, h_0, c_0, *weights = (t.detach().to(dtype).requires_grad_() for t in tensors)
        y, h_n, c_n, _ = reference.lstm(
            x,
            (h_0, c_0),
            weights,
            bidirectional=self.problem.bidirectional,
            lengths=self.lengths,
            reset_mask=self.reset_mask,
        )
        return self.results((y, h_n, c_n), (x, h_0, c_0, *weights), torch.device("cpu"))

    def results(
        self,
        outputs: tuple[Tensor, ...],
        leaves: tuple[Tensor, ...],
        device: torch.device,
        more: tuple[str, ...] = (),
    ) -> dict[str, Tensor]:
        """y, h_n and c_n, and gradients by the leaves: x, h_0, c_0, weights, and what `more`
        names."""
        grads = [g.to(device, output.dtype) for g, output in zip(self.grads, outputs, strict=True)]
        found = torch.autograd.grad(outputs, leaves, grads)
        names = ("x", "h_0", "c_0", *self.weights, *more)
        results = dict(zip(("y", "h_n", "c_n"), outputs, strict=True))
        results |= {f"grad_{name}": g for name, g in zip(names, found, strict=True)}
        return {name: result.detach().cpu().double() for name, result in results.items()}


def find_errors(problem: Problem, kind: str, device: torch.device) -> Errors:
    """How far FusedLSTM's results lie from float64's, as shares of the error budget: twice the
    error of nn.LSTM on the same device (of the reference, which knows lengths and resets, where
    there are any) and the floor."""
    inputs = Inputs(problem, kind)
    truth = inputs.run_reference(torch.float64)
    rival = inputs.run_reference(dtype_of(kind)) if problem.ragged else inputs.run(nn.LSTM, device)
    return compare(inputs.run(FusedLSTM, device), rival, truth, kind)


def compare(
    ours: dict[str, Tensor], rival: dict[str, Tensor], truth: dict[str, Tensor], kind: str
) -> Errors:
    """How far results and gradients lie from the truth's."""
    shares = {name: _share(ours[name], rival[name], truth[name], kind) for name in truth}
    backward = {name for name in shares if name.startswith("grad_")}
    return Errors(
        max(share for name, share in shares.items() if name not in backward),
        max(shares[name] for name in backward),
    )


def _share(ours: Tensor, rival: Tensor, truth: Tensor, kind: str) -> float:
    magnitude = max(1.0, float(truth.abs().max()))
    allowed = 2 * float((rival - truth).abs().nan_to_num().max()) + FLOORS[kind] * magnitude
    return share_of(ours, truth, allowed)


def share_of(ours: Tensor, truth: Tensor, allowed: float) -> float:
    """The largest error as a share of what is allowed; infinite for NaN."""
    errors = (ours - truth).abs()
    return float(torch.where(errors.isnan(), torch.inf, errors).max()) / allowed


def make_step(
    module_type: type[nn.Module], problem: Problem, kind: str, device: torch.device, training: bool
) -> Callable[[], None]:
    """A call, or a training step, to be timed."""
    dtype = dtype_of(kind)
    module = make_module(module_type, problem, dtype, device)
    x = Inputs(problem, kind).x.to(device)
    if not training:

        def infer() -> None:
            with torch.no_grad():
                module(x)

        return infer
    parameters, grad = list(module.parameters()), torch.ones_like(module(x)[0])

    def train() -> None:
        torch.autograd.grad(module(x)[0], parameters, grad)

    return train
