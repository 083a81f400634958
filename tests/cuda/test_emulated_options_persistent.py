# SPDX-License-Identifier: BSD-3-Clause
"""The persistent kernels of a cell with options, run by the emulated device, against the reference
in float64 and the stepwise kernels."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from kit.emulated import CHECKED_TARGET, TARGETS, EmulatedOps, emulated_ops
from kit.numeric import Results, assert_bitwise_equal, assert_within_budget
from kit.options import (
    OPTION_SETS,
    Case,
    OptionInputs,
    make_option_inputs,
    reference_layer,
    run_options,
)

from lstm_fused.autograd.options_layer import options_layer
from tools.cuda_on_cpu.device import LoadedMutation

# The sets of options that need no sums across blocks, and a reset to a given state without any.
SETS = {name: names for name, names in OPTION_SETS.items() if "norms" not in names}
SETS["reset state"] = ()
KINDS = ("float32", "tf32", "bfloat16", "float16")
# Whose kernels are broken, as in test_races.py: those of bfloat16 and TF32 differ in the product
# alone.
BROKEN_KINDS = (
    KINDS if os.environ.get("LSTM_FUSED_ALL_MUTATIONS") == "1" else ("float32", "float16")
)
RAGGED = (3, 0, 2, 3, 1, 3, 3, 2, 3)


class Shape(NamedTuple):
    """A case, and how many multiprocessors the device has: groups of blocks need them at once."""

    case: Case
    sm_count: int = 8
    group: bool = False


# Shapes for both instances of the one-block kernels and for groups of blocks: rows that begin late
# in reverse, and all kinds of resets, with initial states that no row may read.
SHAPES = {
    "block": Shape(Case(3, 9, 5, 20, directions=2, lengths=RAGGED, reset="state", poison=True)),
    "block of one": Shape(Case(1, 1, 2, 1, bias=False)),
    "long block": Shape(Case(12, 3, 4, 33, reset="zero")),
    "wide block": Shape(Case(3, 9, 5, 70, directions=2, lengths=RAGGED, reset="state")),
    "full block": Shape(Case(3, 3, 5, 96, bias=False, reset="state")),
    "group": Shape(Case(9, 3, 4, 136, reset="zero"), 16, True),
    "small group": Shape(
        Case(3, 9, 4, 136, directions=2, lengths=(3, 0, 2, 3, 1, 3, 3, 3, 2), reset="state"),
        *(6, True),
    ),
    # There are so few multiprocessors here that a block of the backward has the most units.
    "few blocks": Shape(Case(3, 9, 4, 136, lengths=RAGGED, reset="state"), 6, True),
    "two groups": Shape(
        Case(3, 9, 4, 136, directions=2, lengths=RAGGED, reset="state", poison=True), 40, True
    ),
    "wide group": Shape(Case(2, 1, 4, 520, bias=False), 33, True),
    # More pieces for a lane than it has in flight at once.
    "tall group": Shape(Case(2, 50, 4, 136, reset="state"), 9, True),
}
NAMES = tuple(
    (name, kind)
    for name, shape in SHAPES.items()
    for kind in KINDS
    if not (shape.group and kind == "float32")  # FFMA has no groups
)

# Each option by itself for one block and for a group; together for all shapes.
ALL_SETS = ("block", "small group")

shapes = pytest.mark.parametrize(("name", "kind"), NAMES)


def dtype_of(kind: str) -> torch.dtype:
    dtype = getattr(torch, "float32" if kind == "tf32" else kind)
    assert isinstance(dtype, torch.dtype)
    return dtype


def inputs_of(name: str, kind: str, options: str) -> OptionInputs:
    return make_option_inputs(SHAPES[name].case, SETS[options], dtype_of(kind))


@contextlib.contextmanager
def setting(ops: EmulatedOps, name: str, kind: str, variant: str) -> Iterator[None]:
    with ops.use(variant), ops.tf32() if kind == "tf32" else contextlib.nullcontext():
        ops.device.set(sm_count=SHAPES[name].sm_count)
        yield


@pytest.fixture(params=TARGETS, ids=lambda target: f"compute_{target}")
def emulated(request: pytest.FixtureRequest) -> EmulatedOps:
    return emulated_ops(request.param)


@pytest.fixture
def checked() -> Iterator[EmulatedOps]:
    """Kernels that can be searched for races, and broken."""
    ops = emulated_ops(CHECKED_TARGET)
    yield ops
    ops.device.set(race_check=0, statistics=0, mutation=0, weak_memory=0)
    ops.device.clear_error()


@cache
def expected(name: str, kind: str, options: str) -> tuple[Results, Results]:
    """What the reference makes of the inputs in their dtype, and the truth."""
    inputs = inputs_of(name, kind, options)
    truth = run_options(inputs.to(torch.float64), reference_layer)
    return run_options(inputs, reference_layer), truth


def assert_right(name: str, kind: str, options: str, ours: Results) -> None:
    theirs, truth = expected(name, kind, options)
    assert ours.keys() == truth.keys()
    # A value that rounding takes to the other side of the clip has another gradient.
    rounds_clip = "clip" in SETS[options] and kind != "float32"
    for result, value in ours.items():
        if rounds_clip and result.startswith("grad_"):
            continue
        if kind == "tf32":  # operands lose 13 of 24 bits
            size = truth[result].abs().max().clamp(min=1)
            assert (value.double() - truth[result]).abs().max() / size < 1e-2, result
        else:
            assert_within_budget(result, value, theirs[result], truth[result], dtype_of(kind))


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        (name, kind, options)
        for name, kind in NAMES
        for options in (SETS if name in ALL_SETS else ("masks",))
    ],
)
def test_results_and_gradients(name: str, kind: str, options: str, emulated: EmulatedOps) -> None:
    inputs = inputs_of(name, kind, options)
    with setting(emulated, name, kind, "persistent"):
        assert_right(name, kind, options, run_options(inputs))


@shapes
def test_one_launch_for_all_steps(name: str, kind: str, emulated: EmulatedOps) -> None:
    """One launch of the recurrence, and one input GEMM for each direction."""
    inputs = inputs_of(name, kind, "masks")
    with setting(emulated, name, kind, "persistent") as _:
        emulated.device.set(kernel_launches=0, gemm_calls=0)
        forward(emulated, inputs, saves=True)
        device = emulated.device
        found = (device.get("kernel_launches"), device.get("gemm_calls"))
    assert found == (1, SHAPES[name].case.directions)


def forward(ops: EmulatedOps, inputs: OptionInputs, saves: bool) -> list[Any]:
    layer = (inputs.input, inputs.h_0, inputs.c_0, inputs.weights, inputs.lengths, None)
    op = ops.ops.lstm_options_forward
    return list(op(*layer, inputs.reset_mask, *inputs.options, saves, True))


@shapes
def test_agrees_with_stepwise(name: str, kind: str, emulated: EmulatedOps) -> None:
    """With all of these options at once, in the type's rounding of each."""
    inputs, found = inputs_of(name, kind, "masks"), []
    for variant in ("stepwise", "persistent"):
        with setting(emulated, name, kind, variant):
            found.append(run_options(inputs))
    allowed = {"float32": 2e-5, "bfloat16": 8e-2}.get(kind, 1e-2)
    for result, value in found[0].items():
        size = value.float().abs().max().clamp(min=1)
        worst = (found[1][result].float() - value.float()).abs().max() / size
        assert worst < allowed, result


