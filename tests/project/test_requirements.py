# SPDX-License-Identifier: BSD-3-Clause
"""torch is all that the package asks for, and enough."""

import re
from pathlib import Path

from kit.process import run_python

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import torch, lstm_fused
torch.manual_seed(0)
lstm = lstm_fused.FusedLSTM(3, 17, num_layers=2)
x = torch.randn(6, 2, 3)
for kind in ("float32", "bfloat16", "int8"):
    lstm_fused.save_stream(lstm, out + kind, weights=getattr(torch, kind))
lstm_fused.load_stream(out + "float32", 2).run(x)
lstm_fused.trace(lstm, x).save_html(out + "page.html")
lstm_fused.quantize(lstm)
"""
WITHOUT_NUMPY = """
import sys, warnings
sys.modules["numpy"] = None
warnings.filterwarnings("ignore", "Failed to initialize NumPy")
"""


def test_numpy_may_be_missing(tmp_path: Path) -> None:
    """torch runs without NumPy, and our files are the same."""
    for name, before in (("with", ""), ("without", WITHOUT_NUMPY)):
        (tmp_path / name).mkdir()
        run_python(f"{before}out = {str(tmp_path / name)!r} + '/'\n{PROGRAM}")
    files = sorted(path.name for path in (tmp_path / "without").iterdir())
    assert files == ["bfloat16", "float32", "int8", "page.html"]
    for name in files:
        ours, theirs = (tmp_path / kind / name for kind in ("without", "with"))
        assert ours.read_bytes() == theirs.read_bytes(), name


def test_versions_of_torch_are_those_that_are_tested() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    tested = re.search(r"^test-wheel: VERSIONS := (.+)$", makefile, re.M)
    oldest_and_newest = re.search(r"^VERSIONS \?= (.+)$", makefile, re.M)
    assert tested and oldest_and_newest
    versions = tested[1].split()
    assert oldest_and_newest[1].split() == [versions[0], versions[-1]]
    sentence = f"beside torch {', '.join(versions[:-1])} and {versions[-1]}"
    for page in ("docs/install.md", "CONTRIBUTING.md"):
        assert sentence in (ROOT / page).read_text("utf-8"), page
    metadata = (ROOT / "pyproject.toml").read_text("utf-8")
    minor = versions[0].removesuffix(".0")
    assert f'dependencies = ["torch>={minor}"]' in metadata
    assert f"torch ≥ {minor}" in (ROOT / "docs" / "install.md").read_text("utf-8")
