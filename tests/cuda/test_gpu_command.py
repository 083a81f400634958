# SPDX-License-Identifier: BSD-3-Clause
"""What `make gpu` does, as far as no GPU is needed for it."""

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from kit.gpu_cases import LARGE

from benchmarks import machine
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import steps
from benchmarks.gpu.sanitize import TOOL_LIMIT
from benchmarks.gpu.steps import Step, architectures, count_workers, make_steps, select
from lstm_fused._ops import native
from lstm_fused.info import cuda_plan_text
from tools.cuda_report.facts import DEVICES

ROOT = Path(__file__).resolve().parents[2]
OUT = Path("/results")

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
    assert architectures([(9, 0)]) == "90-real"
    assert architectures([(8, 0), (8, 9), (8, 0)]) == "80-real;89-real"
    assert architectures([(10, 0), (12, 0), (10, 3)]) == "100-real;120-real;103-real"


def test_steps_stand_in_their_order() -> None:
    made = make_steps("90-real", OUT)
    names = ["build", "parity", "memcheck", "racecheck", "initcheck", "synccheck", "micro"]
    runs = ["bench-graph", "bench-eager", "bench-packed", "bench-large", "bench-options"]
    runs.append("bench-variants")
    assert [step.name for step in made] == names + runs
    # Neither the build nor what nvcc compiles by itself needs another step.
    assert [step.name for step in made if step.needs != ("build",)] == ["build", "micro"]
    for step in made:
        assert not {"pip", "install", "download"} & set(step.command), "nothing may be fetched"
        assert step.limit == (TOOL_LIMIT if step.name.endswith("check") else None)


def test_build_goes_by_cmake_alone() -> None:
    build = make_steps("90-real", OUT)[0]
    assert build.command == (sys.executable, "-m", "tools.extensions")
    assert build.environment["LSTM_FUSED_CUDA"] == "1"
    assert build.environment["LSTM_FUSED_CUDA_ARCHS"] == "90-real"


def test_steps_are_chosen_by_name_and_by_what_stands_before_a_hyphen() -> None:
    made = make_steps("90-real", OUT)

    def chosen(*names: str) -> tuple[list[str], list[str]]:
        found, unknown = select(made, names)
        return [step.name for step in found], unknown

    assert chosen("parity", "build") == (["build", "parity"], [])
    assert chosen("bench-packed", "micro") == (["micro", "bench-packed"], [])
    assert len(chosen("bench")[0]) == 6
    assert chosen()[0] == [step.name for step in made]
    assert chosen("everything", "build") == (["build"], ["everything"])


@pytest.mark.parametrize(
    ("xdist", "workers", "words"), [(True, 6, ["-n", "6"]), (False, 6, []), (True, 1, [])]
)
def test_parity_is_spread_over_processes_where_it_can_be(
    xdist: bool, workers: int, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "find_spec", lambda name: name if xdist else None)
    parity = make_steps("90-real", OUT, workers=workers)[1].command
    at = parity.index("-n") if words else 0
    assert list(parity[at : at + 2]) == words if words else "-n" not in parity


def test_workers_are_as_many_as_processors_and_memory_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    assert count_workers([80 << 30]) == 8
    assert count_workers([80 << 30, 8 << 30]) == 4
    assert count_workers([1 << 30]) == count_workers([]) == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert count_workers([80 << 30]) == 3


def minutes_of(made: list[Step]) -> list[float]:
    runs = [step.command for step in made if step.name.startswith("bench-")]
    return [float(words[words.index("--minutes") + 1]) for words in runs]


def test_runs_of_the_benchmark_share_the_minutes() -> None:
    assert sum(minutes_of(make_steps("90-real", OUT, minutes=6))) == pytest.approx(6)
    assert sum(minutes_of(make_steps("90-real", OUT))) == pytest.approx(60)


