# SPDX-License-Identifier: BSD-3-Clause
"""The product's own plans, read from their text, and what a step of one moves and computes.

The sizes are those of csrc/cuda/persistent/layout.h and plan.cpp.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from tools.cuda_report.facts import Device

PRODUCTS = {"bf16": "Bf16Product", "fp16": "F16Product", "tf32": "Tf32Product"} | {
    "fp32": "F32Product"
}
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "tf32": "float32", "fp32": "float32"}
CTA_CHUNKS = {2: (2, 4), 4: (3, 6)}  # by the bytes of an operand
TILE_ROWS, WARP_UNITS, CHUNK_BYTES, GATES = 8, 8, 64, 4
GROUP_WARPS, GROUP_THREADS, GROUP_CHUNKS, BACKWARD_VECTORS = 8, 256, 8, 16


def operand_bytes(product: str) -> int:
    return 2 if product in ("bf16", "fp16") else 4


@dataclass(frozen=True)
class Plan:
    text: str
    product: str
    rows: int
    hidden: int
    backward: bool
    group: bool
    threads: int
    groups: int  # one block: tiles of rows
    group_blocks: int = 1
    group_tiles: int = 1
    units: int = 0  # per block
    dynamic_shared: int = 0

    @property
    def chunks(self) -> int:
        """The chunks that a kernel of one block is compiled for."""
        size = operand_bytes(self.product)
        fitting = [c for c in CTA_CHUNKS[size] if self.hidden <= c * CHUNK_BYTES // size]
        return fitting[0]

    @property
    def kernel(self) -> str:
        way = "backward" if self.backward else "forward"
        product = PRODUCTS[self.product]
        if not self.group:
            return f"persistent_{way}_kernel<{product}, {self.chunks}>"
        units = f", {self.units}" if self.backward else ""
        return f"persistent_group_{way}_kernel<{product}{units}>"


def plan_of(product: str, rows: int, hidden: int, backward: bool, device: Device) -> Plan | None:
    """The plan of a training step of one direction; None where it is stepwise."""
    from lstm_fused._ops import native

    assert native.compiled is not None
    before = native.compiled.set_cuda_variant("auto")
    try:
        text = native.compiled.cuda_plan_text(
            *(1024, rows, hidden, hidden, 0, 1, DTYPES[product]),
            *(product == "tf32", True, backward, device.facts),
        )
    finally:
        native.compiled.set_cuda_variant(before)
    return read_plan(text, product, rows, hidden, backward)


def read_plan(text: str, product: str, rows: int, hidden: int, backward: bool) -> Plan | None:
    common = (text, product, rows, hidden, backward)
    if found := re.search(r"a block of (\d+) threads for each of (\d+) tile", text):
        return Plan(*common, False, int(found[1]), int(found[2]), units=hidden)
    found = re.search(
        r"(\d+) group\(s\) x (\d+) blocks of (\d+) threads and (\d+) bytes of shared memory, "
        r"(\d+) tile\(s\) of 8 rows each, (\d+) units a block",
        text,
    )
    if found is None:
        assert text.startswith("stepwise"), text
        return None
    groups, blocks, threads, shared, tiles, units = map(int, found.groups())
    return Plan(*common, True, threads, groups, blocks, tiles, units, shared)


@dataclass(frozen=True)
class Work:
    """What a block does in a step."""

    products: float  # mma.sync, or FFMA, of each warp
    shared_bytes: float  # read from shared memory and written to it
    exchanged_bytes: float  # between blocks, through L2, read and written
    stream_bytes: float  # the sequence's own: pre-activations, gates, cells, outputs


def work_of(plan: Plan) -> Work:
    size = operand_bytes(plan.product)
    tiles, warps = plan.group_tiles, plan.threads // 32
    tile_rows = tiles * TILE_ROWS
    chunks = -(-plan.hidden * size // CHUNK_BYTES)
    per_chunk = 64.0 if plan.product == "fp32" else 2.0  # for two rows of weights: 4 x 16 FFMA
    # Forward: reads float pre-activations, writes gates, c, y. Backward: reads gates, c (of two
    # steps, one kept in a register), dy, writes gradients of the gates.
    stored = (8 if plan.backward else 5) * size + (4 if plan.backward else 20)
    stream = float(stored + (size if plan.backward else 0)) * tile_rows * plan.units
    # NOTE: for FFMA the eight units of a warp read the same 64 bytes of a row, but 16-byte accesses
    # go by quarters of a warp, each of which takes the time of 128 bytes; and twice in a step, for
    # half of the rows each, weights come from shared memory.
    spread, passes = (8, 2) if plan.product == "fp32" else (1, 1)
    if not plan.group:
        # A lane holds as many weights in both passes; in the backward two warps share K.
        products = plan.chunks * GATES / 2 * per_chunk
        tile = TILE_ROWS * plan.chunks * CHUNK_BYTES * (GATES / 2 if plan.backward else 1)
        is_larger = plan.chunks == CTA_CHUNKS[size][1]
        shared_weights = 2 * 2 * 16 * plan.threads * passes if plan.backward and is_larger else 0
        exchanged = 2 * 8 * plan.threads if plan.backward else 0
        return Work(
            products, tile * warps * spread + tile + shared_weights + exchanged, 0.0, stream
        )
    lane_bytes = 16 * GROUP_THREADS
    if not plan.backward:
        splits = GROUP_WARPS * WARP_UNITS // plan.units
        warp_chunks = -(-chunks // splits)
        shared_weights = max(0, warp_chunks - GROUP_CHUNKS) * GATES * lane_bytes * tiles * passes
        h_bytes = tile_rows * splits * warp_chunks * CHUNK_BYTES
        read = warps * tile_rows * warp_chunks * CHUNK_BYTES * spread
        partials = 2 * 2 * tiles * lane_bytes
        exchanged = h_bytes + tile_rows * plan.units * size
        products = tiles * warp_chunks * GATES / 2 * per_chunk
        return Work(products, h_bytes + read + shared_weights + partials, exchanged, stream)
    unit_chunks = plan.units * GATES * size // CHUNK_BYTES
    output_tiles = math.ceil(math.ceil(plan.hidden / (2 * WARP_UNITS)) / GROUP_WARPS)
    vectors = output_tiles * unit_chunks
    shared_weights = max(0, vectors - BACKWARD_VECTORS) * 2 * lane_bytes * tiles * passes
    tile = tile_rows * unit_chunks * CHUNK_BYTES
    part = 4 * plan.group_blocks * plan.units * tile_rows
    products = tiles * vectors * per_chunk
    return Work(
        products, tile + warps * output_tiles * tile * spread + shared_weights, 2.0 * part, stream
    )
