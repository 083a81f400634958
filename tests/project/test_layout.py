# SPDX-License-Identifier: BSD-3-Clause
"""The layers and the style that the design sets, as far as a text search can tell.

Each check takes a path, relative to the root, and the file's text, and returns what is wrong.
"""

import os
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
Check = Callable[[str, str], list[str]]

C_SUFFIXES = (".cpp", ".h", ".cu", ".cuh")
SOURCE_SUFFIXES = (".py", ".pyi", *C_SUFFIXES)
BUILD_FILES = ("CMakeLists.txt", "Makefile", "setup.py", "pyproject.toml", ".ci/run")
MAX_LINES = 400
MAX_LINES_OF = {"setup.py": 150}

INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
TORCH_OR_PYTHON = re.compile(r"(torch|ATen|c10|caffe2|pybind11)/|(Python|pybind11)\.h$")
# The directories of csrc that the files of one must not include from (torch may use them all).
FORBIDDEN_LAYERS = {
    "common": ("cpu", "cuda", "torch"),
    "cpu": ("cuda", "torch"),
    "cuda": ("cpu", "torch"),
}
# The one header of csrc/torch that uses torch's C shim by hand.
UNSTABLE_TORCH = "csrc/torch/unstable_torch.h"
UNSTABLE_NAME = re.compile(
    r"\b(?:aoti_torch_\w+|torch_(?!parallel\()\w+(?=\()|\w*shim\.h|stable::detail)"
)
SPDX = re.compile(r"^(//|#) SPDX-License-Identifier: BSD-3-Clause$")
# Capitals made here, so that this file passes its own check.
TO_DO, FIX_ME = "todo".upper(), "fixme".upper()
UNFINISHED = re.compile(rf"\b({TO_DO}|{FIX_ME})\b(?!\(#\d+\))")


def includes(text: str) -> list[str]:
    return INCLUDE.findall(text)


def check_torch_free(path: str, text: str) -> list[str]:
    in_core = path.startswith(("csrc/", "tests/cpp/")) and not path.startswith("csrc/torch/")
    if not in_core or not path.endswith(C_SUFFIXES):
        return []
    return [
        f"{path}: includes {name}; outside csrc/torch the code is free of torch and Python"
        for name in includes(text)
        if TORCH_OR_PYTHON.match(name)
    ]


def check_layers(path: str, text: str) -> list[str]:
    parts = path.split("/")
    if parts[0] != "csrc" or len(parts) < 3 or not path.endswith(C_SUFFIXES):
        return []
    problems = []
    for name in includes(text):
        # An include is found beside the file, or from csrc, or from the root.
        candidates = [
            posixpath.normpath(posixpath.join(base, name))
            for base in (posixpath.dirname(path), "csrc", ".")
        ]
        for layer in FORBIDDEN_LAYERS.get(parts[1], ()):
            if any(candidate.startswith(f"csrc/{layer}/") for candidate in candidates):
                problems.append(f"{path}: includes {name}; csrc/{parts[1]} is below csrc/{layer}")
    return problems


def check_stable_torch(path: str, text: str) -> list[str]:
    """csrc/torch keeps to the public surface of torch's stable ABI, but for one header."""
    if not path.startswith("csrc/torch/") or path == UNSTABLE_TORCH:
        return []
    return [
        f"{path}: uses {name}; what is not torch's public stable ABI belongs in {UNSTABLE_TORCH}"
        for name in UNSTABLE_NAME.findall(text)
    ]


def check_length(path: str, text: str) -> list[str]:
    limit = MAX_LINES_OF.get(path, MAX_LINES)
    lines = len(text.splitlines())
    if not path.endswith((".py", *C_SUFFIXES)) or lines <= limit:
        return []
    return [f"{path}: {lines} lines, at most {limit} wanted"]