@shapes
def test_what_changes_no_bit(name: str, kind: str, emulated: EmulatedOps) -> None:
    """The order of threads, gates that the backward makes anew, tensors off a boundary, and whether
    anything is saved."""
    inputs = inputs_of(name, kind, "masks")

    def without_gates(arguments: Any, *rest: Any) -> Any:
        return options_layer(arguments._replace(recompute=True), *rest)

    with setting(emulated, name, kind, "persistent"):
        wanted = run_options(inputs)
        found = [run_options(inputs, without_gates)]
        with emulated.offset(1):
            found.append(run_options(inputs))
        emulated.device.set(seed=7)
        found.append(run_options(inputs))
        inference = forward(emulated, inputs, saves=False)
    for results in found:
        for result, value in wanted.items():
            assert_bitwise_equal(results[result], value)
    for result, value in zip(("y", "h_n", "c_n", "cell_states"), inference, strict=False):
        assert_bitwise_equal(value, wanted[result])


def test_layer_normalisation_stays_stepwise(emulated: EmulatedOps) -> None:
    inputs = make_option_inputs(SHAPES["block"].case, ("norms",), torch.float32)
    with setting(emulated, "block", "float32", "persistent"):
        emulated.device.set(kernel_launches=0)
        forward(emulated, inputs, saves=True)
        assert emulated.device.get("kernel_launches") > inputs.case.T


