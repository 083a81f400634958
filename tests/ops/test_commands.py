# SPDX-License-Identifier: BSD-3-Clause
"""`python -m lstm_fused` and its command `explain`."""

import platform
from typing import Any

import pytest
import torch
from kit.process import run_python

import lstm_fused
from lstm_fused import FusedLSTM
from lstm_fused.__main__ import main
from lstm_fused._command import environment
from lstm_fused._ops import native


def test_the_environment_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LSTM_FUSED_MAX_ISA", "avx2")
    assert main([]) == 0
    text = capsys.readouterr().out
    info = lstm_fused.build_info()
    assert f"lstm_fused {lstm_fused.__version__}, torch {torch.__version__}" in text
    assert platform.python_version() in text and f"{info['threads']} thread(s)" in text
    assert f"instruction set {info['isa']}" in text
    assert f"instruction sets here: {', '.join(info['isas'])}" in text
    assert "LSTM_FUSED_MAX_ISA=avx2" in text
    assert "cpu: " in text or "cuda:0: " in text


def test_missing_kernels_are_told_with_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "compiled", None)
    assert main([]) == 1
    assert "the compiled kernels did not load" in capsys.readouterr().out


def test_it_runs_as_a_program() -> None:
    code = 'import runpy, sys; sys.argv = ["lstm_fused"]; runpy.run_module("lstm_fused")'
    assert run_python(code) == ""  # not run as a program
    code = code.replace('"lstm_fused")', '"lstm_fused", run_name="__main__")')
    with pytest.raises(AssertionError, match="status"):
        run_python(code.replace('["lstm_fused"]', '["lstm_fused", "dance"]'))


@pytest.mark.parametrize(
    ("arguments", "module", "shape"),
    [
        (["--shape", "T=100,N=1,H=64"], {"input_size": 64, "hidden_size": 64}, (100, 1, 64)),
        (
            ["--shape", "T=7,N=3,D=5,H=20,P=4", "--layers", "2", "--bidirectional"],
            {
                **{"input_size": 5, "hidden_size": 20, "proj_size": 4},
                **{"num_layers": 2, "bidirectional": True},
            },
            (7, 3, 5),
        ),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_explain_tells_what_a_call_would(
    arguments: list[str],
    module: dict[str, int],
    shape: tuple[int, int, int],
    dtype: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["explain", *arguments, "--dtype", dtype]) == 0
    text = capsys.readouterr().out
    kind = getattr(torch, dtype)
    assert (
        text
        == lstm_fused.explain(FusedLSTM(**module, dtype=kind), torch.zeros(shape).to(kind)) + "\n"
    )


def test_explain_takes_a_number_of_threads(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    try:
        assert main(["explain", "--shape", "T=100,N=64,H=256", "--threads", "3"]) == 0
    finally:
        torch.set_num_threads(before)
    assert "threads=3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ("T=100,N=1", "H must be given"),
        ("T=100,N=1,H=x", "got 'H=x'"),
        ("T=100,N=1,H=3,H=4", "got 'H=4'"),
        ("Q=1", "got 'Q=1'"),
        ("", "got ''"),
    ],
)
def test_faulty_shapes_are_refused(
    shape: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["explain", "--shape", shape])
    assert stopped.value.code == 2
    assert text in capsys.readouterr().err


def test_sizes_that_no_lstm_has_end_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--shape", "T=3,N=1,H=4,P=4"]) == 2
    assert "proj_size has to be smaller than hidden_size" in capsys.readouterr().err


COMMANDS = (["check"], ["explain", "--shape", "T=3,N=1,H=4"])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
@pytest.mark.parametrize("device", ["nonsense", "cuda:x", "cuda:-2", "", "meta", "mps"])
def test_devices_that_no_kernels_are_for_are_refused(
    device: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--device", device])
    assert stopped.value.code == 2
    assert f"argument --device: wanted cpu, cuda or cuda:0, got {device!r}" in (
        capsys.readouterr().err
    )


@pytest.mark.skipif(torch.version.cuda is not None, reason="of a torch without CUDA")
def test_devices_that_torch_cannot_have_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    statuses = [main([*command, "--device", "cuda:1"]) for command in COMMANDS]
    reason = f"torch {torch.__version__} is no CUDA build\n"
    assert statuses == [1, 2]
    found = capsys.readouterr()
    assert found.out.endswith(f"no CUDA kernels: {reason}")
    assert found.err == f"no device cuda:1: {reason}"


@pytest.mark.parametrize(
    ("count", "device", "text"),
    [
        (0, "cuda", "no device cuda: torch finds 0 CUDA device(s)"),
        (2, "cuda:2", "no device cuda:2: torch finds 2 CUDA device(s), numbered from 0"),
    ],
)
def test_devices_that_are_not_there_are_told(
    count: int,
    device: str,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Under a torch for CUDA, with the kernels, on a machine of fewer devices."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(native, "compiled_cuda", object())
    monkeypatch.setattr(environment, "build_info", fake_build_info)
    assert main(["explain", "--shape", "T=3,N=1,H=4", "--device", device]) == 2
    assert capsys.readouterr().err == f"{text}\n"
    assert main(["check", "--device", device]) == 1
    assert capsys.readouterr().out.endswith(f"\n{text}\n")


def fake_build_info() -> dict[str, Any]:
    """That of an installation with CUDA kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "compiled_cuda", None)
        return {**lstm_fused.build_info(), "cuda_version": 13010, "cuda_architectures": ["sm_90"]}