def check_spdx(path: str, text: str) -> list[str]:
    if not path.endswith(SOURCE_SUFFIXES) and path not in BUILD_FILES:
        return []
    lines = text.splitlines()
    top = 1 if lines and lines[0].startswith("#!") else 0
    found = [number for number, line in enumerate(lines) if SPDX.match(line)]
    if found == [top]:
        return []
    return [f"{path}: wanted one SPDX line, on line {top + 1}; got {[n + 1 for n in found]}"]


def check_portable_flags(path: str, text: str) -> list[str]:
    if path not in BUILD_FILES and not path.endswith(".cmake"):
        return []
    return [
        f"{path}: {flag} makes a build that other machines cannot run"
        for flag in ("-march=native", "-mtune=native", "-mcpu=native")
        if flag in text
    ]


def check_finished(path: str, text: str) -> list[str]:
    if not path.endswith((*SOURCE_SUFFIXES, ".cmake")) and path not in BUILD_FILES:
        return []
    return [
        f"{path}:{number}: {match[0]} without an issue number, as in {match[0]}(#12)"
        for number, line in enumerate(text.splitlines(), 1)
        if (match := UNFINISHED.search(line))
    ]


CHECKS: tuple[Check, ...] = (
    check_torch_free,
    check_stable_torch,
    check_layers,
    check_length,
    check_spdx,
    check_portable_flags,
    check_finished,
)


def is_generated(parent: str, name: str) -> bool:
    if name == ".ci":
        return False
    return (
        name.startswith(".")
        or name.endswith(".egg-info")
        or name in ("build", "dist", "__pycache__")
        or Path(parent, name, "pyvenv.cfg").exists()
    )


def project_files() -> Iterator[str]:
    """Every file of the tree that a person wrote, with '/' between the parts of its path."""
    for directory, subdirectories, names in os.walk(ROOT):
        subdirectories[:] = [name for name in subdirectories if not is_generated(directory, name)]
        for name in names:
            yield Path(directory, name).relative_to(ROOT).as_posix()


@pytest.mark.parametrize("check", CHECKS)
def test_project(check: Check) -> None:
    paths = [path for path in project_files() if path.endswith(SOURCE_SUFFIXES)]
    paths += [path for path in BUILD_FILES if (ROOT / path).exists()]
    problems = []
    for path in sorted(set(paths)):
        problems += check(path, (ROOT / path).read_text(encoding="utf-8"))
    assert not problems, "\n".join(problems)


def test_project_files_finds_every_kind() -> None:
    found = set(project_files())
    assert {"setup.py", "CMakeLists.txt", "tests/project/test_layout.py", ".ci/run"} <= found
    for directory in ("csrc/common/", "csrc/cpu/", "csrc/torch/", "lstm_fused/", "tests/cpp/"):
        assert any(path.startswith(directory) for path in found), directory
    assert not any(path.startswith(("build/", ".git/", ".venv/")) for path in found)


