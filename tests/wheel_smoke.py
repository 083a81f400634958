# SPDX-License-Identifier: BSD-3-Clause
"""Tries an installed wheel, in half a minute, with nothing but torch beside it::

    python -E tests/wheel_smoke.py

`make test-wheel` and cibuildwheel run it. -E leaves PYTHONPATH out, which may name a source tree.
"""

import ctypes
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from kit.cases import CORE, LayerCase, make_inputs
from kit.numeric import assert_bitwise_equal, assert_within_budget, differentiate
from kit.ours import assert_results, expected_of, run_ours
from kit.quantized import WEIGHTS, assert_close, make_quantized, run_quantized
from kit.settings import DTYPES, ISAS, use_isa

import lstm_fused

PACKAGE = Path(lstm_fused.__file__).resolve().parent


def the_wheel_is_what_is_imported() -> None:
    assert PACKAGE.parent.name in ("site-packages", "dist-packages"), PACKAGE
    assert metadata.version("lstm_fused") == lstm_fused.__version__
    assert lstm_fused.build_info()["kernels"] is True
    assert (PACKAGE / "py.typed").exists() and (PACKAGE / "include" / "lstm_fused.h").exists()


def results_and_gradients() -> None:
    """Every option, dtype and instruction set keeps the budget of nn.LSTM's own errors."""
    for isa in ISAS:
        with use_isa(isa):
            for dtype in DTYPES:
                for case in CORE:
                    typed = replace(case, dtype=dtype)
                    ours = run_ours(make_inputs(typed))
                    assert_results(typed, ours, expected_of(typed))


def compiled_in_one_graph() -> None:
    case = LayerCase(6, 3, 5, 19, num_layers=2, bidirectional=True, hx=False)
    expected = expected_of(case)
    inputs = expected.inputs
    module = lstm_fused.FusedLSTM(5, 19, num_layers=2, bidirectional=True)
    module.load_state_dict(inputs.weights)
    compiled: Any = torch.compile(module, fullgraph=True, dynamic=True)
    x = inputs.input.detach().requires_grad_()
    y, (h_n, c_n) = compiled(x)
    outputs = {"y": y, "h_n": h_n, "c_n": c_n}
    leaves = {"input": x, **dict(module.named_parameters())}
    assert_results(case, differentiate(outputs, leaves, inputs.grads), expected)


def steps_of_a_stream() -> None:
    """From Python, from a file, and by the C library that the wheel holds."""
    module = lstm_fused.FusedLSTM(5, 19, num_layers=2)
    theirs = module.to_torch()
    x = torch.randn(7, 2, 5)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.stream"
        lstm_fused.save_stream(module, path)
        stream, loaded = module.stream(2), lstm_fused.load_stream(path, batch_size=2)
        y = torch.stack([stream.step(row) for row in x])
        assert_bitwise_equal(torch.stack([loaded.step(row) for row in x]), y)
        assert_bitwise_equal(run_in_c(path, x, y.shape), y)
        rival, _ = theirs(x)
        truth, _ = theirs.double()(x.double())
    assert_within_budget("y", y, rival, truth, torch.float32)


def run_in_c(path: str, x: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    library = ctypes.CDLL(str(PACKAGE / "lib" / "liblstm_fused.so"))
    stream, y = ctypes.c_void_p(), torch.empty(shape)
    steps, rows = map(ctypes.c_int64, x.shape[:2])
    assert library.lstm_fused_open(path.encode(), rows, ctypes.byref(stream)) == 0
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, y)]
    assert library.lstm_fused_run(stream, steps, *pointers) == 0
    library.lstm_fused_destroy(stream)
    return y


def quantized_weights() -> None:
    case = LayerCase(6, 3, 5, 20, num_layers=2, bidirectional=True, reset=0.3)
    for weights in WEIGHTS:
        inputs = make_inputs(case)
        module = make_quantized(inputs, weights)
        assert_close(module, inputs, run_quantized(module, inputs))


def the_command_runs() -> None:
    for words, wanted in (((), "instruction set"), (("explain", "--shape", "T=9,N=2,H=16"), "T=9")):
        done = subprocess.run(
            [sys.executable, "-I", "-m", "lstm_fused", *words],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 and wanted in done.stdout, (done.stdout, done.stderr)
        print(done.stdout, end="")


def main() -> None:
    torch.manual_seed(0)
    for check in (
        the_wheel_is_what_is_imported,
        results_and_gradients,
        compiled_in_one_graph,
        steps_of_a_stream,
        quantized_weights,
        the_command_runs,
    ):
        check()
        print(f"passed: {check.__name__.replace('_', ' ')}", flush=True)


if __name__ == "__main__":
    main()
