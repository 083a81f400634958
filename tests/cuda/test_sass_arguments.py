# SPDX-License-Identifier: BSD-3-Clause
"""The arguments of kernels as tools/cuda_report lays them out, and times of real kernels."""

import struct

import pytest
from kit.sass import compiled

from tools.cuda_report.arguments import (
    ARRAY_SPACE,
    ARRAY_START,
    make_arguments,
    parameter_place,
    parse_struct,
)
from tools.cuda_report.facts import DEVICES
from tools.cuda_report.plans import plan_of
from tools.cuda_report.sass.decode import find_nvdisasm
from tools.cuda_report.step_time import step_time
from tools.nvcc import find_nvcc

HEADER = """
// A comment; with a semicolon.
struct Args {
  int steps, batch;            // both
  const void* w_hh = nullptr;  // (4H, H); or null
  uint64_t limit{};
  Recurrence direction[kMaxDirections];
};
"""


def test_structs_are_read_from_headers() -> None:
    assert parse_struct(HEADER, "Args") == (
        *(("steps", "int"), ("batch", "int"), ("w_hh", "pointer"), ("limit", "uint64_t")),
        ("direction", "Recurrence[kMaxDirections]"),
    )
    assert parse_struct(HEADER, "Other") is None
    with pytest.raises(ValueError, match="struct Bad: got 'int f\\(\\)', wanted a type and a name"):
        parse_struct("struct Bad {\n int f();\n};", "Bad")


def test_arguments_are_laid_out() -> None:
    """Four numbers, two pointers, then the pointers of two directions."""
    values = {"steps": 7, "batch": 16, "hidden_size": 768, "directions": 1, "lengths": 0}
    found = make_arguments({**values, "direction[0].bias": 0}, backward=False, group=False)
    assert struct.unpack_from("<4i", found.data) == (7, 16, 768, 1)
    lengths, reset_mask, preactivations, bias, w_hh = struct.unpack_from("<5Q", found.data, 16)
    assert (lengths, bias) == (0, 0)
    assert found.array_of(reset_mask) == "reset_mask"
    assert found.array_of(preactivations + 4096) == "direction[0].preactivations"
    assert found.offset(preactivations + 4096) == 4096
    assert found.array_of(w_hh - 4) == "direction[0].w_hh"
    assert found.array_of(0) is found.array_of(100 * ARRAY_SPACE + ARRAY_START) is None
    assert all(found.known)


def test_numbers_without_a_value_are_unknown() -> None:
    found = make_arguments({"batch": 3}, backward=True, group=True)
    assert found.known[:12] == b"\0\0\0\0\1\1\1\1\0\0\0\0"
    assert "exchange" in found.arrays and "direction[1].grad_gates" in found.arrays


@pytest.mark.parametrize(("arch", "place"), [(80, 0x160), (90, 0x210), (100, 0x380)])
def test_the_place_of_parameters_is_read_from_the_cubin(arch: int, place: int) -> None:
    kernel = compiled("__global__ void k(int* x, int a, char b) { x[a] = b; }", arch)
    assert parameter_place(kernel.cubin, kernel.listing.symbol) == (place, 13)


@pytest.mark.skipif(
    find_nvcc() is None or find_nvdisasm() is None, reason="needs nvcc and nvdisasm"
)
@pytest.mark.parametrize("inference", [False, True])
def test_a_step_of_one_block_is_timed(inference: bool) -> None:
    """H = 64 in float16 and one tile: what it must do follows from the shape."""
    device = DEVICES["A100"]
    plan = plan_of("fp16", 8, 64, False, device)
    assert plan is not None
    found = step_time(plan, device, inference)
    first, second = found.rounds[0][1:3]
    names = [found.listing.instructions[s.place].base for s in found.simulation.warps[0].steps]
    # Two chunks of 64 bytes of K; for each, two pairs of gates, and two mma.sync of 16 of K.
    assert names[first:second].count("HMMA") == 2 * 2 * 2
    assert names[first:second].count("BAR") == 1
    # Rows of 64 units: four gates of 4 bytes are read. In sectors of 32 bytes, of which 2-byte
    # stores of eight units fill a half: y; for a backward four gates, and c of 4 bytes.
    read, y, saved = 8 * 64 * 16, 8 * 8 * 32, 8 * 8 * 32 * 5
    assert found.l2_bytes == read + y + (0 if inference else saved)
    assert sum(found.split.values()) == pytest.approx(found.cycles)
    assert 500 < found.cycles < 3000
    assert found.cycles * 4 == int(found.cycles * 4)
