# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA module under a torch for CUDA, as far as no GPU is needed: it loads, its ops are there,
and calls have the right shapes. Skipped without it; `make test-versions` builds and tests it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import lstm_fused
from lstm_fused import FusedLSTM
from lstm_fused._ops import native
from lstm_fused._ops.fakes import FAKES

if os.environ.get("LSTM_FUSED_NEED_CUDA_MODULE") != "1" and native.compiled_cuda is None:
    pytest.skip(f"needs the CUDA kernels: {native.cuda_problem}", allow_module_level=True)

OPS = (
    *("lstm_forward", "lstm_backward", "lstm_sample_gradients"),
    *("lstm_options_forward", "lstm_options_backward"),
)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def test_module_is_of_torchs_cuda() -> None:
    info = lstm_fused.build_info()
    assert info["cuda"] is True, info["cuda_problem"]
    assert torch.version.cuda is not None
    assert info["cuda_version"] // 1000 == int(torch.version.cuda.split(".")[0])
    assert info["cuda_architectures"]


def test_every_symbol_of_the_module_is_found(tmp_path: Path) -> None:
    """The loader looks at functions when they are first called, unless it is told to at once."""
    package = Path(lstm_fused.__file__).parents[1]
    environment = {**os.environ, "LD_BIND_NOW": "1", "PYTHONPATH": str(package)}
    code = "import lstm_fused; raise SystemExit(not lstm_fused.build_info()['cuda'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("op", OPS)
def test_ops_have_kernels_for_cuda_tensors(op: str) -> None:
    assert op in FAKES
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lstm_fused::{op}", "CUDA")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_module_says_so() -> None:
    with pytest.raises(RuntimeError, match=r"cuda\w+ must succeed, got cudaError"):
        native.compiled_cuda.device_facts(0)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, device="cuda", dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("P", [0, 3])
def test_call_of_fake_cuda_tensors_has_shapes_and_device(P: int, dtype: torch.dtype) -> None:
    with FakeTensorMode():
        options = {"num_layers": 2, "bidirectional": True, "proj_size": P}
        module = FusedLSTM(4, 5, device="cuda", dtype=dtype, **options)
        lengths = torch.empty(2, dtype=torch.int64, device="cuda")
        x = empty(7, 2, 4, dtype=dtype)
        y, (h_n, c_n), cells = module(x, lengths=lengths, return_cell_states=True)
    assert y.requires_grad
    features = P or 5
    for tensor, shape in (
        *((y, (7, 2, 2 * features)), (h_n, (4, 2, features))),
        *((c_n, (4, 2, 5)), (cells, (7, 2, 10))),
    ):
        assert (tensor.shape, tensor.dtype) == (shape, dtype)
        assert tensor.device == torch.device("cuda:0")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_fake_cuda_tensors_have_shapes_and_device(dtype: torch.dtype) -> None:
    """By the ops: torch's autograd wants a GPU, even for tensors that are not there."""
    with FakeTensorMode():
        states = [empty(1, 6, 5, dtype=dtype) for _ in range(2)]
        weights = [empty(*shape, dtype=dtype) for shape in ((20, 4), (20, 5), (20,), (20,))]
        layer = (empty(7, 6, 4, dtype=dtype), *states, weights)
        masks = (None, None, None)
        ops = torch.ops.lstm_fused
        y, h_n, c_n, every_c, gates, cells = ops.lstm_forward(*layer, *masks, True, True, False)
        given = (y, h_n, c_n, every_c, *layer, *masks, y, gates, cells)
        found = ops.lstm_backward(*given, True, True, True)
        samples = ops.lstm_sample_gradients(*given, True, True, 3)
    for x, h_0, c_0, of_weights in (found, samples):
        for grad, tensor in zip((x, h_0, c_0), layer, strict=False):
            assert (grad.shape, grad.dtype, grad.device) == (tensor.shape, dtype, y.device)
        assert all(grad.device == y.device for grad in of_weights)
    assert [grad.shape for grad in found[3]] == [weight.shape for weight in weights]
    assert [grad.shape for grad in samples[3]] == [(3, *weight.shape) for weight in weights]


def test_fake_cuda_tensors_take_no_packed_rows() -> None:
    """The CUDA ops take padded sequences; functional.lstm pads for them."""
    with FakeTensorMode():
        weights = [empty(20, 3), empty(20, 5)]
        states = (empty(1, 2, 5), empty(1, 2, 5))
        with pytest.raises(RuntimeError, match="padded sequences with lengths, got batch_sizes"):
            torch.ops.lstm_fused.lstm_forward(
                *(empty(6, 3), *states, weights),
                *(None, torch.empty(4, dtype=torch.int64), None, True, False),
            )


def test_captured_graph_holds_one_op_a_layer() -> None:
    """A program for a GPU is exported where there is none."""
    with FakeTensorMode():
        module = FusedLSTM(4, 5, 2, device="cuda")
        x = empty(7, 2, 4)
        program = torch.export.export(module, (x,))
    calls = [str(node.target) for node in program.graph.nodes if "lstm_fused" in str(node.target)]
    assert calls == ["lstm_fused.lstm_forward.default"] * 2
