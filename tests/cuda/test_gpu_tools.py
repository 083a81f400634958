# SPDX-License-Identifier: BSD-3-Clause
"""What `make gpu` makes of its tools' output: the sanitizer's, and the microbenchmarks'."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import sanitize, smoke
from benchmarks.gpu.micro import __main__ as micro
from benchmarks.gpu.sanitize import TOOL_LIMIT, TOOLS, judge
from lstm_fused import info
from tools.nvcc import find_nvcc

CASES = len(smoke.CASES)
ALL_OK = "========= COMPUTE-SANITIZER\n" + "ok SmokeCase(T=5)\n" * CASES
SOME_REFUSED = (
    "ok SmokeCase(T=5)\n" * (CASES - 1)
    + "refused SmokeCase(T=4): a kernel must succeed, got cudaErrorLaunchOutOfResources: too many\n"
)
CLEAN = {
    **dict.fromkeys(TOOLS, "========= ERROR SUMMARY: 0 errors\n"),
    "racecheck": "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n",
}
# What initcheck says of kernels that are not ours, which it looks at to see what they write.
UNINITIALIZED = """\
========= Uninitialized __global__ memory read of size 4 bytes
=========     at {}+0x140
=========     by thread (0,0,0) in block (0,0,0)
========= ERROR SUMMARY: 1 error
"""


def code_of(tool: str, code: int, text: str, runs_alone: bool | None = None) -> int | None:
    verdict = judge(tool, code, text, runs_alone)
    return None if verdict is None else verdict.code


@pytest.mark.parametrize("tool", TOOLS)
def test_clean_run_is_one_that_made_every_call_and_gave_a_summary(tool: str) -> None:
    assert code_of(tool, 0, ALL_OK + CLEAN[tool]) == 0
    assert code_of(tool, 0, ALL_OK) == 1
    # A tool that says that it found nothing, having run nothing.
    assert code_of(tool, 0, CLEAN[tool]) == 1
    # The program ended early.
    assert code_of(tool, 0, ALL_OK.replace("ok ", "", 1) + CLEAN[tool]) == 1
    assert code_of(tool, 1, ALL_OK + CLEAN[tool]) == 1


@pytest.mark.parametrize("tool", TOOLS)
def test_refused_launch_is_the_tools_limit_where_it_succeeds_without_the_tool(tool: str) -> None:
    text = SOME_REFUSED + CLEAN[tool]
    assert code_of(tool, 1, text) is None
    assert code_of(tool, 1, text, runs_alone=False) == 1
    verdict = judge(tool, 1, text, runs_alone=True)
    assert verdict is not None and verdict.code == TOOL_LIMIT
    assert f"no error in {CASES - 1} calls; it cannot run 1 others" in verdict.text
    assert "cudaErrorLaunchOutOfResources" in verdict.text


@pytest.mark.parametrize(
    ("tool", "summary"),
    [
        ("memcheck", "========= ERROR SUMMARY: 3 errors\n"),
        ("synccheck", "========= ERROR SUMMARY: 1 error\n"),
        ("racecheck", "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n"),
        ("initcheck", UNINITIALIZED.format("void lstm_fused::cuda::a_kernel<float>(int)")),
    ],
)
def test_errors_are_no_limit(tool: str, summary: str) -> None:
    assert code_of(tool, sanitize.FOUND_ERRORS, ALL_OK + summary) == 1
    assert code_of(tool, sanitize.FOUND_ERRORS, SOME_REFUSED + summary, runs_alone=True) == 1


def test_initcheck_looks_at_our_kernels_only() -> None:
    text = ALL_OK + UNINITIALIZED.format("void cutlass::Kernel<gemm>(int)")
    assert code_of("initcheck", sanitize.FOUND_ERRORS, text) == 0
    assert code_of("memcheck", sanitize.FOUND_ERRORS, text) == 1


def test_device_that_a_tool_does_not_know_is_its_limit() -> None:
    text = "========= Error: Device not supported\n"
    assert code_of("memcheck", 1, text) == TOOL_LIMIT


def test_calls_are_told_from_refused_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    case = smoke.CASES[0]

    def fail(text: str) -> None:
        def run(case: smoke.SmokeCase, device: str) -> str:
            raise RuntimeError(text)

        monkeypatch.setattr(smoke, "run", run)

    fail("a kernel must succeed, got cudaErrorLaunchOutOfResources:\ntoo many resources")
    assert smoke.refusal_of(case).endswith("cudaErrorLaunchOutOfResources: too many resources")
    fail("a kernel must succeed, got cudaErrorIllegalAddress: an illegal memory access")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        smoke.refusal_of(case)


# A compute-sanitizer that runs nothing and says of every call that it was refused; or its program.
FAKE = """\
#!{python}
import os, sys
print("========= COMPUTE-SANITIZER", flush=True)
open({called!r}, "a").write(" ".join(sys.argv[1:]) + "\\n")
print({text!r}, end="", flush=True)
sys.exit(1)
"""


@pytest.mark.parametrize(("alone", "code"), [(True, TOOL_LIMIT), (False, 1)])
def test_calls_run_without_the_tool_where_it_refused_some(
    alone: bool,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The fake tool is run; the calls by themselves, which need a GPU, are not."""
    tool, called = tmp_path / "compute-sanitizer", tmp_path / "called"
    text = SOME_REFUSED + CLEAN["memcheck"]
    tool.write_text(FAKE.format(python=sys.executable, called=str(called), text=text))
    tool.chmod(0o755)
    run = sanitize.run

    def run_one(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
        if command[0] == str(tool):
            return run(command, environment)
        assert command == [sys.executable, "-m", "benchmarks.gpu.smoke"]
        return (0 if alone else 1), ""

    monkeypatch.setattr(sanitize, "run", run_one)
    assert sanitize.main(["memcheck", str(tool)]) == code
    assert called.read_text().startswith("--tool memcheck --error-exitcode 9")
    output = capsys.readouterr().out
    assert ("cannot run 1 others" in output) is alone


def test_allocator_is_off_where_it_would_hide_what_a_tool_looks_for() -> None:
    caching = {tool: sanitize.environment_of(tool) for tool in TOOLS}
    off = [tool for tool in TOOLS if "PYTORCH_NO_CUDA_MEMORY_CACHING" in caching[tool]]
    assert off == ["memcheck", "initcheck"]


PRINTED = """\
a line of something else
{"device": "H100", "compute_capability": "9.0", "sm_count": 132, "mhz": 1980}
{"name": "flag_hop", "cycles": 750.5, "ns": 379.04, "least": 700.0, "most": 801.2, "what": "a flag"}
{"name": "max_active_clusters_16", "count": 7.000, "what": "clusters"}
{"name": "all_to_all_2", "failed": "a wait came to its end"}
"""


def test_microbenchmarks_are_read_by_name() -> None:
    found = micro.parse(PRINTED)
    assert found["facts"]["device"] == "H100"
    assert list(found["measures"]) == ["flag_hop", "max_active_clusters_16", "all_to_all_2"]
    assert found["measures"]["flag_hop"]["cycles"] == 750.5
    table = micro.table(found)
    assert "flag_hop" in table and "700.0 to 801.2" in table
    assert "count: 7.0" in table and "failed: a wait came to its end" in table


SOURCES = sorted(micro.HERE.glob("*.cu"))
# Below sm_90 there are no clusters; the rest is the same code for all.
COMPILED = [(path, "80") for path in SOURCES] + [
    (path, "90") for path in SOURCES if path.stem == "cluster"
]


@pytest.mark.parametrize(("source", "arch"), COMPILED, ids=lambda value: Path(value).stem)
def test_microbenchmarks_compile(source: Path, arch: str, tmp_path: Path) -> None:
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("needs nvcc")
    command = [nvcc, "-std=c++17", "-cubin", f"-arch=sm_{arch}", str(source)]
    cubin = tmp_path / "micro.cubin"
    subprocess.run([*command, "-o", str(cubin)], check=True)
    assert cubin.stat().st_size > 0


def test_sanitizer_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        sanitize.main(["memcheck", "/nowhere/compute-sanitizer"])
    assert stopped.value.code == 2
    assert "must be a program, got /nowhere/compute-sanitizer" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_smoke_calls_without_a_gpu_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert smoke.main() == 2
    assert capsys.readouterr().err.startswith("the smoke calls need a GPU: torch ")


def test_kernels_that_an_earlier_call_found_not_to_work_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Later calls run stepwise without a warning: the tool has not seen those kernels."""
    plan = "  layer 0 forward  D=13 H=250: stepwise (groups of blocks are off on this device: why)"
    monkeypatch.setattr(info, "explain_lines", lambda module, x: ["cuda", plan])
    assert smoke.refusal_of(smoke.CASES[0], "cpu") == plan.strip().replace("  ", " ")


def test_compiler_that_fails_ends_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(micro, "find_nvcc", lambda packages: "/bin/false")
    assert micro.main(["--arch", "90", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "nvcc must compile for sm_90, ended with 1\n"