SPDX_LINE = "// SPDX-License-Identifier: BSD-3-Clause\n"
# One line each: the check, the path, the text. The first list must fail, the second must pass.
BAD = [
    (check_torch_free, "csrc/common/a.h", "#include <torch/csrc/stable/library.h>\n"),
    (check_torch_free, "csrc/cpu/a.cpp", "int a;\n#include <ATen/ATen.h>\n"),
    (check_torch_free, "csrc/cpu/a-inl.h", '  #  include "c10/util/Half.h"\n'),
    (check_torch_free, "csrc/cuda/a.cu", "#include <pybind11/pybind11.h>\n"),
    (check_torch_free, "csrc/cuda/a.cuh", "#include <Python.h>\n"),
    (check_torch_free, "tests/cpp/a_test.cpp", "#include <torch/torch.h>\n"),
    (check_layers, "csrc/common/a.h", '#include "cpu/kernels/kernels.h"\n'),
    (check_layers, "csrc/common/a.h", '#include "csrc/cuda/a.cuh"\n'),
    (check_layers, "csrc/common/a.cpp", '#include "../cpu/kernels.h"\n'),
    (check_layers, "csrc/cpu/isa/a.cpp", '#include "../../torch/ops.h"\n'),
    (check_layers, "csrc/cuda/a.cu", '#include "cpu/kernels/kernels.h"\n'),
    (check_stable_torch, "csrc/torch/a.cpp", "int i = aoti_torch_device_type_cpu();\n"),
    (check_stable_torch, "csrc/torch/a.cpp", "using torch::stable::detail::from;\n"),
    (check_stable_torch, "csrc/torch/a.h", "#include <torch/csrc/stable/c/shim.h>\n"),
    (check_stable_torch, "csrc/torch/a.cpp", "torch_get_mutable_data_ptr(tensor, &data);\n"),
    (check_length, "csrc/cpu/a.cpp", "\n" * 401),
    (check_length, "lstm_fused/a.py", "\n" * 401),
    (check_length, "setup.py", "\n" * 151),
    (check_spdx, "csrc/cpu/a.cpp", ""),
    (check_spdx, "csrc/cpu/a.cpp", "#pragma once\n" + SPDX_LINE),
    (check_spdx, "csrc/cpu/a.cpp", SPDX_LINE + SPDX_LINE),
    (check_spdx, "csrc/cpu/a.cpp", SPDX_LINE.replace("BSD-3-Clause", "MIT")),
    (check_spdx, "lstm_fused/a.py", '"""Does a thing."""\n'),
    (check_spdx, ".ci/run", "#!/bin/sh\nset -e\n"),
    (check_portable_flags, "CMakeLists.txt", "add_compile_options(-march=native)\n"),
    (check_portable_flags, "setup.py", 'FLAGS = ["-O3", "-march=native"]\n'),
    (check_finished, "csrc/cpu/a.cpp", f"// {TO_DO}: unroll\n"),
    (check_finished, "csrc/cpu/a.cpp", f"// {TO_DO}(someone): unroll\n"),
    (check_finished, "lstm_fused/a.py", f"x = 1  # {FIX_ME}\n"),
]
GOOD = [
    (check_torch_free, "csrc/torch/a.cpp", "#include <torch/csrc/stable/library.h>\n"),
    (check_torch_free, "csrc/cpu/a.cpp", '// not torch/all.h\n#include "cpu/kernels/kernels.h"\n'),
    (check_layers, "csrc/cpu/a.cpp", '#include "cpu/b.h"\n#include "common/b.h"\n'),
    (check_layers, "csrc/common/a.h", '#include "common/cpu_features.h"\n#include <cstdint>\n'),
    (check_layers, "csrc/common/cuda_a.h", '#include "b.h"\n'),
    (check_layers, "csrc/torch/a.cpp", '#include "cpu/b.h"\n#include "cuda/b.h"\n'),
    (check_stable_torch, "csrc/torch/a.cpp", "torch::stable::zero_(tensor);\n"),
    (check_stable_torch, UNSTABLE_TORCH, "int i = aoti_torch_device_type_cpu();\n"),
    (check_stable_torch, "tools/a.cpp", "int i = aoti_torch_device_type_cpu();\n"),
    (check_length, "csrc/cpu/a.cpp", "\n" * 400),
    (check_length, "setup.py", "\n" * 150),
    (check_length, "docs/a.md", "\n" * 1000),
    (check_spdx, "csrc/cpu/a.cpp", SPDX_LINE + "int a;\n"),
    (check_spdx, ".ci/run", "#!/bin/sh\n# SPDX-License-Identifier: BSD-3-Clause\n"),
    (check_portable_flags, "CMakeLists.txt", "add_compile_options(-mavx2)\n"),
    (check_finished, "csrc/cpu/a.cpp", f"// {TO_DO}(#12): unroll\n"),
]


@pytest.mark.parametrize(("check", "path", "text"), BAD)
def test_check_fails(check: Check, path: str, text: str) -> None:
    assert len(check(path, text)) == 1


@pytest.mark.parametrize(("check", "path", "text"), GOOD)
def test_check_passes(check: Check, path: str, text: str) -> None:
    assert check(path, text) == []
