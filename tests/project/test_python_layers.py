# SPDX-License-Identifier: BSD-3-Clause
"""Which Python package may import which: what is below knows nothing of what is above."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A folder, and the packages that its files must not import.
FORBIDDEN = {
    "lstm_fused/_torch": (
        *("lstm_fused._ops", "lstm_fused.autograd", "lstm_fused.functional", "lstm_fused.module"),
        *("lstm_fused.cell", "lstm_fused._convert", "lstm_fused.convert", "lstm_fused._trace"),
    ),
    "lstm_fused/_ops": (
        *("lstm_fused.autograd", "lstm_fused.functional", "lstm_fused.module", "lstm_fused.cell"),
        *("lstm_fused._convert", "lstm_fused.convert", "lstm_fused._trace"),
    ),
    "lstm_fused/autograd": (
        *("lstm_fused.functional", "lstm_fused.module", "lstm_fused.cell"),
        *("lstm_fused._convert", "lstm_fused.convert", "lstm_fused._trace"),
    ),
    "lstm_fused/_convert": ("lstm_fused._trace",),
    "lstm_fused": ("tests", "kit", "benchmarks", "tools", "conftest"),
    "tools": ("tests", "kit", "benchmarks", "conftest"),
    "benchmarks": ("tests", "kit", "conftest"),
    "examples": ("tests", "kit", "benchmarks", "tools", "conftest"),
    # Helpers of tests live in tests/kit, and no test is another's library.
    "tests": ("conftest", "tests"),
}


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module, or name in one, that a file imports, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def faults(path: str, text: str) -> list[str]:
    tree, found = ast.parse(text), []
    for folder, forbidden in FORBIDDEN.items():
        if not path.startswith(f"{folder}/"):
            continue
        for name in sorted(set(imported(tree))):
            parts = name.split(".")
            prefixes = {".".join(parts[: k + 1]) for k in range(len(parts))}
            if prefixes & set(forbidden) or (folder == "tests" and parts[0].startswith("test_")):
                found.append(f"{path}: imports {name}; {folder} is below it")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in (
            "sys.path.insert",
            "sys.path.append",
        ):
            found.append(f"{path}: edits sys.path; import by package")
    return found


def test_every_file_keeps_to_its_layer() -> None:
    folders = ("lstm_fused", "tools", "benchmarks", "examples", "tests")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(paths) > 100
    found = []
    for path in paths:
        found += faults(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("lstm_fused/_torch/a.py", "from lstm_fused._ops import native"),
        ("lstm_fused/_ops/a.py", "def f():\n    import lstm_fused.module"),
        ("lstm_fused/autograd/a.py", "from lstm_fused import functional"),
        ("tools/a.py", "from benchmarks.case import Case"),
        ("tools/a/b.py", "import kit.cases"),
        ("tests/layer/test_a.py", "from conftest import D"),
        ("tests/layer/test_a.py", "from test_b import CASES"),
        ("benchmarks/a.py", "import sys\nsys.path.insert(0, 'tests')"),
    ],
)
def test_faults_are_found(path: str, text: str) -> None:
    assert len(faults(path, text)) >= 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("lstm_fused/module.py", "from lstm_fused._ops import native"),
        ("lstm_fused/autograd/a.py", "from lstm_fused import reference"),
        ("tests/layer/test_a.py", "from kit.cases import CORE\nfrom tools.nvcc import find_nvcc"),
        ("benchmarks/a.py", "from tools.nvcc import find_nvcc"),
    ],
)
def test_what_is_allowed_passes(path: str, text: str) -> None:
    assert faults(path, text) == []
