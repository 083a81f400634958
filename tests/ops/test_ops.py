# SPDX-License-Identifier: BSD-3-Clause
"""The registered ops, their fakes, and what traces through them: compile, export."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from kit.cases import CORE, LayerCase, make_inputs
from kit.numeric import assert_bitwise_equal, assert_within_budget, run_truth
from kit.ops import (
    PACKED,
    SOME,
    assert_refused,
    backward_arguments,
    backward_op,
    forward_arguments,
    forward_op,
)
from kit.ours import run_ours
from kit.settings import DTYPES
from kit.twins import D, H, assert_same, make_twins, random_hx
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from lstm_fused import FusedLSTM, FusedLSTMCell, FusedLSTMFunction, functional

ONE_LAYER = [case for case in CORE if case.num_layers == 1 and not case.batch_first and case.hx]
some_cases = pytest.mark.parametrize("case", SOME, ids=str)
one_layer_cases = pytest.mark.parametrize("case", ONE_LAYER, ids=str)


@some_cases
@pytest.mark.parametrize("saves", [False, True])
def test_opcheck_of_the_forward(case: LayerCase, saves: bool) -> None:
    arguments = forward_arguments(case, save_for_backward=saves, return_cell_states=saves)
    torch.library.opcheck(forward_op, tuple(arguments.values()))


@some_cases
@pytest.mark.parametrize("needed", [False, True])
def test_opcheck_of_the_backward(case: LayerCase, needed: bool) -> None:
    changes: dict[str, Any] = (
        {} if needed else {"grad_y": None, "need_input": False, "need_weights": False}
    )
    torch.library.opcheck(backward_op, tuple(backward_arguments(case, **changes).values()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck_of_packed_sequences(dtype: torch.dtype) -> None:
    case = replace(PACKED, dtype=dtype)
    torch.library.opcheck(forward_op, tuple(forward_arguments(case, packed=True).values()))
    torch.library.opcheck(backward_op, tuple(backward_arguments(case, packed=True).values()))


def described(results: Any) -> list[Any]:
    """Shapes, strides and dtypes of all tensors of a result."""
    flat = torch.utils._pytree.tree_leaves(results)
    return [(tuple(t.shape), t.stride(), t.dtype) for t in flat]


@one_layer_cases
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("asked", [False, True])
def test_fakes_and_meta_tensors_have_the_real_forms(
    case: LayerCase, dtype: torch.dtype, asked: bool
) -> None:
    case = replace(case, dtype=dtype)
    calls = [
        (forward_op, forward_arguments(case, save_for_backward=asked, return_cell_states=asked)),
        (
            backward_op,
            backward_arguments(case, need_input=asked, need_states=asked, need_weights=asked),
        ),
    ]
    if case.lengths == tuple(sorted(case.lengths or (0,), reverse=True)) and 0 not in case.lengths:
        calls.append((forward_op, forward_arguments(case, packed=True)))
        calls.append((backward_op, backward_arguments(case, packed=True)))
    for op, arguments in calls:
        expected = described(op(*arguments.values()))
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fakes = torch.utils._pytree.tree_map_only(Tensor, mode.from_tensor, arguments)
            assert described(op(*fakes.values())) == expected
        meta = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to("meta"), arguments)
        assert described(op(*meta.values())) == expected


def test_results_are_new_tensors() -> None:
    """No result shares memory with an argument or with another result, as the schemas say."""
    forward, backward = forward_arguments(ONE_LAYER[-1]), backward_arguments(ONE_LAYER[-1])
    least = forward_arguments(SOME[0], save_for_backward=False, return_cell_states=False)
    for op, arguments in ((forward_op, forward), (backward_op, backward), (forward_op, least)):
        results = torch.utils._pytree.tree_leaves(op(*arguments.values()))
        given = [t for t in torch.utils._pytree.tree_leaves(arguments) if isinstance(t, Tensor)]
        storages = [t.untyped_storage()._cdata for t in results]
        assert len(set(storages)) == len(storages)
        assert not {t.untyped_storage()._cdata for t in given} & set(storages)


BASE = LayerCase(4, 3, 2, 5, lengths=(4, 2, 1), reset=0.2)
X, STATE = torch.zeros(4, 3, 2), torch.zeros(1, 3, 5)
ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"input": torch.zeros(4, 6)}, "input must have 3 dimensions, got 2"),
    (
        {"input": X.long()},
        "input must be float32, float64, bfloat16 or float16, got torch.int64",
    ),
    ({"input": torch.zeros(4, 3, 9)}, r"w_ih must have shape (20, 9), got (20, 2)"),
    ({"input": X.double()}, "h_0 must have input's dtype, torch.float64, got torch.float32"),
    ({"h_0": torch.zeros(3, 5)}, "h_0 and c_0 must have 3 dimensions, got 2 and 3"),
    ({"h_0": torch.zeros(3, 3, 5)}, "h_0 must hold 1 or 2 directions, got 3"),
    ({"h_0": torch.zeros(1, 2, 5)}, "h_0 must hold 3 rows as input does, got 2"),
    ({"c_0": torch.zeros(1, 2, 5)}, "c_0 must have shape (1, 3, 5), got (1, 2, 5)"),
    ({"weights": [torch.zeros(20, 2)]}, "weights must hold 2 to 5 tensors for each direction"),
    ({"weights": []}, "weights must hold 2 to 5 tensors for each direction, got 0"),
    (
        {"weights": [torch.zeros(20, 2), torch.zeros(20, 4)]},
        "w_hh must have shape (20, 5), got (20, 4)",
    ),
    ({"lengths": torch.tensor([4, 5, 1])}, "lengths must be between 0 and T = 4, got 5 for row 1"),
    ({"lengths": torch.tensor([4, 2, -1])}, "lengths must be between 0 and T = 4, got -1"),
    ({"lengths": torch.tensor([4, 2])}, "lengths must have shape (3,), got (2,)"),
    (
        {"lengths": torch.tensor([4.0, 2.0, 1.0])},
        "lengths must be int32 or int64, got torch.float32",
    ),
    ({"reset_mask": torch.zeros(4, 3)}, "reset_mask must be bool, got torch.float32"),
    ({"reset_mask": torch.zeros(3, 4) > 0}, "reset_mask must have shape (4, 3), got (3, 4)"),
    ({"batch_sizes": torch.tensor([3])}, "input must have 2 dimensions, got 3"),
    (
        {"batch_sizes": torch.tensor([3]), "input": torch.zeros(3, 2)},
        "lengths does not go with a PackedSequence, got both; pass padded input instead",
    ),
]
PACKED_ERRORS = [
    ([4, 3, 2, 2], "batch_sizes must add up to 12 rows of input, got 11"),
    ([2, 3, 4, 3], "batch_sizes must be positive and never increase, got 3 at step 1"),
    ([4, 4, 4, 0], "batch_sizes must be positive and never increase, got 0 at step 3"),
    ([12], "batch_sizes must not exceed the 4 rows of h_0, got 12"),
]


@pytest.mark.parametrize(("changes", "message"), ERRORS, ids=[m for _, m in ERRORS])
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    assert_refused(lambda: forward_op(*forward_arguments(BASE, **changes).values()), message)
    if message.startswith("input must be float32"):
        return
    arguments = backward_arguments(BASE)
    assert_refused(lambda: backward_op(*(arguments | changes).values()), message)


DTYPE_ERRORS = [error for error in ERRORS if "got torch." in error[1]]


@pytest.mark.parametrize(("changes", "message"), DTYPE_ERRORS, ids=[m for _, m in DTYPE_ERRORS])
def test_fake_tensors_are_refused_for_their_dtype_in_the_same_words(
    changes: dict[str, Any], message: str
) -> None:
    arguments = torch.utils._pytree.tree_map_only(
        Tensor, lambda t: t.to("meta"), forward_arguments(BASE, **changes)
    )
    assert_refused(lambda: forward_op(*arguments.values()), message)


@pytest.mark.parametrize(("sizes", "message"), PACKED_ERRORS)
def test_batch_sizes_that_do_not_fit_are_refused(sizes: list[int], message: str) -> None:
    changes = {"batch_sizes": torch.tensor(sizes)}
    arguments = forward_arguments(PACKED, packed=True, **changes)
    assert_refused(lambda: forward_op(*arguments.values()), message)


@pytest.mark.parametrize(
    "name", ["grad_y", "grad_h_n", "grad_c_n", "grad_cell_states", "y", "gates", "cells"]
)
def test_saved_tensors_and_gradients_that_do_not_fit_are_refused(name: str) -> None:
    arguments = backward_arguments(BASE)
    for wrong in (arguments[name][..., :-1], arguments[name].half()):
        changed = arguments | {name: wrong}
        assert_refused(lambda a=changed: backward_op(*a.values()), f"{name} must ")  # type: ignore[misc]


# What is built on the ops.


@some_cases
def test_function_and_functional_form_are_the_op(case: LayerCase) -> None:
    arguments = forward_arguments(case)
    expected = forward_op(*arguments.values())
    input, h_0, c_0, weights, lengths, batch_sizes, reset_mask = list(arguments.values())[:7]
    masks = (lengths, batch_sizes, reset_mask)
    applied = FusedLSTMFunction.apply(input, h_0, c_0, *masks, True, False, *weights)  # type: ignore[no-untyped-call]
    called = functional.lstm(
        input,
        (h_0, c_0),
        weights,
        bidirectional=case.bidirectional,
        lengths=lengths,
        reset_mask=reset_mask,
        return_cell_states=True,
    )
    for results in (applied[:4], called):
        for mine, bits in zip(results, expected, strict=False):
            assert_bitwise_equal(mine, bits)


@pytest.mark.parametrize("case", [*SOME[:1], *SOME[2:]], ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_reference_runs_where_there_are_no_kernels(
    case: LayerCase, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if packed:
        case = replace(PACKED, bias=case.bias)
    inputs = make_inputs(case)
    expected = run_ours(inputs, cell_states=True)
    monkeypatch.setattr("lstm_fused._ops.native.has_kernels", lambda device: False)
    monkeypatch.setattr("lstm_fused._ops.native.lstm_inference_op", None)
    theirs = run_ours(inputs, cell_states=True, packed=packed)
    truth = run_truth(inputs, cell_states=True)
    for name, result in expected.items():
        assert_within_budget(name, result, theirs[name], truth[name], case.dtype)
        assert_within_budget(name, theirs[name], result, truth[name], case.dtype)


def test_package_without_its_compiled_part_warns_and_works() -> None:
    program = """
