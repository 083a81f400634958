# SPDX-License-Identifier: BSD-3-Clause
"""No kernel races, and every instruction that orders its threads is needed.

Between them the small cases run every kernel that synchronises
(`test_every_kernel_that_synchronises_runs`).
"""

import contextlib
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from kit.cases import LayerCase
from kit.emulated import CHECKED_TARGET, TARGETS, EmulatedOps, emulated_ops
from kit.ours import assert_results, expected_of, in_dtype, run_ours
from torch import Tensor

from tools.cuda_on_cpu.device import LoadedMutation
from tools.cuda_on_cpu.ops.build import ROOT

TYPES = ("float64", "float32", "tf32", "bfloat16", "float16")
# Whose kernels are broken, one instruction at a time, which takes minutes: bfloat16's differ from
# float16's, and TF32's from these and float32's, in the product alone.
BROKEN_TYPES = (
    TYPES
    if os.environ.get("LSTM_FUSED_ALL_MUTATIONS") == "1"
    else ("float64", "float32", "float16")
)
RAGGED = (3, 0, 2, 3, 1, 3, 3, 2, 3)
# Shapes, and how many multiprocessors the device has: groups of blocks need them all at once.
CASES: dict[str, tuple[LayerCase, int, str]] = {
    "stepwise": (
        LayerCase(3, 9, 5, 20, P=6, bidirectional=True, lengths=RAGGED, reset=0.3),
        8,
        "stepwise",
    ),
    "stepwise dense": (LayerCase(3, 5, 4, 9), 8, "stepwise"),
    "block": (
        LayerCase(3, 9, 5, 20, bidirectional=True, lengths=RAGGED, reset=0.3),
        8,
        "persistent",
    ),
    "wide block": (
        LayerCase(3, 9, 5, 70, bidirectional=True, lengths=RAGGED, reset=0.3),
        8,
        "persistent",
    ),
    # The kernels for the H that fills them: in 16 bits and in 32; in 16 bits; in 32. And those in
    # 16 bits for tensors of which no two elements can be moved at once.
    **{
        f"{name} of {H}": (
            LayerCase(3, 9, 4, H, bidirectional=True, lengths=RAGGED, reset=0.3),
            17,
            "persistent",
        )
        for name, sizes in (("full block", (64, 128, 96)), ("unaligned full block", (64, 128)))
        for H in sizes
    },
    "group": (LayerCase(3, 9, 4, 136), 16, "persistent"),
    # Rows of the second tile that begin late in reverse, and whose h_0 other lanes write than those
    # that received zeros in its place.
    "small group": (
        LayerCase(3, 9, 4, 136, bidirectional=True, lengths=(3, 0, 2, 3, 1, 3, 3, 3, 2)),
        6,
        "persistent",
    ),
    "two groups": (
        LayerCase(3, 9, 4, 136, bidirectional=True, lengths=RAGGED, reset=0.3),
        40,
        "persistent",
    ),
    "wide group": (LayerCase(2, 1, 4, 520, bidirectional=True), 66, "persistent"),
    # A single piece of h for a lane, of 32 bits.
    "narrow group": (LayerCase(3, 9, 4, 104, bidirectional=True), 52, "persistent"),
    # Several tiles for each group of blocks of 32 units; one, and more parts of sums than few.
    "pair of tiles": (LayerCase(3, 9, 4, 136), 6, "persistent"),
    "broad group": (LayerCase(2, 1, 4, 264), 10, "persistent"),
    # More pieces of h for a lane than it has in flight at once.
    "tall group": (LayerCase(2, 50, 4, 136, bidirectional=True), 18, "persistent"),
}


@pytest.fixture
def checked() -> Iterator[EmulatedOps]:
    ops = emulated_ops(CHECKED_TARGET)
    yield ops
    ops.device.set(race_check=0, statistics=0, mutation=0, weak_memory=0)
    ops.device.clear_error()


@contextlib.contextmanager
def setting(ops: EmulatedOps, name: str, kind: str) -> Iterator[LayerCase]:
    """The device and the ops as a case needs them."""
    case, sm_count, variant = CASES[name]
    with contextlib.ExitStack() as stack:
        stack.enter_context(ops.use(variant))
        if kind == "tf32":
            stack.enter_context(ops.tf32())
        if name.startswith("unaligned"):
            stack.enter_context(ops.offset(1))
        ops.device.set(sm_count=sm_count, race_check=1)
        ops.device.clear_races()
        yield in_dtype(case, getattr(torch, "float32" if kind == "tf32" else kind))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", CASES)