@pytest.mark.parametrize(
    ("words", "minutes"),
    [([], 60), (["--quick"], 3), (["--quick", "--minutes", "5"], 5), (["--minutes", "6"], 6)],
)
def test_minutes_that_are_not_given_depend_on_quick(
    words: list[str], minutes: float, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--list", "--only", "bench", *words]) == 0
    found = re.findall(r"--minutes ([\d.]+)", capsys.readouterr().out)
    assert sum(map(float, found)) == pytest.approx(minutes)


def test_benchmark_has_every_shape_and_dtype() -> None:
    cli = pytest.importorskip("benchmarks.cli")
    from benchmarks.case import VARIANTS

    runs = {}
    for step in make_steps("90-real", OUT):
        if step.name.startswith("bench-"):
            options = cli.parse(step.command[3:])
            assert options.device == "cuda" and options.out == OUT and options.name == step.name
            assert options.cuda_graph is (step.name in ("bench-graph", "bench-large"))
            assert set(options.peers.split(",")) == {"fused", "nn", "flashrnn", "haste"}
            runs[step.name] = [e.case for _, e in cli.select_entries(options, threads=2)]
    whole = {"float16", "bfloat16", "tf32", "float32"}
    small = {
        *((1024, 16, 768, 768), (512, 64, 128, 128), (512, 1, 64, 64)),
        *((512, 33, 200, 250), (256, 64, 512, 512)),
    }
    for name, shapes in (
        *(("bench-graph", small), ("bench-eager", small)),
        ("bench-large", {(128, 128, 2048, 2048)}),
    ):
        found = {(case.T, case.N, case.D, case.H, case.dtype, case.mode) for case in runs[name]}
        assert found == {
            (*shape, dtype, mode)
            for shape in shapes
            for dtype in whole
            for mode in ("inference", "training")
        }
    packed = runs["bench-packed"]
    assert {case.ragged for case in packed} == {"packed", "lengths"}
    assert {case.dtype for case in packed} == {"float16", "bfloat16"}
    variants = runs["bench-variants"]
    assert {case.variant for case in variants} == set(VARIANTS)
    assert {case.H for case in variants} == {128, 768}
    quick = make_steps("90-real", OUT, quick=True)[-1]
    assert "--quick" in quick.command and quick.command.count("--shape") == 2


def test_tools_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "find_sanitizer", lambda: None)
    monkeypatch.setattr(steps, "find_nvcc", lambda packages: None)
    monkeypatch.setattr(steps, "find_spec", lambda name: None)
    reasons = {step.name: step.missing for step in make_steps("90-real", OUT)}
    assert reasons["racecheck"] == "compute-sanitizer (of the CUDA toolkit)"
    assert reasons["micro"] == "nvcc (of the CUDA toolkit)"
    assert reasons["parity"] == "Python packages: pytest, numpy"


def says(text: str, code: int = 0) -> tuple[str, ...]:
    return (sys.executable, "-c", f"import os; print(f{text!r}); raise SystemExit({code})")


def test_step_that_fails_stops_only_what_needs_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chain = [
        Step("bad", says("no", 3)),
        Step("good", says("{os.environ['X']}"), {"X": "7"}),
        Step("absent", ("nothing",), missing="a tool"),
        Step("needy", says("never"), needs=("bad",)),
        Step("needs nothing here", says("yes"), needs=("not chosen",)),
        Step("tool", says("limit", 5), limit=5),
        Step("needs tool", says("never"), needs=("absent",)),
    ]
    records = command.Run(tmp_path, tmp_path / "a.tgz", {}, tmp_path).run(chain)
    assert [(record["name"], record["status"]) for record in records] == [
        *(("bad", "failed"), ("good", "ok"), ("absent", "not run"), ("needy", "not run")),
        *(("needs nothing here", "ok"), ("tool", "tool's limit"), ("needs tool", "not run")),
    ]
    assert records[0]["exit"] == 3 and records[2]["reason"] == "a tool"
    assert records[3]["reason"] == "the step bad, which did not succeed"
    output = capfd.readouterr().out
    assert "7\n" in output and "absent: not run, it needs a tool" in output
    assert "never" not in output


