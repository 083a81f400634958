# SPDX-License-Identifier: BSD-3-Clause
"""What the package says of CUDA where there is none."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import lstm_fused
from lstm_fused import FusedLSTM
from lstm_fused._ops import native
from lstm_fused.info import cuda_plan_text

A100 = {
    **{"major": 8, "minor": 0, "sm_count": 108, "shared_per_sm": 167936},
    **{"shared_per_block": 166912, "registers_per_sm": 65536, "max_threads_per_sm": 2048},
    **{"l2_bytes": 40 << 20},
}

without_cuda_kernels = pytest.mark.skipif(
    native.compiled_cuda is not None, reason="this installation has CUDA kernels"
)


@without_cuda_kernels
def test_cuda_tensors_without_kernels_say_what_is_missing() -> None:
    message = r"input is on cuda:0, but this installation has no CUDA kernels .*LSTM_FUSED_CUDA=1"
    with FakeTensorMode():

        def empty(*shape: int) -> torch.Tensor:
            return torch.empty(shape, device="cuda")

        weights = [empty(20, 3), empty(20, 5), empty(20), empty(20)]
        hx = (empty(1, 2, 5), empty(1, 2, 5))
        with pytest.raises(RuntimeError, match=message):
            lstm_fused.functional.lstm(empty(4, 2, 3), hx, weights)


@without_cuda_kernels
def test_build_info_says_why_there_are_no_cuda_kernels() -> None:
    info = lstm_fused.build_info()
    assert info["cuda"] is False
    assert info["cuda_problem"]


def test_rocm_runs_on_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "compiled_cuda", None)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    native.check_cuda_kernels(torch.device("cuda"))


def test_packed_sequences_are_padded_where_kernels_do_not_take_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = FusedLSTM(3, 5, 2, bidirectional=True, dtype=torch.float64)
    sequences = [torch.randn(n, 3, dtype=torch.float64) for n in (2, 4, 1)]
    packed = nn.utils.rnn.pack_sequence(sequences, enforce_sorted=False)
    expected = module(packed, return_cell_states=True)
    monkeypatch.setattr(native, "takes_batch_sizes", lambda device: False)
    monkeypatch.setattr(native, "saves_packed_rows", lambda device: False)
    torch.testing.assert_close(module(packed, return_cell_states=True), expected)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_cuda_plans_are_shown_without_a_gpu(backward: bool) -> None:
    text = cuda_plan_text(100, 16, 64, 4096, 0, 2, "bfloat16", backward, A100)
    assert text.startswith("stepwise, 1 GEMM and 1 kernel a step for both directions")
    assert "bfloat16 products" in text


def test_cuda_plans_need_all_facts() -> None:
    facts = {name: value for name, value in A100.items() if name != "sm_count"}
    with pytest.raises(RuntimeError, match="device facts must hold sm_count"):
        cuda_plan_text(100, 16, 64, 128, 0, 1, "float32", False, facts)


def test_cuda_plans_say_what_is_off_on_the_device() -> None:
    shape = (100, 16, 64, 64, 0, 1, "bfloat16", False, A100)
    assert cuda_plan_text(*shape).startswith("persistent, bfloat16, a block of ")
    text = cuda_plan_text(*shape, refusals={"cta": "it was wrong", "group": ""})
    assert text.startswith("stepwise, 1 GEMM and 1 kernel a step")
    assert text.endswith("(kernels of one block are off on this device: it was wrong)")
