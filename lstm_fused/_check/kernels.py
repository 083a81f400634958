# SPDX-License-Identifier: BSD-3-Clause
"""The kernels of a device, and how the package is made to take one of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from lstm_fused._check.problem import KINDS, Problem, dtype_of, make_module
from lstm_fused._ops import native
from lstm_fused.info import explain_lines
from lstm_fused.module import FusedLSTM


@dataclass(frozen=True)
class Kernel:
    """An instruction set of the CPU or a variant on CUDA, for one kind of products; with packed
    weights for one kind of weights."""

    name: str
    kind: str
    problems: tuple[Problem, ...]

    @property
    def what(self) -> str:
        """The problems' own."""
        return self.problems[0].what

    @property
    def label(self) -> str:
        """Its name in the table."""
        return f"{self.name}, {self.what}" if self.what else self.name

    def timed(self) -> Problem:
        """The problem whose time is told: the largest one, one direction, more steps."""
        largest = max(problem.hidden_size for problem in self.problems)
        layer = Problem(largest, bidirectional=False, what=self.what)
        return replace(layer, steps=64, batch=16, input_size=largest)


def _with_ragged(*problems: Problem) -> tuple[Problem, ...]:
    """These problems, and the first one with lengths and resets."""
    first = problems[0]
    return (*problems, Problem(first.hidden_size, first.proj_size, ragged=True))


# Sizes for each instance of the kernels: two of one block; weights of a group that fit registers
# alone, and that do not.
_CUDA = {
    "one block": _with_ragged(Problem(40), Problem(90)),
    "group": _with_ragged(Problem(200), Problem(520, bidirectional=False)),
    "stepwise": _with_ragged(Problem(90), Problem(300), Problem(64, proj_size=24)),
}
_CPU = _with_ragged(Problem(40), Problem(200), Problem(64, proj_size=24))

# Kinds of cells with options, each with kernels of its own: with norms and without. On CUDA the
# variants of each kind, and the kinds of products that a variant lacks.
_CELLS = ("options", "norms")
_CUDA_CELLS = (
    ("one block", "options", ("float64",)),
    ("group", "options", ("float64", "float32")),
    ("stepwise", "options", ()),
    ("stepwise", "norms", ()),
)
_PACKED = ("int8", "bfloat16", "float16")


def _kernel_for(name: str, kind: str, what: str) -> Kernel:
    problems = _CUDA.get(name, _CPU)
    # NOTE: each step that is normalised makes rounding of the one before it larger; after 17 steps
    # a right result in float32 may take all of the error budget, after 5 a third.
    steps = 5 if what == "norms" else problems[0].steps
    return Kernel(name, kind, tuple(replace(p, what=what, steps=steps) for p in problems))


def kernels_of(device: torch.device) -> list[Kernel]:
    """All kernels of a device; on the CPU of each instruction set that it has."""
    if device.type == "cuda":
        return [
            *(
                Kernel(name, kind, problems)
                for name, problems in _CUDA.items()
                for kind in KINDS
                if name == "stepwise" or kind != "float64"
            ),
            *(
                _kernel_for(name, kind, cell)
                for name, cell, lacks in _CUDA_CELLS
                for kind in KINDS
                if kind not in lacks
            ),
        ]
    assert native.compiled is not None
    kinds = [kind for kind in KINDS if kind != "tf32"]
    return [
        kernel
        for isa in native.compiled.available_isas()
        for kernel in (
            *(Kernel(isa, kind, _CPU) for kind in kinds),
            *(_kernel_for(isa, kind, cell) for cell in _CELLS for kind in kinds),
            *(_kernel_for(isa, kind, "packed weights") for kind in _PACKED),
        )
    ]


def _variant_of(plan: str) -> str:
    if plan.startswith("stepwise"):
        return "stepwise"
    return "group" if " group(s) x " in plan else "one block"


def why_not_taken(kernel: Kernel, problem: Problem, device: torch.device) -> str:
    """Why a call does not take the kernel, within `use` of it; empty: it does."""
    if device.type != "cuda":
        return ""
    dtype = dtype_of(kernel.kind)
    module = make_module(FusedLSTM, problem, dtype, device)
    x = torch.empty(problem.steps, problem.batch, problem.input_size, dtype=dtype, device=device)
    plans = [line for line in explain_lines(module, x) if line.startswith("  layer ")]
    for line in plans:
        plan = line.split(": ", 1)[1]
        if _variant_of(plan) != kernel.name:
            return plan
    return ""


@contextmanager
def use(kernel: Kernel, device: torch.device) -> Iterator[None]:
    """Has calls take the kernel, if it can take them, and products of its kind."""
    assert native.compiled is not None
    if device.type != "cuda":
        before = native.compiled.set_max_isa(kernel.name)
        try:
            yield
        finally:
            native.compiled.set_max_isa(before)
        return
    modules = [module for module in (native.compiled, native.compiled_cuda) if module is not None]
    name = "stepwise" if kernel.name == "stepwise" else "persistent"
    variants = [module.set_cuda_variant(name) for module in modules]
    try:
        with _precision(kernel.kind):
            yield
    finally:
        for module, variant in zip(modules, variants, strict=True):
            module.set_cuda_variant(variant)


@contextmanager
def _precision(kind: str) -> Iterator[None]:
    """torch's precision of float32 products, its own and cuDNN's."""
    own, rnn = torch.backends.cuda.matmul, cast(Any, torch.backends.cudnn.rnn)
    before = own.fp32_precision, rnn.fp32_precision
    own.fp32_precision = rnn.fp32_precision = "tf32" if kind == "tf32" else "ieee"
    try:
        yield
    finally:
        own.fp32_precision, rnn.fp32_precision = before


@contextmanager
def no_checks_before_first_use() -> Iterator[None]:
    """A kernel that fails is to be measured and told of, not replaced."""
    module = native.compiled_cuda
    before = None if module is None else module.set_first_use_checks("0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nn.LSTM's of weights that are not one piece of memory
        try:
            yield
        finally:
            if module is not None and before is not None:
                module.set_first_use_checks(before)