def test_all_that_a_run_writes_is_packed_after_each_step(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("of another run")
    (tmp_path / "again.txt").write_text("of another run too")
    archive = tmp_path / "packed" / "results.tgz"
    write = "import pathlib; pathlib.Path('again.txt').write_text('new'); print('text')"
    look = f"import tarfile; print(sorted(tarfile.open({str(archive)!r}).getnames()))"
    run = command.Run(tmp_path, archive, {"commit": "abc"}, tmp_path)
    run.run([Step("one", (sys.executable, "-c", write)), Step("two", (sys.executable, "-c", look))])
    with tarfile.open(archive) as packed:
        names = sorted(packed.getnames())
        log, summary = packed.extractfile("one.log"), packed.extractfile("gpu_steps.json")
        assert log is not None and log.read() == b"text\n"
        assert summary is not None
        steps_of = json.load(summary)
    assert names == ["again.txt", "gpu_steps.json", "one.log", "two.log"]
    assert steps_of["commit"] == "abc" and [s["status"] for s in steps_of["steps"]] == ["ok"] * 2
    # The second step found the first one's files packed.
    assert (tmp_path / "two.log").read_text() == "['again.txt', 'gpu_steps.json', 'one.log']\n"


def test_commit_comes_from_the_environment_outside_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "tree" / "benchmarks" / "machine.py"))
    monkeypatch.delenv("LSTM_FUSED_COMMIT", raising=False)
    assert machine.commit() == "unknown"
    monkeypatch.setenv("LSTM_FUSED_COMMIT", "0123abc")
    assert machine.commit() == "0123abc"
    # A repository around the tree is another one's.
    git = ["git", "-C", str(tmp_path), "-c", "user.name=me", "-c", "user.email=me@here"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "other"]):
        subprocess.run([*git, *words], check=True)
    assert machine.commit() == "0123abc"
    # A worktree that was copied to another machine.
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / ".git").write_text("gitdir: /nowhere\n")
    assert machine.commit() == "0123abc"
    monkeypatch.setenv("PATH", "/nowhere")  # and where there is no git
    assert machine.commit() == "0123abc"


def test_list_needs_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list", "--only", "build,micro"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["build", "micro"]
    with pytest.raises(SystemExit):
        command.main(["--only", "everything"])


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf"])
def test_minutes_must_be_positive(minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["--list", "--minutes", minutes])
    assert stopped.value.code == 2
    assert f"--minutes must be positive, got {minutes}" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--out", "--archive"])
def test_places_that_cannot_be_written_to_are_named(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device = {"name": "H100", "capability": [9, 0], "memory": 80 << 30}
    monkeypatch.setattr(command, "find_devices", lambda: ([device], ""))
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        command.main(["--out", str(tmp_path), option, str(tmp_path / "file" / "results")])
    assert stopped.value.code == 2
    assert "--out and --archive must be places to write to: " in capsys.readouterr().err


def test_torch_that_lacks_a_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "torch":
                raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    wanted = "torch does not load: libcudart.so.13: cannot open shared object file"
    assert command.find_devices() == ([], wanted)


@pytest.mark.parametrize("device", ["A100", "H100"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_large_cases_reach_what_groups_of_blocks_can_be(
    device: str, dtype: str, backward: bool
) -> None:
    """With the variant that tests/cuda/test_gpu.py asks for, whatever the estimates say."""
    assert native.compiled is not None
    before = native.compiled.set_cuda_variant("persistent")
    try:
        found = reached(device, dtype, backward)
    finally:
        native.compiled.set_cuda_variant(before)
    assert found == {"several groups", "more blocks than lanes", "several tiles", "two directions"}


def reached(device: str, dtype: str, backward: bool) -> set[str]:
    """What the large cases' groups of blocks are on a device."""
    found: set[str] = set()
    for case in LARGE:
        facts = DEVICES[device].facts
        shape = (case.T, case.N, case.D, case.H, 0, case.dirs)
        text = cuda_plan_text(*shape, dtype, backward, facts)
        if not (group := re.search(r"(\d+) group\(s\) x (\d+) blocks", text)):
            continue
        tiles = re.search(r"(\d+) tile\(s\) of 8 rows each", text)
        assert tiles is not None, text
        found |= {"several groups"} if int(group[1]) > 1 else set()
        found |= {"more blocks than lanes"} if int(group[2]) > 32 else set()
        found |= {"several tiles"} if int(tiles[1]) > 1 else set()
        found |= {"two directions"} if case.bidirectional else set()
    return found
