# SPDX-License-Identifier: BSD-3-Clause
"""The ops are registered once in a process, whatever is loaded, in whatever order."""

import shutil
from pathlib import Path

from kit.process import ROOT, run_python

LIBRARY = str(ROOT / "lstm_fused" / "liblstm_fused_ops.so")
TAKEN = "lstm_fused: the ops torch.ops.lstm_fused.* are registered already"
CALL = """
weights = [torch.zeros(12, 2), torch.zeros(12, 3)]
y, h_n, c_n = torch.ops.lstm_fused.lstm_inference(torch.zeros(1, 1, 2), None, None, weights, 1)
assert y.shape == (1, 1, 3)
"""


def test_the_library_and_then_the_package() -> None:
    """An ImportError, and not a fallback; the library's ops go on."""
    code = f"""
import torch
torch.ops.load_library({LIBRARY!r})
for attempt in range(2):
    try:
        import lstm_fused
    except ImportError as error:
        print(error)
{CALL}
"""
    first, second = run_python(code).splitlines()
    assert first == second
    assert first.startswith(TAKEN) and "`import lstm_fused`" in first


def test_the_package_and_then_the_library() -> None:
    """A sentence on the error channel, since nobody catches an exception of a library's start."""
    code = f"""
import torch, lstm_fused
torch.ops.load_library({LIBRARY!r})
lstm = lstm_fused.FusedLSTM(2, 3)
lstm(torch.zeros(1, 1, 2))[0].sum().backward()
assert lstm.weight_hh_l0.grad.shape == (12, 3)
{CALL}
"""
    assert run_python(code).startswith(TAKEN)


def test_two_copies_of_the_library(tmp_path: Path) -> None:
    copy = tmp_path / "another.so"
    shutil.copy(LIBRARY, copy)
    code = f"""
import torch
torch.ops.load_library({LIBRARY!r})
torch.ops.load_library({str(copy)!r})
torch.ops.load_library({LIBRARY!r})
{CALL}
"""
    printed = run_python(code)
    assert printed.startswith(TAKEN) and len(printed.splitlines()) == 1


def test_two_copies_of_the_package(tmp_path: Path) -> None:
    """The first copy's ops serve, whether the second's Python finds them or is refused."""
    shutil.copytree(ROOT / "lstm_fused", tmp_path / "copy" / "lstm_fused")
    code = f"""
import sys, warnings
import torch, lstm_fused
for name in [name for name in sys.modules if name.split(".")[0] == "lstm_fused"]:
    del sys.modules[name]
sys.path.insert(0, {str(tmp_path / "copy")!r})
with warnings.catch_warnings(action="ignore"):  # torch's, of fakes that are overridden
    try:
        import lstm_fused
        assert lstm_fused.__file__.startswith({str(tmp_path)!r})
        lstm_fused.FusedLSTM(2, 3)(torch.zeros(1, 1, 2))[0].sum().backward()
    except ImportError as error:
        assert str(error).startswith({TAKEN!r})
{CALL}
"""
    assert run_python(code) == ""


def test_ops_of_that_name_that_are_not_ours() -> None:
    """They count as kernels that do not load: a warning tells why, and torch operations run."""
    code = """
import torch
other = torch.library.Library("lstm_fused", "DEF")
other.define("other(Tensor x) -> Tensor")
import lstm_fused
assert not lstm_fused.build_info()["kernels"]
lstm_fused.FusedLSTM(2, 3)(torch.zeros(1, 1, 2))
"""
    assert TAKEN in run_python(code)


def test_the_package_is_imported_again() -> None:
    code = f"""
import sys, warnings
import torch, lstm_fused
for name in [name for name in sys.modules if name.split(".")[0] == "lstm_fused"]:
    del sys.modules[name]
with warnings.catch_warnings(action="ignore"):  # torch's, of ops that are overridden
    import lstm_fused
lstm_fused.FusedLSTM(2, 3)(torch.zeros(1, 1, 2))[0].sum().backward()
{CALL}
"""
    assert run_python(code) == ""
