# SPDX-License-Identifier: BSD-3-Clause
"""How the build decides on the CUDA kernels: which nvcc will do, and for which architectures."""

import re
from pathlib import Path

import pytest

from tools import extensions, other_torch
from tools.cuda_report.cubins import TARGETS
from tools.extensions import Torch, cuda_definitions
from tools.nvcc import nvcc_release, torch_mismatch

ROOT = Path(__file__).resolve().parents[2]
CPU = Torch(Path("torch"), "2.13.0+cpu", None, has_cuda=False)
CUDA_12 = Torch(Path("torch"), "2.11.0+cu126", "12.6", has_cuda=True)
CUDA_13 = Torch(Path("torch"), "2.11.0", "13.0", has_cuda=True)


@pytest.fixture
def nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An nvcc of 13.1 that is found first; all it does is to name its release."""
    path = tmp_path / "bin" / "nvcc"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.1, V13.1.2'\n")
    path.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("LSTM_FUSED_CUDA", raising=False)
    monkeypatch.delenv("LSTM_FUSED_CUDA_ARCHS", raising=False)
    return path


def test_nvcc_names_its_release(nvcc: Path) -> None:
    assert nvcc_release(str(nvcc)) == (13, 1)
    nvcc.write_text("#!/bin/sh\necho nothing\n")
    assert nvcc_release(str(nvcc)) is None


@pytest.mark.parametrize(
    ("release", "cuda", "fits"),
    [
        *(((13, 1), "13.0", True), ((12, 4), "12.9", True), ((13, 1), None, True)),
        *(((13, 0), "12.9", False), ((12, 9), "13.0", False), ((12, 4), "13", False)),
    ],
)
def test_major_versions_of_nvcc_and_torch_must_agree(
    release: tuple[int, int], cuda: str | None, fits: bool
) -> None:
    assert (torch_mismatch("nvcc", release, "2.11.0", cuda) == "") is fits


def test_mismatch_says_which_nvcc_is_wanted() -> None:
    text = torch_mismatch("/usr/bin/nvcc", (13, 1), "2.11.0+cu126", "12.6")
    assert text == (
        "the CUDA kernels for torch 2.11.0+cu126, a build for CUDA 12.6, need nvcc 12.x, got nvcc "
        "13.1 (/usr/bin/nvcc): set CUDA_HOME to a toolkit of CUDA 12, or LSTM_FUSED_CUDA=0 to "
        "build without CUDA kernels"
    )


@pytest.mark.parametrize("wanted", ["auto", "1"])
def test_build_refuses_an_nvcc_of_another_major_version(
    wanted: str, nvcc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSTM_FUSED_CUDA", wanted)
    with pytest.raises(SystemExit, match=r"^lstm_fused: .* need nvcc 12\.x, got nvcc 13\.1"):
        cuda_definitions(CUDA_12)
    monkeypatch.setenv("LSTM_FUSED_CUDA", "0")
    assert cuda_definitions(CUDA_12) == {"LSTM_BUILD_CUDA": "OFF"}


def test_build_takes_an_nvcc_of_torchs_major_version(
    nvcc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSTM_FUSED_CUDA_ARCHS", "90-real")
    found = cuda_definitions(CUDA_13)
    wanted = {"CMAKE_CUDA_COMPILER": str(nvcc), "LSTM_CUDA_ARCHS": "90-real"}
    assert found == {"LSTM_BUILD_CUDA": "ON", **wanted}
    assert extensions.with_cuda(CUDA_13)


def test_torch_without_cuda_takes_any_nvcc_where_it_is_asked_to(
    nvcc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cuda_definitions(CPU) == {"LSTM_BUILD_CUDA": "OFF"}
    monkeypatch.setenv("LSTM_FUSED_CUDA", "1")
    assert cuda_definitions(CPU)["LSTM_BUILD_CUDA"] == "ON"


def test_old_nvcc_is_none(nvcc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc.write_text("#!/bin/sh\necho 'release 12.3, V12.3.1'\n")
    assert cuda_definitions(CUDA_12) == {"LSTM_BUILD_CUDA": "OFF"}
    monkeypatch.setenv("LSTM_FUSED_CUDA", "1")
    with pytest.raises(SystemExit, match=r"needs nvcc >= 12\.4, found none"):
        cuda_definitions(CUDA_12)


def test_the_installed_torch_is_found_without_importing_it() -> None:
    import torch

    found = extensions.find_torch()
    assert (found.version, found.cuda) == (torch.__version__, torch.version.cuda)
    assert (found.directory / "include" / "torch" / "csrc" / "stable").is_dir()


def test_other_torch_says_why_its_cuda_module_is_left_out(nvcc: Path) -> None:
    reasons = [other_torch.why_no_cuda(torch, str(nvcc)) for torch in (CPU, CUDA_12, CUDA_13)]
    assert reasons[0] == "torch 2.13.0+cpu is no CUDA build"
    assert "need nvcc 12.x, got nvcc 13.1" in reasons[1]
    assert reasons[2] == ""
    assert other_torch.why_no_cuda(CUDA_13, None).startswith("it needs nvcc >= 12.4, found none")


def test_other_torch_is_found_in_its_environment(tmp_path: Path) -> None:
    package = tmp_path / "lib" / "python3.11" / "site-packages" / "torch"
    with pytest.raises(SystemExit, match="must hold one torch, found 0"):
        other_torch.find_torch_of(tmp_path)
    (package / "lib").mkdir(parents=True)
    (package / "version.py").write_text("__version__ = '2.11.0+cu130'\ncuda = '13.0'\n")
    (package / "lib" / "libtorch_cuda.so").touch()
    found = other_torch.find_torch_of(tmp_path)
    assert found == Torch(package, "2.11.0+cu130", "13.0", has_cuda=True)


def test_package_for_another_torch_is_this_trees_with_the_cuda_module(tmp_path: Path) -> None:
    module, stale = tmp_path / "_C_cuda.so", tmp_path / "out" / "lstm_fused" / "stale.py"
    module.write_text("a module")
    stale.parent.mkdir(parents=True)
    stale.touch()
    other_torch.assemble(tmp_path / "out", [module])
    package = tmp_path / "out" / "lstm_fused"
    assert (package / "_C_cuda.so").read_text() == "a module" and not stale.exists()
    for name in ("__init__.py", "_ops/native.py"):
        assert (package / name).read_bytes() == (ROOT / "lstm_fused" / name).read_bytes()


def test_default_build_is_plain_machine_code_and_ptx_for_the_rest() -> None:
    """No "a" or "f" variants, whose code runs on one compute capability alone; PTX for what is to
    come."""
    text = (ROOT / "cmake" / "cuda.cmake").read_text("utf-8")
    code = re.sub(r"#.*", "", text)
    assert re.search(r"foreach\(arch 80 86 89 90 100 120\)", code)
    appended = re.findall(r"APPEND cuda_architectures \"?([^\s\")]+)", code)
    assert appended == ["${arch}-real", "90-virtual"]


def test_report_is_of_the_architectures_that_are_built() -> None:
    text = (ROOT / "cmake" / "cuda.cmake").read_text("utf-8")
    listed = re.search(r"foreach\(arch ([\w ]+)\)", text)
    assert listed is not None and tuple(listed[1].split()) == TARGETS


def test_build_that_fails_ends_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extensions, "find_torch", lambda: CPU)
    monkeypatch.setattr(extensions, "find_tool", lambda name, attribute: "/bin/false")
    with pytest.raises(SystemExit, match=r"^lstm_fused: the build failed: /bin/false ended with 1"):
        extensions.main()
