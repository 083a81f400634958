# SPDX-License-Identifier: BSD-3-Clause
"""What tests set for the whole process while they run: threads and the instruction set."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lstm_fused import build_info
from lstm_fused._ops import native

ISAS: tuple[str, ...] = tuple(build_info()["isas"])
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def use_isa(isa: str) -> Iterator[None]:
    """Run the kernels of one instruction set."""
    assert native.compiled is not None
    before = native.compiled.set_max_isa(isa)
    try:
        assert build_info()["isa"] == isa
        yield
    finally:
        native.compiled.set_max_isa(before)
