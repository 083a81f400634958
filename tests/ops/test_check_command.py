# SPDX-License-Identifier: BSD-3-Clause
"""`python -m lstm_fused check`."""

import re
from typing import Any

import pytest
import torch
from kit.numeric import FLOORS as TEST_FLOORS
from kit.process import run_python
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lstm_fused import FusedLSTM, QuantizedLSTM
from lstm_fused.__main__ import main
from lstm_fused._check import command, kernels, options, problem
from lstm_fused._check.kernels import Kernel, kernels_of, use, why_not_taken
from lstm_fused._check.options import OptionInputs
from lstm_fused._check.problem import FLOORS, KINDS, Errors, Problem, dtype_of, find_errors
from lstm_fused._check.table import Row, Times, format_table
from lstm_fused._ops import native
from lstm_fused.reference_options import LayerOptions, lstm_layer

CPU = torch.device("cpu")
SMALL = Kernel("baseline", "float32", (Problem(5, steps=3, batch=2),))


@pytest.fixture
def one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check one kernel on one small problem."""
    monkeypatch.setattr(command, "kernels_of", lambda device: [SMALL])


def test_the_budget_is_that_of_the_tests() -> None:
    assert {dtype_of(kind): FLOORS[kind] for kind in KINDS if kind != "tf32"} == TEST_FLOORS


def test_every_kernel_of_the_cpu_is_right() -> None:
    """In a process of its own, as it is used."""
    code = 'from lstm_fused.__main__ import main\nprint(main(["check", "--no-times"]))'
    text = run_python(code, timeout=600, OMP_NUM_THREADS="1")
    assert "all is right\n0\n" in text
    if torch.version.cuda is None:
        assert f"no CUDA device: torch {torch.__version__} is no CUDA build" in text
    assert native.compiled is not None
    for isa in native.compiled.available_isas():
        for kind in KINDS:
            for cell in ("", ", options", ", norms"):
                row = rf"\| cpu +\| {isa}{cell} +\| {kind} .*\| ok +\|"
                assert (re.search(row, text) is not None) == (kind != "tf32"), (isa, cell, kind)
        for kind in ("int8", "bfloat16", "float16"):
            row = rf"\| cpu +\| {isa}, packed weights +\| {kind} +\| [0-9.e-]+ +\| – .*\| ok +\|"
            assert re.search(row, text) is not None, (isa, kind)


@pytest.mark.usefixtures("one_kernel")
def test_times_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--device", "cpu"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "| baseline" in line]
    figures = [cell.strip() for cell in line.split("|")][4:10]
    assert all(float(figure) > 0 for figure in figures)


@pytest.mark.usefixtures("one_kernel")
def test_wrong_results_end_with_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Wrong(FusedLSTM):
        def forward(self, *arguments: Any, **options: Any) -> Any:
            y, states = super().forward(*arguments, **options)
            return y + 1e-3, states

    class NotFinite(FusedLSTM):
        def forward(self, *arguments: Any, **options: Any) -> Any:
            y, states = super().forward(*arguments, **options)
            return y * torch.nan, states

    class Refusing(FusedLSTM):
        def forward(self, *arguments: Any, **options: Any) -> Any:
            raise RuntimeError("no such kernel")

    for module_type in (Wrong, NotFinite, Refusing):
        monkeypatch.setattr(problem, "FusedLSTM", module_type)
        assert main(["check", "--no-times"]) == 1
        out = capsys.readouterr().out
        assert "WRONG" in out and "1 of 1 are wrong" in out
        assert ("cpu baseline float32: no such kernel" in out) == (module_type is Refusing)


def scaled(tensor: Tensor, factor: float) -> Tensor:
    """The tensor, whose gradient is multiplied."""
    return tensor + (factor - 1) * (tensor - tensor.detach())


@pytest.mark.parametrize("what", ["options", "norms"])
def test_wrong_options_are_found(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result, or one of the gradients, that is off a little."""
    kernel = Kernel("baseline", "float32", (Problem(7, steps=3, batch=2, ragged=True, what=what),))
    assert not command.check_kernel(kernel, CPU, timed=False).is_wrong
    layer = options.options_layer
    names = ["peephole", "reset_h", "reset_c"] + ["gains", "cell_norm"] * (what == "norms")

    def wrong_result(*arguments: Any) -> Any:
        y, *others = layer(*arguments)
        return (y + 1e-3, *others)

    def wrong_gradient(name: str) -> Any:
        def run(arguments: Any, given: Any, weights: Any) -> Any:
            return layer(
                arguments, given._replace(**{name: scaled(getattr(given, name), 1.01)}), weights
            )

        return run

    for wrong in (wrong_result, *map(wrong_gradient, names)):
        monkeypatch.setattr(options, "options_layer", wrong)
        errors = command.check_kernel(kernel, CPU, timed=False).errors
        assert errors is not None and errors.backward is not None
        assert (errors.forward > 1) == (wrong is wrong_result)
        assert (errors.backward > 1) == (wrong is not wrong_result)


