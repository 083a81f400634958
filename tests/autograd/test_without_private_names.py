# SPDX-License-Identifier: BSD-3-Clause
"""No result needs a private name of torch: each is taken away in turn, in a process of its own."""

import os
from pathlib import Path

import pytest
import torch
from kit import private_names
from kit.process import ROOT, run_python


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with all names in place."""
    path = tmp_path_factory.mktemp("private") / "results.pt"
    torch.save(private_names.results(), path)
    return path


@pytest.mark.parametrize("name", private_names.names())
def test_results_do_not_need(name: str, saved: Path) -> None:
    code = f"from kit.private_names import main; main({name!r}, {str(saved)!r})"
    places = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    run_python(code, timeout=600, PYTHONPATH=os.pathsep.join(filter(None, places)))