import sys, warnings
sys.modules["lstm_fused._C"] = None
import torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import lstm_fused
assert ["the compiled kernels did not load" in str(w.message) for w in caught] == [True]
assert lstm_fused.build_info()["kernels"] is False
module = lstm_fused.FusedLSTM(3, 5)
x = torch.randn(4, 2, 3)
torch.testing.assert_close(module(x)[0], module.to_torch()(x)[0])
print(lstm_fused.explain(module, x))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "plain torch operations run" in done.stdout


COMPILED: dict[str, dict[str, Any]] = {
    "plain": {},
    "stack": {"num_layers": 2, "bidirectional": True, "proj_size": 2},
    "batch_first": {"batch_first": True, "bias": False},
}


def call_arguments(module: FusedLSTM, steps: int, rows: int, extras: bool) -> dict[str, Any]:
    sizes = (rows, steps) if module.batch_first else (steps, rows)
    arguments: dict[str, Any] = {"input": torch.randn(*sizes, D, dtype=torch.float64)}
    if extras:
        arguments |= {
            "hx": random_hx(module, rows),
            "lengths": torch.arange(rows) % steps + 1,
            "reset_mask": torch.rand(sizes) < 0.3,
            "return_cell_states": True,
        }
    return arguments


@pytest.mark.parametrize("options", COMPILED.values(), ids=COMPILED)
@pytest.mark.parametrize("extras", [False, True], ids=["input", "all_arguments"])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@torch._dynamo.config.patch(error_on_recompile=True)  # type: ignore[untyped-decorator]
def test_compile_makes_one_graph_for_all_sizes(
    options: dict[str, Any], extras: bool, training: bool
) -> None:
    torch._dynamo.reset()
    module, _ = make_twins(**options)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    # NOTE: sizes that are equal at first, T and H say, would be one symbol to the compiler.
    for steps, rows in ((11, 7), (13, 7), (29, 17)):
        arguments = call_arguments(module, steps, rows, extras)
        x = arguments["input"].requires_grad_(training)
        results = []
        for function in (compiled, module):
            with torch.set_grad_enabled(training):
                y, hidden, *cells = function(**arguments)
            results.append([y, *hidden, *cells])
            if training:
                loss = y.pow(2).sum() + hidden[1].sum()
                results[-1] += torch.autograd.grad(loss, [x, *module.parameters()])
        for mine, bits in zip(*results, strict=True):
            assert_bitwise_equal(mine, bits)


