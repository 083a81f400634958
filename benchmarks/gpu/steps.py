# SPDX-License-Identifier: BSD-3-Clause
"""What ``make gpu`` runs, as command lines. Nothing here needs a GPU, or downloads anything."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.sanitize import TOOL_LIMIT, TOOLS
from tools.nvcc import find_nvcc

ROOT = Path(__file__).resolve().parents[2]
# cuDNN's best published shape (fp16, H a multiple of 128, N of 8); the one-block kernels' largest;
# a small and an odd one, for which cuDNN has no persistent kernel; one that fits no group.
SHAPES = (
    "T=512,N=1,D=64,H=64",
    "T=512,N=64,D=128,H=128",
    "T=1024,N=16,D=768,H=768",
    "T=512,N=33,D=200,H=250",
    "T=256,N=64,D=512,H=512",
    "T=128,N=128,D=2048,H=2048",
)
DTYPES = ("fp16", "bf16", "tf32", "fp32")
QUICK_SHAPES, QUICK_DTYPES = SHAPES[:2], DTYPES[:1]
# The runs of the benchmark: suites, shapes, dtypes, whether calls are replayed from a CUDA graph,
# and the share of the time. Each is a step by itself, so that none is left out for want of time.
# The largest shape is one, for its data alone take seconds to make.
BENCHMARKS = (
    ("bench-graph", "inference,training", SHAPES[:5], DTYPES, True, 0.35),
    ("bench-eager", "inference,training", SHAPES[:5], DTYPES, False, 0.25),
    # Packed sequences have lengths on the host, which no graph can capture.
    ("bench-packed", "ragged", SHAPES[1:5], DTYPES[:2], False, 0.15),
    ("bench-large", "inference,training", SHAPES[5:], DTYPES, True, 0.15),
    ("bench-options", "options", SHAPES[1:3], DTYPES[:2], False, 0.05),
    # Options of the cell, of kernels of one block and of groups.
    ("bench-variants", "variants", SHAPES[1:3], DTYPES[:2], False, 0.05),
)
DEFAULT_MINUTES, QUICK_MINUTES = 60.0, 3.0
# Tests at once: each process computes what it compares with on one core, and keeps GPU memory.
MOST_WORKERS, WORKER_MEMORY = 8, 2 << 30


@dataclass(frozen=True)
class Step:
    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    missing: str = ""  # what this machine lacks for it; then it is not run
    needs: tuple[str, ...] = ()  # steps without which it makes no sense, where they were to run too
    # The exit status by which it says that a tool could not do what was asked of it.
    limit: int | None = None


def architecture(major: int, minor: int) -> str:
    """As LSTM_FUSED_CUDA_ARCHS takes it: machine code for this device alone."""
    return f"{10 * major + minor}-real"


def architectures(capabilities: Sequence[tuple[int, int]]) -> str:
    return ";".join(dict.fromkeys(architecture(*capability) for capability in capabilities))


def count_workers(memory: Sequence[int]) -> int:
    """How many tests to run at once, by the bytes of each GPU."""
    room = min(memory, default=0) // WORKER_MEMORY
    return max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0)), room))


def find_sanitizer() -> str | None:
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    path = os.pathsep.join([os.path.join(home, "bin") for home in homes] + [os.environ["PATH"]])
    found = shutil.which("compute-sanitizer", path=path)
    return found or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")


def _lacks(*modules: str) -> str:
    absent = [name for name in modules if find_spec(name) is None]
    return f"Python packages: {', '.join(absent)}" if absent else ""


def _lacks_to_build() -> str:
    """As tools/extensions.py wants it."""
    lacks = [_lacks("pybind11")]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    lacks += [name for name in ("cmake", "ninja") if shutil.which(name, path=path) is None]
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        lacks.append(f"{header} (Debian: python3-dev)")
    return "; ".join(filter(None, lacks))


def make_steps(
    archs: str, out: Path, minutes: float = DEFAULT_MINUTES, quick: bool = False, workers: int = 1
) -> list[Step]:
    """The steps, in order.

    Args:
        archs: of the devices present, as `architectures` gives them.
        out: the folder for what they write.
        minutes: for all runs of the benchmark together; then none begins a new case.
        quick: fewer shapes, dtypes and rounds: does it work?
        workers: processes of the tests, where pytest-xdist is there.
    """
    python = sys.executable
    # NOTE: not by setuptools, of which an old release does not read this project's pyproject.toml.
    # Built in place: nothing is fetched and the environment stays as it is. Line numbers are for
    # the sanitizer and change no code.
    build = Step(
        "build",
        (python, "-m", "tools.extensions"),
        {"LSTM_FUSED_CUDA": "1", "LSTM_FUSED_CUDA_ARCHS": archs, "CUDAFLAGS": "-lineinfo"},
        _lacks_to_build(),
    )
    # NOTE: -p no:cacheprovider, for the tree may be read-only to others.
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=10"]
    if find_spec("xdist") is not None and workers > 1:
        tests += ["-n", str(workers), "--dist", "worksteal"]
    parity = Step(
        "parity",
        (*tests, "tests/cuda/test_gpu.py"),
        {"LSTM_FUSED_NEED_GPU": "1"},
        _lacks("pytest", "numpy"),
        needs=("build",),
    )
    sanitizer = find_sanitizer()
    checks = [
        Step(
            tool,
            (python, "-m", "benchmarks.gpu.sanitize", tool, sanitizer or "compute-sanitizer"),
            missing="" if sanitizer else "compute-sanitizer (of the CUDA toolkit)",
            needs=("build",),
            limit=TOOL_LIMIT,
        )
        for tool in TOOLS
    ]
    first = archs.split(";")[0].removesuffix("-real")
    micro = Step(
        "micro",
        (python, "-m", "benchmarks.gpu.micro", "--arch", first, "--out", str(out)),
        missing="" if find_nvcc(packages=False) else "nvcc (of the CUDA toolkit)",
    )
    return [build, parity, *checks, micro, *_benchmarks(out, minutes, quick)]


def _benchmarks(out: Path, minutes: float, quick: bool) -> list[Step]:
    lacks = _lacks("numpy", "rich", "matplotlib")
    steps = []
    for name, suites, shapes, dtypes, graph, share in BENCHMARKS:
        words = [sys.executable, "-m", "benchmarks", "--device", "cuda", "--suite", suites]
        for shape in QUICK_SHAPES if quick else shapes:
            words += ["--shape", shape]
        for dtype in QUICK_DTYPES if quick else dtypes:
            words += ["--dtype", dtype]
        # Peers that are not installed are named as skipped.
        words += ["--peers", "fused,nn,haste,flashrnn"]
        # haste takes no initial states.
        words += ["--zero-states"] * (find_spec("haste_pytorch") is not None)
        words += ["--minutes", f"{minutes * share:g}", "--name", name, "--out", str(out)]
        words += ["--quick"] * quick + ["--cuda-graph"] * graph
        steps.append(Step(name, tuple(words), missing=lacks, needs=("build",)))
    return steps


def select(steps: Sequence[Step], names: Sequence[str]) -> tuple[list[Step], list[str]]:
    """The steps of these names, in their order, and the names that no step has. A name without what
    follows a hyphen stands for all that begin so: "bench". No names: all steps."""
    chosen = [
        step for step in steps if not names or {step.name, step.name.split("-")[0]} & set(names)
    ]
    known = {step.name for step in steps} | {step.name.split("-")[0] for step in steps}
    return chosen, sorted(set(names) - known)
