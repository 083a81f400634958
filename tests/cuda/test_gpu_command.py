# SPDX-License-Identifier: BSD-3-Clause
"""What `make gpu` does, as far as no GPU is needed for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import smoke, steps
from benchmarks.gpu.steps import Step, architectures, make_steps

ROOT = Path(__file__).resolve().parents[2]

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@without_gpu
def test_without_a_gpu_it_says_so_and_fails() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == command.NO_GPU
    assert done.stderr.startswith("make gpu needs an NVIDIA GPU: torch ")
    assert done.stdout == ""


def test_architectures_are_those_of_the_devices() -> None:
    assert architectures([(9, 0)]) == "90a-real"
    assert architectures([(8, 0), (8, 9), (8, 0)]) == "80-real;89-real"
    assert architectures([(10, 0), (12, 0), (10, 3)]) == "100a-real;120-real;103-real"


def test_steps_stand_in_their_order() -> None:
    made = make_steps("90a-real", minutes=5)
    names = ["build", "parity", "memcheck", "racecheck", "gpu", "gpu-graph"]
    assert [step.name for step in made] == names
    assert [step.name for step in made if step.is_vital] == ["build"]
    build = made[0]
    assert build.environment == {"LSTM_FUSED_CUDA": "1", "LSTM_FUSED_CUDA_ARCHS": "90a-real"}
    for step in made:
        assert not {"pip", "install", "download"} & set(step.command), "nothing may be fetched"


def test_benchmark_has_every_dtype_and_the_options_asked_for() -> None:
    *_, plain, graph = make_steps("90a-real", minutes=5)
    for dtype in ("fp16", "bf16", "tf32", "fp32"):
        assert dtype in plain.command and dtype in graph.command
    assert "inference,training,ragged,options" in plain.command
    assert "--cuda-graph" in graph.command and "--cuda-graph" not in plain.command
    quick = make_steps("90a-real", quick=True)[-1]
    assert "--quick" in quick.command and len(quick.command) < len(graph.command)


def test_benchmark_takes_these_arguments() -> None:
    cli = pytest.importorskip("benchmarks.cli")
    for step in make_steps("90a-real", minutes=5)[-2:]:
        options = cli.parse(step.command[3:])
        assert options.device == "cuda" and options.minutes == 5
        assert cli.select_entries(options, threads=2)


def test_tools_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "find_sanitizer", lambda: None)
    monkeypatch.setattr(steps, "find_spec", lambda name: None)
    reasons = {step.name: step.missing for step in make_steps("90a-real")}
    assert reasons["racecheck"] == "compute-sanitizer (of the CUDA toolkit)"
    assert reasons["parity"] == "Python packages: pytest, numpy"


def test_step_that_fails_stops_only_where_it_is_vital(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = Step("bad", (sys.executable, "-c", "raise SystemExit(3)"))
    good = Step("good", (sys.executable, "-c", "import os; print(os.environ['X'])"), {"X": "7"})
    absent = Step("absent", ("nothing",), missing="a tool")
    vital = Step("vital", bad.command, is_vital=True)
    records = command.run_steps([bad, good, absent, vital, good], tmp_path)
    found = [(record["name"], record["status"]) for record in records]
    assert found == [("bad", "failed"), ("good", "ok"), ("absent", "not run"), ("vital", "failed")]
    assert records[0]["exit"] == 3 and records[2]["reason"] == "a tool"
    output = capfd.readouterr().out
    assert "7\n" in output and "absent: not run, it needs a tool" in output


def test_list_needs_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list", "--only", "build,gpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["build", "gpu"]
    with pytest.raises(SystemExit):
        command.main(["--only", "everything"])


@pytest.mark.parametrize("case", smoke.CASES, ids=str)
def test_smoke_calls_run(case: smoke.SmokeCase) -> None:
    smoke.run(case, "cpu")
