# SPDX-License-Identifier: BSD-3-Clause
"""`python -m lstm_fused` and its command `explain`."""

import platform

import pytest
import torch
from kit.process import run_python

import lstm_fused
from lstm_fused import FusedLSTM
from lstm_fused.__main__ import main
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
