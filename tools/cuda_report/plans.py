# SPDX-License-Identifier: BSD-3-Clause
"""The product's own plans, read from their text.

The sizes are those of csrc/cuda/persistent/layout.h and plan.cpp.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from tools.cuda_report.facts import Device

PRODUCTS = {"bf16": "Bf16Product", "fp16": "F16Product", "tf32": "Tf32Product"} | {
    "fp32": "F32Product"
}
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "tf32": "float32", "fp32": "float32"}
CTA_CHUNKS = {2: (2, 4), 4: (3, 6)}  # by the bytes of an operand
TILE_ROWS, WARP_UNITS, CHUNK_BYTES, GATES = 8, 8, 64, 4
GROUP_WARPS, GROUP_THREADS, GROUP_CHUNKS = 8, 256, 8


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
    options: bool = False  # of the cell

    @property
    def chunks(self) -> int:
        """The chunks that a kernel of one block is compiled for."""
        size = operand_bytes(self.product)
        fitting = [c for c in CTA_CHUNKS[size] if self.hidden <= c * CHUNK_BYTES // size]
        return fitting[0]

    def warp_chunks(self, k_splits: int) -> int:
        """The chunks of each warp's part of K in the group forward."""
        part = -(-self.hidden * operand_bytes(self.product) // (CHUNK_BYTES * k_splits))
        in_pairs = self.product == "fp32" and part > GROUP_CHUNKS // 2
        return -(-part // 2) * 2 if in_pairs else part

    @property
    def kernel(self) -> str:
        way = "backward" if self.backward else "forward"
        product = PRODUCTS[self.product]
        way = f"option_{way}" if self.options else way
        if not self.group:
            name = f"persistent_{way}_kernel<{product}, {self.chunks}"
            if self.options:
                return f"{name}>"
            size = operand_bytes(self.product)
            full = str(size == 2 and self.hidden == self.chunks * CHUNK_BYTES // size).lower()
            return f"{name}, {full}, {full}>"
        units = f", {self.units}" if self.backward else ""
        single = "_single" if way == "backward" and self.group_tiles == 1 else ""
        return f"persistent_group_{way}{single}_kernel<{product}{units}>"


def plan_of(
    product: str, rows: int, hidden: int, backward: bool, device: Device, options: bool = False
) -> Plan | None:
    """The plan of a training step of one direction, of a cell with options or without; None where
    it is stepwise."""
    from lstm_fused._ops import native

    assert native.compiled is not None
    before = native.compiled.set_cuda_variant("auto")
    try:
        text = native.compiled.cuda_plan_text(
            *(1024, rows, hidden, hidden, 0, 1, DTYPES[product]),
            *(product == "tf32", True, backward, device.facts),
            *(False, "", "", int(options)),
        )
    finally:
        native.compiled.set_cuda_variant(before)
    plan = read_plan(text, product, rows, hidden, backward)
    return plan and replace(plan, options=options)


def read_plan(text: str, product: str, rows: int, hidden: int, backward: bool) -> Plan | None:
    common = (text, product, rows, hidden, backward)
    if found := re.search(
        r"a block of (\d+) threads(?: and (\d+) bytes of shared memory)? for each of (\d+) tile",
        text,
    ):
        threads, shared, tiles = (int(number or 0) for number in found.groups())
        return Plan(*common, False, threads, tiles, units=hidden, dynamic_shared=shared)
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