def test_problems_have_every_option() -> None:
    """All options are in a problem, and states are clipped."""
    given = {
        what: OptionInputs(Problem(7, steps=3, batch=2, ragged=True, what=what), "float32").options
        for what in ("options", "norms")
    }
    used = {name for own in given.values() for name, value in own._asdict().items()
            if isinstance(value, Tensor) or value}  # fmt: skip
    assert used == set(LayerOptions._fields)
    for kernel in kernels_of(CPU):
        for a_problem in kernel.problems if kernel.what == "options" else ():
            own = OptionInputs(a_problem, "float32")
            weights = list(own.weights.values())
            cells = lstm_layer(own.x, own.h_0, own.c_0, weights, own.options)[3]
            assert (cells.abs() == own.options.cell_clip).any()


@pytest.mark.parametrize("kind", ["int8", "bfloat16", "float16"])
def test_wrong_packed_weights_are_found(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel("baseline", kind, (Problem(9, steps=3, batch=2, what="packed weights"),))
    row = command.check_kernel(kernel, CPU, timed=False)
    assert row.errors is not None and 0 < row.errors.forward < 1 and row.errors.backward is None
    run = QuantizedLSTM.forward

    def wrong(*arguments: Any, **masks: Any) -> Any:
        y, states = run(*arguments, **masks)
        return y * 1.01, states

    monkeypatch.setattr(QuantizedLSTM, "forward", wrong)
    assert command.check_kernel(kernel, CPU, timed=False).is_wrong


@pytest.mark.parametrize(
    ("kind", "what", "has_training"),
    [("float32", "options", True), ("float32", "norms", True), ("int8", "packed weights", False)],
)
def test_times_of_options_and_packed_weights(
    kind: str, what: str, has_training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_SECONDS", 1e-3)
    row = command.check_kernel(Kernel("baseline", kind, (Problem(5, what=what),)), CPU, timed=True)
    for times in (row.ours, row.theirs):
        assert times is not None and times.inference > 0
        assert (times.training is not None and times.training > 0) == has_training


def test_errors_are_shares_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """A known error, of a result and of a gradient, against a rival without one."""
    inputs = problem.Inputs

    def off_by(forward: float, backward: float) -> Errors:
        def run(self: Any, module_type: Any, device: Any) -> dict[str, Tensor]:
            results = self.run_reference(torch.float64)
            if module_type is FusedLSTM:
                results["h_n"] = results["h_n"] + forward
                results["grad_c_0"] = results["grad_c_0"] - backward
            return results

        monkeypatch.setattr(inputs, "run", run)
        return find_errors(Problem(3, steps=2, batch=2), "float32", CPU)

    assert off_by(0, 0) == (0, 0)
    found = off_by(1e-6, 0)
    assert found == (pytest.approx(0.2, rel=1e-3), 0)
    assert off_by(0, 1e-3).backward > 10


def test_a_kernel_that_calls_do_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the device is too small for it there is no fault, and where it has failed there is."""
    plans = {"text": ""}
    monkeypatch.setattr(command, "why_not_taken", lambda *arguments: plans["text"])
    plans["text"] = "stepwise, 1 GEMM (W_hh does not fit 4 SMs all at once)"
    row = command.check_kernel(SMALL, CPU, timed=False)
    assert (row.errors, row.note, row.is_wrong) == (None, plans["text"], False)
    plans["text"] = "stepwise, 1 GEMM (groups of blocks are off on this device: it hung)"
    row = command.check_kernel(SMALL, CPU, timed=False)
    assert row.is_wrong


def test_plans_name_the_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = {
        "one block": "persistent, float16, a block of 64 threads for each of 1 tile(s) of 8 rows",
        "group": "persistent, float16, 1 group(s) x 5 blocks of 256 threads and 9 bytes",
        "stepwise": "stepwise, 1 GEMM and 1 kernel a step (a group of blocks is slower: ...)",
    }
    monkeypatch.setattr(kernels, "make_module", lambda *_: None)
    for plan in plans.values():
        lines = ["cuda, float16: T=1", f"  layer 0 forward  D=1 H=1: {plan}"]
        lines.append("  zoneout=0.1: persistent, in the epilogue of each step's product")
        monkeypatch.setattr(kernels, "explain_lines", lambda *_, lines=lines: lines)
        for name in plans:
            kernel = Kernel(name, "float16", (Problem(3),))
            with FakeTensorMode():
                found = why_not_taken(kernel, kernel.problems[0], torch.device("cuda", 0))
            assert found == ("" if plans[name] == plan else plan)


def test_the_kernels_of_a_gpu() -> None:
    found = kernels_of(torch.device("cuda", 0))
    assert {kernel.name for kernel in found} == {"one block", "group", "stepwise"}
    assert {kernel.kind for kernel in found} == set(KINDS)
    labels = ["stepwise", "stepwise, options", "stepwise, norms"]
    assert [k.label for k in found if k.kind == "float64"] == labels
    norms = {k.name for k in found if k.what == "norms"}
    assert norms == {"stepwise"}, "sums go across blocks"
    groups = {k.kind for k in found if k.name == "group" and k.what == "options"}
    assert groups == {"tf32", "bfloat16", "float16"}
    blocks = {k.kind for k in found if k.name == "one block" and k.what == "options"}
    assert blocks == groups | {"float32"}
    for kernel in found:
        assert any(p.ragged for p in kernel.problems) and not kernel.timed().ragged


def test_settings_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.rnn)
    before = [backend.fp32_precision for backend in backends]  # type: ignore[attr-defined]
    assert native.compiled is not None
    with use(Kernel("group", "tf32", ()), torch.device("cuda", 0)):
        assert [b.fp32_precision for b in backends] == ["tf32"] * 2  # type: ignore[attr-defined]
        assert native.compiled.set_cuda_variant("persistent") == "persistent"
    assert [b.fp32_precision for b in backends] == before  # type: ignore[attr-defined]
    assert native.compiled.set_cuda_variant("auto") == "auto"


def test_nothing_to_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "compiled_cuda", None)
    monkeypatch.setattr(native, "cuda_problem", "they were not built")
    assert main(["check", "--device", "cuda:0"]) == 1
    assert "no CUDA kernels: they were not built" in capsys.readouterr().out
    monkeypatch.setattr(native, "compiled", None)
    assert main(["check"]) == 1
    assert "the compiled kernels did not load" in capsys.readouterr().out


def test_the_table() -> None:
    times = Times(1e-6, 2.5e-6)
    rows = [
        Row("cuda:0", "group", "float16", Errors(0.25, 0.5), times, Times(2e-6, 10e-6)),
        Row("cuda:0", "group", "tf32", Errors(0.25, float("inf"))),
        Row("cuda:0", "one block", "tf32", note="stepwise, since H is large"),
        Row("cuda:0", "one block", "float16", note="stepwise, since H is large"),
        Row("cuda:0", "stepwise", "float16", note="no driver", is_fault=True),
    ]
    assert [row.is_wrong for row in rows] == [False, True, False, False, True]
    assert format_table(rows).splitlines()[2:] == [
        "| cuda:0 | group     | float16  | 0.25    | 0.5      | 1.00      | 2.00    | 2.50     "
        "| 10.00   | ok    |",
        "| cuda:0 | group     | tf32     | 0.25    | inf      | –         | –       | –        "
        "| –       | WRONG |",
        "| cuda:0 | one block | tf32     | –       | –        | –         | –       | –        "
        "| –       |       |",
        "| cuda:0 | one block | float16  | –       | –        | –         | –       | –        "
        "| –       |       |",
        "| cuda:0 | stepwise  | float16  | –       | –        | –         | –       | –        "
        "| –       | WRONG |",
        "cuda:0 one block tf32, cuda:0 one block float16: stepwise, since H is large",
        "cuda:0 stepwise float16: no driver",
    ]
