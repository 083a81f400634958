# SPDX-License-Identifier: BSD-3-Clause
"""Why the compiled part did not load, and what to do, in one sentence."""

from __future__ import annotations

import re
import sys
import sysconfig
from pathlib import Path

_OLDEST_TORCH = (2, 11)
_REINSTALL = (
    "reinstall with `pip install --no-build-isolation .` in an environment that holds this torch"
)


def explain_failure(error: ImportError, torch_version: str, folder: Path) -> str:
    """The sentence.

    Args:
        error: what the import of the extension module raised.
        torch_version: of the torch that is installed.
        folder: where the extension module should lie.
    """
    text = str(error)
    found = re.match(r"(\d+)\.(\d+)", torch_version)
    if found and (int(found[1]), int(found[2])) < _OLDEST_TORCH:
        return f"torch {torch_version} is too old: install torch >= 2.11"
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    built = sorted(path.name.removeprefix("_C") for path in folder.glob("_C.*.so"))
    if isinstance(error, ModuleNotFoundError) and built and suffix not in built:
        version = ".".join(map(str, sys.version_info[:2]))
        return (
            f"they were built for another Python ({', '.join(built)}, and Python {version} takes "
            f"{suffix}): {_REINSTALL}"
        )
    if isinstance(error, ModuleNotFoundError) and not built:
        checkout = folder.parent
        if (checkout / "setup.py").exists():
            return (
                f"they were not built in {checkout}, which Python imports in place of an installed "
                "lstm_fused: run from another folder, or install with `pip install "
                "--no-build-isolation -e .`"
            )
        return f"they were not built: {_REINSTALL}"
    if missing := re.search(r"version `((?:GLIBCXX|CXXABI)_[\d.]+)' not found", text):
        return (
            f"libstdc++ is older than the compiler that built them ({missing[1]} is missing): "
            "install a newer libstdc++ (conda: libstdcxx-ng; Debian: libstdc++6), or reinstall "
            "with `pip install --no-build-isolation .`"
        )
    if "undefined symbol" in text:
        return f"they do not fit torch {torch_version} ({text}): {_REINSTALL}"
    return f"{text}: {_REINSTALL}"
