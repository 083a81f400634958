# SPDX-License-Identifier: BSD-3-Clause
"""What ``make gpu`` runs, as command lines. Nothing here needs a GPU, or downloads anything."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
# Architectures whose "a" code has instructions that their plain code lacks, as in cmake/cuda.cmake.
_WITH_A = {90, 100}
# cuDNN's best published shape (fp16, H a multiple of 128, N of 8); the one-block kernels' largest;
# a small and an odd one, for which cuDNN has no persistent kernel; one that fits no group.
SHAPES = (
    "T=1024,N=16,D=768,H=768",
    "T=512,N=64,D=128,H=128",
    "T=512,N=1,D=64,H=64",
    "T=512,N=33,D=200,H=250",
    "T=256,N=64,D=512,H=512",
    "T=128,N=128,D=2048,H=2048",
)
DTYPES = ("fp16", "bf16", "tf32", "fp32")
LEAST_SETUPTOOLS = 77  # reads the licence of pyproject.toml


@dataclass(frozen=True)
class Step:
    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    missing: str = ""  # what this machine lacks for it; then it is not run
    is_vital: bool = False  # without it, nothing after it makes sense


def architecture(major: int, minor: int) -> str:
    """As LSTM_FUSED_CUDA_ARCHS takes it: machine code for this device alone."""
    number = 10 * major + minor
    return f"{number}{'a' if number in _WITH_A else ''}-real"


def architectures(capabilities: Sequence[tuple[int, int]]) -> str:
    return ";".join(dict.fromkeys(architecture(*capability) for capability in capabilities))


def find_sanitizer() -> str | None:
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    path = os.pathsep.join([os.path.join(home, "bin") for home in homes] + [os.environ["PATH"]])
    found = shutil.which("compute-sanitizer", path=path)
    return found or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")


def _lacks(*modules: str) -> str:
    absent = [name for name in modules if find_spec(name) is None]
    return f"Python packages: {', '.join(absent)}" if absent else ""


def _lacks_to_build() -> str:
    """As pyproject.toml's [build-system] and setup.py want it."""
    lacks = [_lacks("setuptools", "pybind11")]
    try:
        release = version("setuptools")
    except PackageNotFoundError:
        release = "none"
    if release.split(".")[0].isdigit() and int(release.split(".")[0]) < LEAST_SETUPTOOLS:
        lacks.append(f"setuptools >= {LEAST_SETUPTOOLS}, got {release}")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    lacks += [name for name in ("cmake", "ninja") if shutil.which(name, path=path) is None]
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        lacks.append(f"{header} (Debian: python3-dev)")
    return "; ".join(filter(None, lacks))


def make_steps(archs: str, minutes: float = 60, quick: bool = False) -> list[Step]:
    """The steps, in order.

    Args:
        archs: of the devices present, as `architectures` gives them.
        minutes: after which each of the two runs of the benchmark begins no new case.
        quick: fewer shapes, dtypes and rounds: does it work?
    """
    python = sys.executable
    # Built in place, without pip: nothing is fetched and the environment stays as it is.
    build = Step(
        "build",
        (python, "setup.py", "build_ext", "--inplace"),
        {"LSTM_FUSED_CUDA": "1", "LSTM_FUSED_CUDA_ARCHS": archs},
        _lacks_to_build(),
        is_vital=True,
    )
    # NOTE: -p no:cacheprovider, for the tree may be read-only to others.
    tests = Step(
        "parity",
        (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/cuda/test_gpu.py"),
        {"LSTM_FUSED_NEED_GPU": "1"},
        _lacks("pytest", "numpy"),
    )
    sanitizer = find_sanitizer()
    checks = [
        Step(
            tool,
            (
                *(sanitizer or "compute-sanitizer", "--tool", tool, "--error-exitcode", "9"),
                # cuBLAS's own kernels are not ours to mend, nor are statuses that torch asks for.
                *("--kernel-name", "kns=lstm_fused", "--report-api-errors", "no"),
                *(python, "-m", "benchmarks.gpu.smoke"),
            ),
            # torch's allocator hides what lies past a tensor; without it memcheck sees the end.
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if tool == "memcheck" else {},
            "" if sanitizer else "compute-sanitizer (of the CUDA toolkit)",
        )
        for tool in ("memcheck", "racecheck")
    ]
    lacks = _lacks("numpy", "rich", "matplotlib")
    if not (ROOT / "benchmarks" / "cli.py").exists():
        lacks = "the benchmark runner (benchmarks/cli.py)"
    benchmarks = [
        Step(
            name,
            benchmark_command(suites, minutes, quick, name, graph=graph),
            missing=lacks,
        )
        for name, suites, graph in (
            ("gpu", "inference,training,ragged,options", False),
            # Packed sequences have lengths on the host, which no graph can capture.
            ("gpu-graph", "inference,training", True),
        )
    ]
    return [build, tests, *checks, *benchmarks]


def benchmark_command(
    suites: str, minutes: float, quick: bool, name: str, *, graph: bool
) -> tuple[str, ...]:
    shapes, dtypes = (SHAPES[1:3], DTYPES[:1]) if quick else (SHAPES, DTYPES)
    words = [sys.executable, "-m", "benchmarks", "--device", "cuda", "--suite", suites]
    for shape in shapes:
        words += ["--shape", shape]
    for dtype in dtypes:
        words += ["--dtype", dtype]
    words += ["--peers", "fused,nn", "--minutes", f"{minutes:g}", "--name", name]
    words += ["--out", str(RESULTS)] + ["--quick"] * quick + ["--cuda-graph"] * graph
    return tuple(words)