def test_compile_of_a_model_with_a_cell_and_layers() -> None:
    torch._dynamo.reset()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = FusedLSTM(D, H, num_layers=2)
            self.cell = FusedLSTMCell(H, H)

        def forward(self, x: Tensor) -> Tensor:
            y, hidden = self.layers(torch.tanh(x))
            h, _ = self.cell(y[-1])
            return h + self.layers(x, hidden)[0].mean(0)  # type: ignore[no-any-return]

    model = Model()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for x in (torch.randn(5, 3, D), torch.randn(8, 3, D)):
        assert_bitwise_equal(compiled(x), model(x))


@pytest.mark.parametrize("options", COMPILED.values(), ids=COMPILED)
@pytest.mark.parametrize("extras", [False, True], ids=["input", "all_arguments"])
def test_export_with_dynamic_time_and_batch(options: dict[str, Any], extras: bool) -> None:
    module, _ = make_twins(**options)
    steps, rows = torch.export.Dim("steps", min=2, max=99), torch.export.Dim("rows", min=2, max=99)
    by_time = {0: rows, 1: steps} if module.batch_first else {0: steps, 1: rows}
    shapes: dict[str, Any] = {"input": by_time}
    if extras:
        state = {1: rows}
        shapes |= {"hx": (state, state), "lengths": {0: rows}, "reset_mask": by_time}
        shapes["return_cell_states"] = None
    example = call_arguments(module, 5, 4, extras)
    program = torch.export.export(module, (), example, dynamic_shapes=shapes)
    exported = program.run_decompositions().module()
    for sizes in ((5, 4), (9, 3), (31, 12)):
        arguments = call_arguments(module, *sizes, extras)
        mine, expected = exported(**arguments), module(**arguments)
        assert_same(mine, expected)
        assert_bitwise_equal(mine[0], expected[0])
