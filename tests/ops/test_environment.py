# SPDX-License-Identifier: BSD-3-Clause
"""The process's environment: read at import, and not in a call."""

import re
from pathlib import Path

import pytest
from kit.process import run_python
from kit.settings import ISAS

import lstm_fused
from lstm_fused._ops import native

ROOT = Path(lstm_fused.__file__).resolve().parents[1]

# Threads that call, while another moves the array that points at the environment's strings, and
# fills what it leaves.
BESIDE_ENVIRONMENT = """
import os, random, threading, time
import torch
from lstm_fused import FusedLSTM
from lstm_fused._ops import native

torch.set_num_threads(1)
module, x, state = FusedLSTM(4, 8), torch.randn(2, 1, 4), torch.zeros(1, 1, 8)
forward = (x, state, state, list(module.parameters()), None, None, None, True, False)
saved = native.lstm_forward_op(*forward)
y, gates, cells = saved[0], saved[4], saved[5]
stop = time.monotonic() + 4

def call():
    with torch.no_grad():
        while time.monotonic() < stop:
            for _ in range(100):
                module(x)
            native.lstm_forward_op(*forward)
            native.lstm_backward_op(
                y, None, None, None, *forward[:7], y, gates, cells, True, True, True
            )

threads = [threading.Thread(target=call) for _ in range(2)]
for thread in threads:
    thread.start()
while time.monotonic() < stop:
    count = random.randrange(100, 700)
    for i in range(count):
        os.environ[f"LSTM_TEST_{i}"] = "x"
        if i % 8 == 0:
            garbage = [b"\\xff" * 8 * (count + more) for more in range(0, 40, 2)]
    for i in range(count):
        del os.environ[f"LSTM_TEST_{i}"]
for thread in threads:
    thread.join()
print("survived")
"""


def test_calls_beside_a_thread_that_writes_the_environment() -> None:
    assert run_python(BESIDE_ENVIRONMENT) == "survived\n"


def test_only_settings_read_the_environment() -> None:
    """Nothing is read that another thread may change: the locale, the time zone, the directory."""
    unsafe = r"\b(secure_)?getenv\b|\benviron\b|\bsetlocale\b|\bstrerror\b|\blocaltime\b|\bgetcwd\b"
    found = {
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "csrc").rglob("*.*"))
        if re.search(unsafe, re.sub(r"//.*", "", path.read_text()))
    }
    assert found == {"csrc/common/setting.cpp"}
    in_python = [
        path.relative_to(ROOT / "lstm_fused").as_posix()
        for path in sorted((ROOT / "lstm_fused").rglob("*.py"))
        if re.search(r"\benviron\b|\bgetenv\b", path.read_text())
    ]
    # At import; and for a command's report, which is its process's only work.
    assert in_python == ["_command/environment.py", "_ops/native.py", "_torch/fork.py"]


MAX_ISA_ERROR = "LSTM_FUSED_MAX_ISA must be baseline, avx2, avx512 or avx512_bf16, got avx1024"


@pytest.mark.parametrize("isa", ["", *ISAS])
def test_the_instruction_set_of_the_environment(isa: str) -> None:
    code = "import lstm_fused; print(lstm_fused.build_info()['isa'])"
    assert run_python(code, LSTM_FUSED_MAX_ISA=isa).strip() == (isa or ISAS[-1])


def test_unknown_instruction_set_is_refused() -> None:
    """At the first use, by every op and in every library, with the variable's name."""
    code = """
import torch, lstm_fused
from lstm_fused import FusedLSTM
for call in (lambda: FusedLSTM(2, 3)(torch.zeros(1, 1, 2)), lstm_fused.build_info):
    try:
        call()
    except RuntimeError as error:
        print(error)
"""
    assert run_python(code, LSTM_FUSED_MAX_ISA="avx1024") == 2 * f"{MAX_ISA_ERROR}\n"
    assert native.compiled is not None
    with pytest.raises(RuntimeError, match=MAX_ISA_ERROR):
        native.compiled.set_max_isa("avx1024")


def test_unknown_instruction_set_is_refused_without_python() -> None:
    library = ROOT / "lstm_fused" / "liblstm_fused_ops.so"
    code = f"""
import torch
torch.ops.load_library({str(library)!r})
try:
    weights = [torch.zeros(12, 2), torch.zeros(12, 3)]
    torch.ops.lstm_fused.lstm_inference(torch.zeros(1, 1, 2), None, None, weights, 1)
except RuntimeError as error:
    print(error)
"""
    assert run_python(code, LSTM_FUSED_MAX_ISA="avx1024") == f"{MAX_ISA_ERROR}\n"


def test_unknown_cuda_variant_is_refused() -> None:
    code = """
from lstm_fused.info import cuda_plan_text
facts = dict(major=9, minor=0, sm_count=132, shared_per_sm=233472, shared_per_block=232448,
             registers_per_sm=65536, max_threads_per_sm=2048, l2_bytes=52428800)
try:
    cuda_plan_text(4, 4, 4, 4, 0, 1, "float32", False, facts)
except RuntimeError as error:
    print(error)
"""
    expected = "LSTM_FUSED_CUDA_VARIANT must be auto, stepwise or persistent, got cudnn\n"
    assert run_python(code, LSTM_FUSED_CUDA_VARIANT="cudnn") == expected
