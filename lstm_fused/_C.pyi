# SPDX-License-Identifier: BSD-3-Clause
"""Importing it registers the compiled ops; what is not an op is here."""

from collections.abc import Mapping, Sequence

def available_isas() -> list[str]: ...
def best_isa() -> str: ...
def set_max_isa(name: str) -> str: ...
def set_cuda_variant(name: str) -> str: ...
def release_scratch() -> int: ...
def compiler() -> str: ...
def plan_text(
    steps: int,
    batch: int,
    input_size: int,
    hidden_size: int,
    proj_size: int,
    directions: int,
    dtype: str,
    threads: int,
    backward: bool,
    data_rows: int | None = None,
    cell: int = 0,
) -> str: ...
def stack_text(
    steps: int,
    batch: int,
    input_size: int,
    hidden_size: int,
    proj_size: int,
    directions: int,
    num_layers: int,
    dtype: str,
    threads: int,
) -> str: ...
def quantized_plan_text(
    steps: int,
    batch: int,
    input_size: int,
    hidden_size: int,
    proj_size: int,
    directions: int,
    weights: str,
    threads: int,
) -> str: ...
def cuda_plan_text(
    steps: int,
    batch: int,
    input_size: int,
    hidden_size: int,
    proj_size: int,
    directions: int,
    dtype: str,
    allow_tf32: bool,
    training: bool,
    backward: bool,
    facts: Mapping[str, int],
    recompute: bool = False,
    cta_refusal: str = "",
    group_refusal: str = "",
    cell: int = 0,
) -> str: ...

class Stream:
    """A stack of layers taken through time, of raw addresses; see csrc/torch/module_stream.cpp."""

    def __init__(
        self, dtype: str, layers: Sequence[tuple[int, int, int, list[int]]], batch: int
    ) -> None: ...
    @staticmethod
    def packed(layers: Sequence[tuple[int, int]], batch: int) -> Stream: ...
    @staticmethod
    def open(data: bytes, batch: int) -> Stream: ...
    def clone(self) -> Stream: ...
    def step(self, x: int, y: int) -> None: ...
    def run(self, steps: int, x: int, y: int) -> None: ...
    def reset(self, mask: int) -> None: ...
    def copy_state(self, other: Stream) -> None: ...
    def get_state(self, layer: int, h: int, c: int) -> None: ...
    def set_state(self, layer: int, h: int, c: int) -> None: ...
    def sizes(self) -> tuple[int, int, list[tuple[int, int]]]: ...
