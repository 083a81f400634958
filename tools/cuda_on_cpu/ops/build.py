# SPDX-License-Identifier: BSD-3-Clause
"""Builds the CUDA ops of lstm_fused for the emulated device."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tools.cuda_on_cpu.build import Library, build
from tools.cuda_on_cpu.device import Device

ROOT = Path(__file__).resolve().parents[3]
_TORCH = Path(torch.__file__).resolve().parent
# The binding of the ops, without the files that register them and allocate on a real device.
_BINDING = ("call", "call_cuda", "layer", "ops_cuda", "options", "options_cuda", "tensors")


def ops_library(name: str, target: int, checked: bool = False) -> Library:
    """The library whose ops are torch.ops.<name>.*, of the kernels of one PTX target."""
    csrc = ROOT / "csrc"
    sources = [
        *sorted((csrc / "cuda").rglob("*.cu")),
        *sorted((csrc / "cuda").rglob("*.cpp")),
        *sorted((csrc / "common").glob("*.cpp")),
        *(csrc / "torch" / f"{part}.cpp" for part in _BINDING),
        Path(__file__).with_name("emulated_ops.cpp"),
    ]
    return Library(
        name,
        sources,
        target,
        checked,
        include_directories=[csrc, _TORCH / "include"],
        host_definitions=[
            "TORCH_TARGET_VERSION=0x020b000000000000",
            f"LSTM_EMULATED_OPS={name}",
        ],
    )


def load_ops(libraries: Sequence[Library], directory: Path) -> tuple[Device, dict[str, Any]]:
    """Builds the libraries, where anything changed, and loads them: the device that they share, and
    name -> library, whose ops torch then has. Kernels are not checked before their first use."""
    paths = build(libraries, directory)
    # The libraries take torch's stable ABI from what the process has.
    ctypes.CDLL(str(_TORCH / "lib" / "libtorch_cpu.so"), mode=ctypes.RTLD_GLOBAL)
    device = Device(paths["cuda_on_cpu"])
    loaded = {library.name: device.load(paths[library.name]) for library in libraries}
    for library in loaded.values():
        library.lstm_emulated_set_first_use_checks(b"0")
    return device, loaded
