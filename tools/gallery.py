# SPDX-License-Identifier: BSD-3-Clause
"""What a program of examples/gallery needs: pretrained models and recordings come with packages
that requirements-gallery.txt has and the tests do without."""

from __future__ import annotations

import ast
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

GALLERY = Path(__file__).resolve().parents[1] / "examples" / "gallery"


def missing_packages(program: Path) -> list[str]:
    """Modules that the program imports and packages whose files it opens, by
    ``distribution("name")``, that are not installed."""
    missing = set()
    for node in ast.walk(ast.parse(program.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        else:
            names = []
        roots = {name.partition(".")[0] for name in names}
        missing |= {root for root in roots if find_spec(root) is None}
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "distribution"
            and isinstance(node.args[0], ast.Constant)
        ):
            name = str(node.args[0].value)
            try:
                distribution(name)
            except PackageNotFoundError:
                missing.add(name)
    return sorted(missing)
