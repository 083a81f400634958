# SPDX-License-Identifier: BSD-3-Clause
"""What is told where the compiled part does not load, and the wish to do without it."""

import platform
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kit.process import ROOT, run_python

from lstm_fused._ops.load_problem import explain_failure

MISSING = ModuleNotFoundError("No module named 'lstm_fused._C'")
PYTHON = ".".join(platform.python_version_tuple()[:2])
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


def test_a_checkout_that_hides_the_installed_package_is_named(tmp_path: Path) -> None:
    package = tmp_path / "lstm_fused"
    package.mkdir()
    assert "another folder" not in explain_failure(MISSING, "2.13.0", package)
    (tmp_path / "setup.py").touch()
    text = explain_failure(MISSING, "2.13.0", package)
    assert f"not built in {tmp_path}" in text and "run from another folder" in text, text
    assert "`pip install --no-build-isolation -e .`" in text and "\n" not in text, text
    (package / f"_C{SUFFIX}").touch()
    assert "another folder" not in explain_failure(MISSING, "2.13.0", package)


def copy_of_the_package(folder: Path) -> Path:
    ignored = shutil.ignore_patterns("_C*.so", "__pycache__")
    shutil.copytree(ROOT / "lstm_fused", folder / "lstm_fused", ignore=ignored)
    return folder


def compile_library(out: Path, source: str, *flags: str) -> None:
    code = out.with_suffix(".c")
    code.write_text(source)
    command = ["gcc", "-shared", "-fPIC", "-o", str(out), str(code), *flags]
    subprocess.run(command, check=True)


def no_library(folder: Path) -> None:
    (folder / f"_C{SUFFIX}").write_bytes(b"no library")


def another_python(folder: Path) -> None:
    (folder / "_C.cpython-27-x86_64.so").write_bytes(b"no library")


def another_torch(folder: Path) -> None:
    """As under a torch that lacks a function which the build has found."""
    call = "void aoti_torch_none(void); void PyInit__C(void) { aoti_torch_none(); }"
    compile_library(folder / f"_C{SUFFIX}", call)


def newer_libstdcxx(folder: Path) -> None:
    """As built by a compiler whose libstdc++ has a symbol that this machine's lacks."""
    versions = folder / "versions"
    versions.write_text("GLIBCXX_3.4.99 { newer; };")
    library = folder / "libstdc++.so.6"
    named = f"-Wl,-soname,{library.name},--version-script,{versions}"
    compile_library(library, "void newer(void) {}", named)
    call = "void newer(void); void PyInit__C(void) { newer(); }"
    compile_library(folder / f"_C{SUFFIX}", call, str(library))
    library.unlink()


@pytest.mark.parametrize(
    ("install", "torch_version", "parts"),
    [
        (None, None, ("they were not built", "pip install")),
        (no_library, None, ("pip install",)),
        (another_python, None, (f"another Python (.cpython-27-x86_64.so, and Python {PYTHON}",)),
        (another_torch, None, (f"do not fit torch {torch.__version__}", "aoti_torch_none")),
        (newer_libstdcxx, None, ("GLIBCXX_3.4.99 is missing", "install a newer libstdc++")),
        (another_torch, "2.10.0", ("torch 2.10.0 is too old: install torch >= 2.11",)),
        (another_torch, "3.1.0", ("do not fit torch 3.1.0", "in an environment that holds this")),
    ],
)
def test_a_broken_installation_warns_once_and_computes(
    install: Callable[[Path], None] | None,
    torch_version: str | None,
    parts: tuple[str, ...],
    tmp_path: Path,
) -> None:
    folder = copy_of_the_package(tmp_path)
    if install is not None:
        install(folder / "lstm_fused")
    code = f"""
import sys, warnings
import torch
torch.__version__ = {torch_version!r} or torch.__version__
# Neither the repository nor what an editable installation leads to.
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path.insert(0, {str(folder)!r})
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import lstm_fused
assert lstm_fused.__file__.startswith({str(folder)!r})
(warning,) = [str(w.message) for w in caught if "lstm_fused" in str(w.message)]
assert "did not load" in warning and "\\n" not in warning, warning
assert all(part in warning for part in {parts!r}), warning
assert not lstm_fused.build_info()["kernels"]
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
