# SPDX-License-Identifier: BSD-3-Clause
"""What was built and what it runs on, to be pasted into a report."""

from __future__ import annotations

import argparse
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from lstm_fused._ops import native
from lstm_fused.info import build_info

_DRIVER = Path("/proc/driver/nvidia/version")
_PROCESSORS = Path("/proc/cpuinfo")
# What changes how calls are carried out, as far as it is set.
_VARIABLES = re.compile(r"(LSTM_FUSED_\w+|OMP_\w+|KMP_\w+|GOMP_\w+|MKL_NUM_THREADS|CUDA_\w+)")


def print_environment() -> int:
    """Prints the report; gives the process's status, 1 where the compiled kernels did not load."""
    for line in describe_environment():
        print(line)
    for device in find_devices():
        print(f"{device}: {describe_device(device)}")
    return 1 if native.compiled is None else 0


def describe_environment() -> Iterator[str]:
    """What was built, and what it runs on, a line each."""
    info = build_info()
    yield f"lstm_fused {info['version']}, torch {info['torch']}, Python {platform.python_version()}"
    yield f"{platform.platform()}, {info['threads']} thread(s)"
    if native.compiled is not None:
        yield f"compiler {info['compiler']}, instruction set {info['isa']}"
        yield f"instruction sets here: {', '.join(info['isas'])}"
    else:
        yield "the compiled kernels did not load; the slow pure-PyTorch fallback runs"
    if native.compiled_cuda is not None:
        version = info["cuda_version"]
        yield (
            f"CUDA kernels built by CUDA {version // 1000}.{version % 1000 // 10} for "
            f"{' '.join(info['cuda_architectures'])}; torch's CUDA {torch.version.cuda}"
        )
    if _DRIVER.exists():
        found = re.search(r"Module\s+([\d.]+)", _DRIVER.read_text())
        yield f"NVIDIA driver {found[1] if found else 'of an unknown version'}"
    if find_devices()[0].type == "cpu":
        yield f"no CUDA device: {native.cuda_problem or 'torch finds none'}"
    for name in sorted(filter(_VARIABLES.fullmatch, os.environ)):
        yield f"{name}={os.environ[name]}"


def find_devices() -> list[torch.device]:
    """Every CUDA device; where there is none, the CPU."""
    count = torch.cuda.device_count() if torch.version.cuda is not None else 0
    return [torch.device("cuda", index) for index in range(count)] or [torch.device("cpu")]


def parse_device(text: str) -> torch.device:
    """A device of a command line.

    Raises:
        argparse.ArgumentTypeError: the text names none that kernels are for.
    """
    try:
        device = torch.device(text)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"wanted cpu, cuda or cuda:0, got {text!r}")
    return device


def why_absent(device: torch.device) -> str:
    """Why the machine has no such device; empty: it has."""
    if device.type != "cuda":
        return ""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"no device {device}: torch {torch.__version__} is no CUDA build"
    count = torch.cuda.device_count()
    if (device.index or 0) < count:
        return ""
    numbers = ", numbered from 0" if count else ""
    return f"no device {device}: torch finds {count} CUDA device(s){numbers}"


def describe_device(device: torch.device) -> str:
    """The device's name and size."""
    if device.type != "cuda":
        found = None
        if _PROCESSORS.exists():
            found = re.search(r"^model name\s*:\s*(.+)$", _PROCESSORS.read_text(), re.MULTILINE)
        return found[1] if found else platform.processor() or platform.machine()
    properties = torch.cuda.get_device_properties(device)
    return (
        f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
        f"{properties.multi_processor_count} multiprocessors, "
        f"{properties.total_memory / 2**30:.0f} GiB"
    )
