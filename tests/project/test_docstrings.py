# SPDX-License-Identifier: BSD-3-Clause
"""The examples in docstrings run, and print what they say; what users begin with has one."""

import doctest
import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

import lstm_fused

PACKAGE = Path(lstm_fused.__file__).parent
# Adapters import the packages that they are for, and the last is a program.
NOT_IMPORTED = {"lstm_fused.opacus", "lstm_fused.torchrl", "lstm_fused.__main__"}
# What these run on beside torch.
NEEDS = {"lstm_fused.onnx": ("onnx", "onnxscript")}
BEGINNINGS = (
    "FusedLSTM",
    "FusedLSTM.stream",
    "FusedLSTMCell",
    "convert",
    "functional.lstm",
    "quantize",
    "revert",
    "save_stream",
    "trace",
)


def docstring_tests() -> dict[str, doctest.DocTest]:
    finder, found = doctest.DocTestFinder(), {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        if name not in NOT_IMPORTED:
            tests = finder.find(importlib.import_module(name), name)
            found |= {test.name: test for test in tests if test.examples}
    return found


TESTS = docstring_tests()


def run(test: doctest.DocTest) -> list[str]:
    """What does not come out as the docstring says."""
    faults: list[str] = []
    # Readers know these three.
    test.globs = {"torch": torch, "nn": nn, "lstm_fused": lstm_fused, **test.globs}
    with torch.no_grad():
        doctest.DocTestRunner().run(test, out=faults.append)
    return faults


@pytest.mark.parametrize("name", sorted(TESTS))
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    faults = run(TESTS[name])
    assert not faults, "".join(faults)


def test_beginnings_have_examples() -> None:
    for name in BEGINNINGS:
        value = lstm_fused
        for part in name.split("."):
            value = getattr(value, part)
        assert f"{value.__module__}.{value.__qualname__}" in TESTS, name


def test_a_wrong_example_is_found() -> None:
    parser = doctest.DocTestParser()
    right = parser.get_doctest(">>> torch.ones(2)\ntensor([1., 1.])\n", {}, "right", None, 0)
    wrong = parser.get_doctest(">>> torch.ones(2)\ntensor([1., 2.])\n", {}, "wrong", None, 0)
    assert run(right) == []
    assert "tensor([1., 2.])" in "".join(run(wrong))
