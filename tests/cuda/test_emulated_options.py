# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA kernels of a cell with options, run by the emulated device, against
`lstm_fused.reference_options` in float64 and autograd."""

import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from kit.cases import LayerCase, LayerInputs, make_inputs
from kit.emulated import CHECKED_TARGET, TARGETS, EmulatedOps, emulated_ops
from kit.numeric import Results, assert_bitwise_equal, assert_within_budget, differentiate
from kit.settings import DTYPES
from torch import Tensor

from lstm_fused import reference_options
from lstm_fused.autograd.arguments import LayerArguments
from lstm_fused.autograd.options_layer import options_layer
from lstm_fused.reference_options import OPTION_TENSORS, LayerOptions
from tools.cuda_on_cpu.device import LoadedMutation

RAGGED = (4, 0, 2, 4, 1, 3)
CASES = (
    LayerCase(4, 3, 5, 33),
    LayerCase(1, 2, 3, 1, bias=False),
    LayerCase(4, 6, 3, 9, bidirectional=True, lengths=RAGGED, reset=0.3, poison=True),
    LayerCase(4, 6, 3, 9, P=4, bidirectional=True, lengths=RAGGED, reset=0.3, poison=True),
    LayerCase(3, 4, 2, 70, P=5, bias=False, reset=0.5),
    LayerCase(2, 0, 3, 4, bidirectional=True, P=2),
)
# By the names of what they use: the fields of LayerOptions, which `make_options` fills in.
OPTIONS = {
    "peephole": ("peephole",),
    "clip": ("cell_clip",),
    "coupled gates": ("coupled_gates",),
    "recurrent dropout": ("h_mask",),
    "zoneout": ("keep_c", "keep_h"),
    "zoneout's expectation": ("zoneout_c", "zoneout_h"),
    "reset states": ("reset_h", "reset_c"),
    "peephole, coupled gates, zoneout": ("peephole", "coupled_gates", "keep_c", "zoneout_h"),
    "all": (
        *("peephole", "cell_clip", "coupled_gates", "h_mask", "keep_c", "keep_h"),
        *("reset_h", "reset_c"),
    ),
}
LEAVES = ("peephole", "reset_h", "reset_c", "gains", "cell_norm")


class Problem(NamedTuple):
    inputs: LayerInputs
    options: LayerOptions

    def to(self, dtype: torch.dtype) -> "Problem":
        options = LayerOptions._make(
            o.to(dtype) if isinstance(o, Tensor) and o.is_floating_point() else o
            for o in self.options
        )
        return Problem(self.inputs.to(dtype), options)


def make_problem(case: LayerCase, names: tuple[str, ...], dtype: torch.dtype) -> Problem:
    case = replace(case, dtype=dtype)
    if "reset_h" in names and not case.reset:
        case = replace(case, reset=0.4)
    if case.P:  # with which zoneout of h is not defined
        names = tuple(name for name in names if name not in ("keep_h", "zoneout_h"))
    seed = zlib.crc32(repr((replace(case, dtype=torch.float32), names)).encode())
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def flags(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) < 0.4

    outputs = (case.dirs, case.N, case.output_size)
    rows = (case.dirs, case.T * case.N, case.H)
    drawn: dict[str, Any] = {
        "peephole": normal(case.dirs, 3, case.H),
        "h_mask": (~flags(*outputs)).to(dtype) / 0.6,
        "keep_c": flags(*rows),
        "keep_h": flags(*rows),
        "reset_h": normal(*outputs),
        "reset_c": normal(case.dirs, case.N, case.H),
        "gains": normal(case.dirs, 2, 4 * case.H),
        "cell_norm": normal(case.dirs, 2, case.H),
        "coupled_gates": True,
        "cell_clip": 0.6,
        "zoneout_c": 0.3,
        "zoneout_h": 0.1,
    }
    options = LayerOptions()._replace(**{name: drawn[name] for name in names})
    return Problem(make_inputs(case), options)


def run(problem: Problem, *, kernels: bool, recompute: bool = False) -> Results:
    """Results and gradients, by the kernels or by the reference and autograd."""
    inputs = problem.inputs.requiring_grad()
    leaves = {
        name: tensor.detach().requires_grad_()
        for name in LEAVES
        if (tensor := getattr(problem.options, name)) is not None
    }
    options = problem.options._replace(**leaves)
    weights = list(inputs.weights.values())
    assert inputs.h_0 is not None and inputs.c_0 is not None
    if kernels:
        arguments = LayerArguments(
            *(inputs.input, inputs.h_0, inputs.c_0, inputs.lengths, None, inputs.reset_mask),
            return_cell_states=True,
            recompute=recompute,
        )
        found = options_layer(arguments, options, weights)
    else:
        found = reference_options.lstm_layer(
            *(inputs.input, inputs.h_0, inputs.c_0, weights, options),
            lengths=inputs.lengths,
            reset_mask=inputs.reset_mask,
        )
    outputs = dict(zip(("y", "h_n", "c_n", "cell_states"), found, strict=True))
    return differentiate(outputs, {**inputs.leaves, **leaves}, inputs.grads)


@cache
def expected_of(
    case: LayerCase, names: tuple[str, ...], dtype: torch.dtype
) -> tuple[Problem, Results, Results]:
    problem = make_problem(case, names, dtype)
    truth = run(problem.to(torch.float64), kernels=False)
    return problem, run(problem, kernels=False), truth


def assert_results(case: LayerCase, name: str, dtype: torch.dtype) -> None:
    problem, theirs, truth = expected_of(case, OPTIONS[name], dtype)
    ours = run(problem, kernels=True)
    assert ours.keys() == truth.keys()
    for key, value in truth.items():
        assert ours[key].dtype == dtype, key
        assert_within_budget(f"{case}, {name}: {key}", ours[key], theirs[key], value, dtype)


cases = pytest.mark.parametrize("case", CASES, ids=str)
options = pytest.mark.parametrize("name", OPTIONS)


@pytest.fixture(params=TARGETS, ids=lambda target: f"compute_{target}")
def emulated(request: pytest.FixtureRequest) -> Iterator[EmulatedOps]:
    ops = emulated_ops(request.param)
    with ops.use("auto"):
        yield ops


@pytest.fixture
def checked() -> Iterator[EmulatedOps]:
    """Kernels that can be searched for races, and broken."""
    ops = emulated_ops(CHECKED_TARGET)
    with ops.use("auto"):
        ops.device.set(race_check=1)
        ops.device.clear_races()
        yield ops
    ops.device.set(race_check=0, statistics=0, mutation=0)
    ops.device.clear_error()


@options
@cases
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_and_gradients(
    case: LayerCase, name: str, dtype: torch.dtype, emulated: EmulatedOps
) -> None:
    assert_results(case, name, dtype)