def test_no_races(name: str, kind: str, checked: EmulatedOps) -> None:
    with setting(checked, name, kind) as case:
        expected = expected_of(case, cell_states=True)
        first: dict[str, Tensor | None] = {}
        # At last with stores that arrive late, and in another order.
        for seed, weak_memory in ((1, 0), (2, 0), (1, 1)):
            checked.device.set(seed=seed, weak_memory=weak_memory)
            results = run_ours(expected.inputs, cell_states=True)
            assert checked.device.races == []
            if kind != "tf32":
                assert_results(case, results, expected)
            first = first or results
            assert not differ(results, first)


def run(ops: EmulatedOps, name: str, kind: str, **settings: int) -> dict[str, Tensor | None]:
    with setting(ops, name, kind) as case:
        ops.device.set(**settings)
        return run_ours(expected_of(case, cell_states=True).inputs, cell_states=True)


@cache
def kernels_of(name: str, kind: str) -> frozenset[str]:
    """The kernels that a case runs, by their mangled names."""
    ops = emulated_ops(CHECKED_TARGET)
    ops.device.clear_statistics()
    run(ops, name, kind, statistics=1)
    return frozenset(ops.device.statistics)


@cache
def unbroken(name: str, kind: str) -> dict[str, Tensor | None]:
    """The results of a case."""
    return run(emulated_ops(CHECKED_TARGET), name, kind, seed=1)


def mutations(ops: EmulatedOps) -> list[LoadedMutation]:
    """Ways to break the synchronising instructions of the library's kernels, but for those of
    options, which tests of their own break."""
    found = [m for m in ops.device.mutations if "10lstm_fused4cuda" in m.function]
    return [m for m in found if "option_" not in m.function]


def test_every_kernel_that_synchronises_runs(checked: EmulatedOps) -> None:
    ran = {kernel for name in CASES for kind in TYPES for kernel in kernels_of(name, kind)}
    assert {m.function for m in mutations(checked)} <= ran


def differ(results: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> bool:
    for name, tensor in expected.items():
        result = results[name]
        if tensor is not None and result is not None:
            if not torch.equal(result.isnan(), tensor.isnan()):
                return True
            if not torch.equal(result.nan_to_num(), tensor.nan_to_num()):
                return True
    return False


def is_caught(
    ops: EmulatedOps, name: str, kind: str, mutation: LoadedMutation, **settings: int
) -> tuple[bool, bool]:
    """Whether the mutation was seen in a case, and whether it took effect there."""
    expected = unbroken(name, kind)
    try:
        results = run(ops, name, kind, mutation=mutation.number, **settings)
        caught = bool(ops.device.races) or differ(results, expected)
    except RuntimeError:  # a deadlock, or an access out of bounds
        caught = True
    ran = ops.device.mutation_hits > 0
    ops.device.set(mutation=0, weak_memory=0)
    ops.device.clear_error()
    return caught, ran


def is_needed(ops: EmulatedOps, cases: list[str], kind: str, mutation: LoadedMutation) -> bool:
    """Whether any case shows that the mutation breaks a kernel."""
    for name in cases:
        caught, ran = is_caught(ops, name, kind, mutation, seed=1)
        if caught or (ran and is_caught(ops, name, kind, mutation, seed=2)[0]):
            return True
    # Words that a thread stores one after the other are there together, unless stores arrive late
    # and out of order.
    return any(
        is_caught(ops, name, kind, mutation, seed=1, weak_memory=1)[0] for name in reversed(cases)
    )


@pytest.mark.parametrize("kind", BROKEN_TYPES)
def test_every_synchronisation_is_needed(kind: str, checked: EmulatedOps) -> None:
    """Without it there is a race, a deadlock, or a wrong result."""
    needed = 0
    for mutation in mutations(checked):
        cases = [name for name in CASES if mutation.function in kernels_of(name, kind)]
        if not cases:
            continue  # a kernel of another type
        assert is_needed(checked, cases, kind, mutation), (mutation, cases)
        needed += 1
    assert needed


def test_both_targets_have_the_same_ptx(checked: EmulatedOps) -> None:
    """So that what is found of one target's kernels holds for the other's."""
    folder = ROOT / "build" / "cuda_on_cpu" / "build"
    texts: dict[int, dict[str, list[str]]] = {}
    for target in TARGETS:
        paths = sorted((folder / f"sm_{target}").glob("*.ptx"))
        # The last part of a file's name is of its target.
        texts[target] = {path.stem.rpartition("-")[0]: ptx_lines(path) for path in paths}
    first, *others = texts.values()
    assert any("group_option_forward" in line for lines in first.values() for line in lines)
    assert others == [first] * len(others)


def ptx_lines(path: Path) -> list[str]:
    """All lines but those that name the target."""
    lines = path.read_text().splitlines()
    return [line for line in lines if not line.startswith((".target", "//"))]