# ---- Threads and blocks that synchronise ---------------------------------------------------------


@shapes
def test_no_races(name: str, kind: str, checked: EmulatedOps) -> None:
    inputs = inputs_of(name, kind, "masks")
    with setting(checked, name, kind, "persistent"):
        checked.device.set(race_check=1)
        checked.device.clear_races()
        # At last with stores that arrive late, and in another order.
        for seed, weak_memory in ((1, 0), (2, 0), (1, 1)):
            checked.device.set(seed=seed, weak_memory=weak_memory)
            assert_right(name, kind, "masks", run_options(inputs))
            assert checked.device.races == []


def mutations(ops: EmulatedOps) -> list[LoadedMutation]:
    """Ways to break the synchronising instructions of these kernels."""
    return [m for m in ops.device.mutations if "persistent" in m.function and is_of_options(m)]


def is_of_options(mutation: LoadedMutation) -> bool:
    return "option_" in mutation.function


def run(ops: EmulatedOps, name: str, kind: str, **settings: int) -> Results:
    with setting(ops, name, kind, "persistent"):
        ops.device.set(race_check=1, **settings)
        ops.device.clear_races()
        return run_options(inputs_of(name, kind, "masks"))


@cache
def kernels_of(name: str, kind: str) -> frozenset[str]:
    """The kernels that a case runs, by their mangled names."""
    ops = emulated_ops(CHECKED_TARGET)
    ops.device.clear_statistics()
    run(ops, name, kind, statistics=1)
    ops.device.set(statistics=0)
    return frozenset(ops.device.statistics)


@cache
def unbroken(name: str, kind: str) -> Results:
    return run(emulated_ops(CHECKED_TARGET), name, kind, seed=1)


def is_caught(
    ops: EmulatedOps, name: str, kind: str, mutation: LoadedMutation, **settings: int
) -> bool:
    wanted = unbroken(name, kind)
    try:
        results = run(ops, name, kind, mutation=mutation.number, **settings)
        caught = bool(ops.device.races) or any(
            not torch.equal(results[result], value) for result, value in wanted.items()
        )
    except RuntimeError:  # a deadlock, or an access out of bounds
        caught = True
    ops.device.set(mutation=0, weak_memory=0)
    ops.device.clear_error()
    return caught


@pytest.mark.parametrize("kind", BROKEN_KINDS)
def test_every_synchronisation_is_needed(kind: str, checked: EmulatedOps) -> None:
    """Without it there is a race, a deadlock, or a wrong result."""
    needed = 0
    names = [name for name, of_kind in NAMES if of_kind == kind and not SHAPES[name].case.poison]
    for mutation in mutations(checked):
        cases = [name for name in names if mutation.function in kernels_of(name, kind)]
        if not cases:
            continue  # a kernel of another type
        ways: tuple[dict[str, int], ...] = ({"seed": 1}, {"seed": 2}, {"seed": 1, "weak_memory": 1})
        assert any(
            is_caught(checked, name, kind, mutation, **way) for way in ways for name in cases
        ), (mutation, cases)
        needed += 1
    assert needed


def test_every_kernel_that_synchronises_runs(checked: EmulatedOps) -> None:
    ran = {kernel for name, kind in NAMES for kernel in kernels_of(name, kind)}
    assert {m.function for m in mutations(checked)} <= ran
