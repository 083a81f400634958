# SPDX-License-Identifier: BSD-3-Clause
"""What is told where the compiled part does not load, and the wish to do without it."""

import shutil
import sysconfig
from pathlib import Path

import pytest
from kit.process import ROOT, run_python

from lstm_fused._ops.load_problem import explain_failure

MISSING = ModuleNotFoundError("No module named 'lstm_fused._C'")
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
COMPUTES = """
lstm = lstm_fused.FusedLSTM(2, 3)
theirs = lstm.to_torch()
x = torch.randn(4, 2, 2)
torch.testing.assert_close(lstm(x)[0], theirs(x)[0])
lstm(x)[0].sum().backward()
"""


@pytest.mark.parametrize(
    ("error", "version", "files", "parts"),
    [
        (ImportError("anything"), "2.10.1+cu128", (SUFFIX,), ("2.10.1+cu128 is too old", "2.11")),
        (ImportError("anything"), "1.13", (SUFFIX,), ("1.13 is too old",)),
        (MISSING, "2.13.0", (), ("were not built", "pip install --no-build-isolation .")),
        (
            MISSING,
            "2.13.0",
            (".cpython-27-x86_64.so",),
            (".cpython-27-x86_64.so", SUFFIX, "another Python", "pip install"),
        ),
        (
            ImportError("libstdc++.so.6: version `GLIBCXX_3.4.99' not found (required by a)"),
            "2.13.0",
            (SUFFIX,),
            ("GLIBCXX_3.4.99 is missing", "newer libstdc++"),
        ),
        (
            ImportError("_C.so: undefined symbol: aoti_torch_new"),
            "2.13.0",
            (SUFFIX,),
            ("do not fit torch 2.13.0", "undefined symbol: aoti_torch_new", "pip install"),
        ),
        (ImportError("no idea"), "3.0.0", (SUFFIX,), ("no idea", "pip install")),
    ],
)
def test_the_cause_and_the_remedy_are_named(
    error: ImportError, version: str, files: tuple[str, ...], parts: tuple[str, ...], tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / f"_C{name}").touch()
    text = explain_failure(error, version, tmp_path)
    assert all(part in text for part in parts), text
    assert "\n" not in text


def copy_of_the_package(folder: Path) -> Path:
    ignored = shutil.ignore_patterns("_C*.so", "__pycache__")
    shutil.copytree(ROOT / "lstm_fused", folder / "lstm_fused", ignore=ignored)
    return folder


@pytest.mark.parametrize("file", ["", "_C.cpython-27-x86_64.so", f"_C{SUFFIX}"])
def test_a_broken_installation_warns_once_and_computes(file: str, tmp_path: Path) -> None:
    folder = copy_of_the_package(tmp_path)
    if file:
        (folder / "lstm_fused" / file).write_bytes(b"no library")
    code = f"""
import sys, warnings
import torch
# Neither the repository nor what an editable installation leads to.
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path.insert(0, {str(folder)!r})
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import lstm_fused
assert lstm_fused.__file__.startswith({str(folder)!r})
(warning,) = [str(w.message) for w in caught if "lstm_fused" in str(w.message)]
assert "did not load" in warning and "pip install" in warning, warning
{COMPUTES}
"""
    assert run_python(code) == ""


def test_the_fallback_may_be_asked_for() -> None:
    code = f"""
import warnings
warnings.simplefilter("error")
import torch, lstm_fused
assert lstm_fused.build_info()["kernels"] is False
assert "LSTM_FUSED_FALLBACK=1" in lstm_fused.build_info()["cuda_problem"]
{COMPUTES}
"""
    assert run_python(code, LSTM_FUSED_FALLBACK="1") == ""
    kernels = "import lstm_fused; print(lstm_fused.build_info()['kernels'])"
    assert run_python(kernels, LSTM_FUSED_FALLBACK="0") == "True\n"
