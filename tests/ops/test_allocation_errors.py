# SPDX-License-Identifier: BSD-3-Clause
"""Memory that runs out: in torch's own words and types, which searches for a batch size go by."""

from pathlib import Path
from typing import Any

import pytest
import torch
from kit.process import ROOT, run_python
from torch import Tensor

from lstm_fused import FusedLSTM
from lstm_fused._ops import native

TORCHS_WORDS = "DefaultCPUAllocator: can't allocate memory: you tried to allocate"
HUGE = (2**20, 2**20)  # T and N of an input that is one element, expanded


def huge_input(features: int) -> Tensor:
    return torch.zeros(1, 1, 1).expand(*HUGE, features)


@pytest.mark.parametrize("grad", [False, True])
def test_the_error_is_that_of_torch(grad: bool) -> None:
    """The allocation that fails is a copy of the input, which takes 16 TiB."""
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError) as ours:
        FusedLSTM(4, 8)(huge_input(4))
    with pytest.raises(RuntimeError) as torchs:
        torch.empty(*HUGE, 4)
    assert type(ours.value) is type(torchs.value)
    assert ours.value.args == torchs.value.args
    assert f"{TORCHS_WORDS} {2**40 * 16} bytes" in str(ours.value)


def test_the_type_is_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed allocation is tried again by torch.empty, and its error comes through the op."""
    asked: list[Any] = []

    def empty(*arguments: Any, **options: Any) -> Tensor:
        asked.append((arguments, options))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16 TiB.")

    x = huge_input(4)
    weights = [torch.zeros(32, 4), torch.zeros(32, 8)]
    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(torch.OutOfMemoryError, match=r"^CUDA out of memory\. Tried to allocate 16"):
        native.lstm_inference_op(x, None, None, weights, 1)
    assert asked == [(((*HUGE, 4),), {"dtype": torch.float32, "device": "cpu"})]


def test_memory_that_is_back_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch gives the memory when it is asked again, the error says what did not go."""
    module, x = FusedLSTM(4, 8), huge_input(4)
    monkeypatch.setattr(torch, "empty", lambda *arguments, **options: None)
    with torch.no_grad(), pytest.raises(RuntimeError, match=TORCHS_WORDS):
        module(x)


# Gives a process more and more memory, until a training step goes through. Each size but the last
# stops at another allocation: of torch, of the kernels, of a thread.
LIMITED = """
import resource
import torch
from lstm_fused import FusedLSTM
from lstm_fused._ops import native

torch.set_num_threads({threads})
module = FusedLSTM(256, 512, bidirectional=True, **{options})
x = torch.randn(40, 48, 256, requires_grad=True)
lengths = torch.arange(48) % 40 + 1

def step():
    y, _ = module(x, lengths=lengths)
    y.sum().backward()

torch.ones(2_000_000).sin().sum()  # starts torch's threads
small = FusedLSTM(64, 64)
small(torch.randn(20, 32, 64))[0].sum().backward()
pages = int(open("/proc/self/statm").read().split()[0])
errors, most = [], resource.getrlimit(resource.RLIMIT_AS)[1]
for mebibytes in range(8, 1024, 8):
    limit = pages * resource.getpagesize() + (mebibytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    try:
        step()
        break
    except RuntimeError as error:
        errors.append(str(error))
        module.zero_grad()
        x.grad = None
resource.setrlimit(resource.RLIMIT_AS, (most, most))
assert mebibytes < 1000, mebibytes
for error in sorted(set(errors)):
    print(error)
"""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("options", [{}, {"proj_size": 128}], ids=["plain", "projection"])
def test_every_allocation_that_fails_is_told_in_torchs_words(
    threads: int, options: dict[str, int]
) -> None:
    errors = run_python(LIMITED.format(threads=threads, options=options)).splitlines()
    assert len(errors) >= 4, errors
    assert all(TORCHS_WORDS in error for error in errors), errors
    assert any("in lstm_fused" in error for error in errors), "no buffer of the kernels failed"


# Opens a stream's file with more and more memory.
LIMITED_STREAM = """
import ctypes
import resource
import torch
from lstm_fused import FusedLSTM, save_stream
from lstm_fused._ops import native

save_stream(FusedLSTM(512, 1024, num_layers=2), {path!r}, weights=torch.{weights})
data = open({path!r}, "rb").read()
torch.ones(2_000_000).sin().sum()  # starts torch's threads
ctypes.CDLL(None).malloc_trim(0)  # what the heap has left over would serve
pages = int(open("/proc/self/statm").read().split()[0])
errors, most = set(), resource.getrlimit(resource.RLIMIT_AS)[1]
for mebibytes in range(0, 1024, 16):
    limit = pages * resource.getpagesize() + (mebibytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    try:
        native.compiled.Stream.open(data, 64).clone()
        break
    except RuntimeError as error:
        errors.add(str(error))
resource.setrlimit(resource.RLIMIT_AS, (most, most))
assert mebibytes < 1000, mebibytes
for error in sorted(errors):
    print(error)
"""


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_memory_for_a_stream_of_a_file(weights: str, tmp_path: Path) -> None:
    """Its containers' allocations too, which fail by std::bad_alloc."""
    code = LIMITED_STREAM.format(path=str(tmp_path / "model.stream"), weights=weights)
    errors = run_python(code).splitlines()
    assert errors
    assert all(TORCHS_WORDS in error for error in errors), errors
    assert any("too many bytes, in lstm_fused" in error for error in errors), errors


def test_a_program_without_python_is_told_too() -> None:
    code = f"""
import torch
torch.ops.load_library({str(ROOT / "lstm_fused" / "liblstm_fused_ops.so")!r})
x = torch.zeros(1, 1, 1).expand({HUGE[0]}, {HUGE[1]}, 4)
try:
    torch.ops.lstm_fused.lstm_inference(
        x, None, None, [torch.zeros(32, 4), torch.zeros(32, 8)], 1
    )
except RuntimeError as error:
    print(error)
"""
    assert f"{TORCHS_WORDS} {2**40 * 16} bytes" in run_python(code)
