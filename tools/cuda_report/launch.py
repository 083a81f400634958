# SPDX-License-Identifier: BSD-3-Clause
"""A plan's launch, as its kernel sees it: machine code, constant bank, walk of a block."""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path

from tools.cuda_report.arguments import (
    MAX_DIRECTIONS,
    Arguments,
    constant_tables,
    make_arguments,
    parameter_place,
)
from tools.cuda_report.cubins import SOURCES, compile_all, cubin_path
from tools.cuda_report.facts import Device
from tools.cuda_report.plans import GROUP_WARPS, WARP_UNITS, Plan
from tools.cuda_report.sass.decode import Listing, disassemble, find_nvdisasm
from tools.cuda_report.sass.flow import Flow
from tools.cuda_report.sass.memory import Memory
from tools.cuda_report.sass.walk import Launch, Walk, walk
from tools.cuda_report.sass.warp import Constants
from tools.nvcc import find_nvcc

_FILES = {"bf16": "bf16", "fp16": "f16", "tf32": "tf32", "fp32": "f32"}
# Where constant bank 0 has the sizes of a block and of the grid, from sm_100 on and before it.
_SIZES_SM100, _SIZES = (0x360, 0x370), (0, 12)


def walk_plan(flow: Flow, cubin: Path, plan: Plan, steps: int, inference: bool = False) -> Walk:
    """Walks the first block of a plan's launch through some steps of a sequence."""
    launch = Launch(plan.threads, grid_of(plan))
    arguments = plan_arguments(plan, steps, inference)
    constants = launch_constants(launch, arguments, cubin, flow.listing.symbol)
    return walk(flow, constants, launch, Memory(arguments, {"lengths": steps}))


def grid_of(plan: Plan) -> tuple[int, int, int]:
    return (plan.group_blocks, plan.groups, 1) if plan.group else (plan.groups, 1, 1)


def plan_arguments(plan: Plan, steps: int, inference: bool) -> Arguments:
    """The arguments of a call without lengths, resets and what is seldom asked for."""
    splits = GROUP_WARPS * WARP_UNITS // plan.units if plan.group else 1
    output_tiles = -(-plan.hidden // (2 * WARP_UNITS))
    values: dict[str, int | None] = {
        **{"steps": steps, "batch": plan.rows, "hidden_size": plan.hidden, "directions": 1},
        **{"lengths": 0, "reset_mask": 0, "tiles": plan.group_tiles},
        **{"k_splits": splits, "warp_chunks": plan.warp_chunks(splits)},
        "warp_output_tiles": -(-output_tiles // GROUP_WARPS),
    }
    absent = ["w_hr", "cell_states", "grad_cell_states", "grad_output", "grad_h_n", "grad_c_n"]
    absent += ["gates", "cells"] if inference else []
    values |= {f"direction[{i}].{name}": 0 for i in range(MAX_DIRECTIONS) for name in absent}
    return make_arguments(values, plan.backward, plan.group)


def launch_constants(launch: Launch, arguments: Arguments, cubin: Path, symbol: str) -> Constants:
    """Constant bank 0: sizes of the launch, and the parameters."""
    place, size = parameter_place(cubin, symbol)
    if size != len(arguments.data):
        raise ValueError(
            f"{symbol}: parameters of {size} bytes, by the headers {len(arguments.data)}"
        )
    data, known = bytearray(place) + arguments.data, bytearray(place) + arguments.known
    places = _SIZES if place < _SIZES_SM100[0] else _SIZES_SM100
    for start, words in zip(places, ((launch.threads, 1, 1), launch.grid), strict=True):
        data[start : start + 12] = struct.pack("<3I", *words)
        known[start : start + 12] = b"\1" * 12
    return Constants(bytes(data), bytes(known), constant_tables(cubin, symbol))


def kernel_code(plan: Plan, device: Device) -> tuple[Listing, Path]:
    """The machine code of a plan's kernel for a device, and the cubin that it is in."""
    nvcc, nvdisasm = find_nvcc(), find_nvdisasm()
    if nvcc is None or nvdisasm is None:
        raise RuntimeError("the model needs nvcc, and nvdisasm of nvidia-cuda-nvdisasm")
    way = "backward" if plan.backward else "forward"
    source = SOURCES / "persistent" / f"{way}_{_FILES[plan.product]}.cu"
    resources = compile_all(nvcc, [source], [device.target])
    found = [r for r in resources if r.name == plan.kernel]
    if len(found) != 1:
        raise ValueError(f"{plan.kernel}: not among {sorted(r.name for r in resources)}")
    cubin = cubin_path(source, device.target)
    return _listings(nvdisasm, cubin, cubin.stat().st_mtime_ns)[found[0].symbol], cubin


@cache
def _listings(nvdisasm: str, cubin: Path, _time: int) -> dict[str, Listing]:
    return disassemble(nvdisasm, cubin)
