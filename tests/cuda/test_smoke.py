# SPDX-License-Identifier: BSD-3-Clause
"""The smoke calls: that they run, and that on every device they reach every persistent kernel."""

import re
from dataclasses import replace
from functools import cache

import pytest
import torch

from benchmarks.gpu import smoke
from lstm_fused.info import cuda_plan_text
from tools.cuda_report.cubins import SOURCES
from tools.cuda_report.facts import DEVICES
from tools.cuda_report.plans import CTA_CHUNKS, PRODUCTS, Plan, operand_bytes, read_plan

WAYS = ("forward", "backward")
BLOCK_SIZES = {product: CTA_CHUNKS[operand_bytes(kind)] for kind, product in PRODUCTS.items()}
PRODUCT_OF = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
devices = pytest.mark.parametrize("device", DEVICES)


@pytest.mark.parametrize("case", smoke.CASES, ids=str)
def test_smoke_calls_run(case: smoke.SmokeCase) -> None:
    assert smoke.refusal_of(case, "cpu") == ""


def persistent_kernels() -> set[str]:
    """The names of the persistent kernels, from the sources."""
    text = "".join(path.read_text() for path in SOURCES.rglob("persistent/*.cuh"))
    names = re.findall(r"__global__ void __launch_bounds__\([^{;]*?\b(\w+_kernel)\(", text)
    assert len(names) == len(set(names)) == len(re.findall("__global__", text))
    return set(names)


@cache
def texts_of(case: smoke.SmokeCase, device: str) -> tuple[str, str]:
    """The plans of a call's forward and backward on a device."""
    sizes = (case.T, case.N, 13, case.H, case.projection, 1 + case.bidirectional)
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, case.tf32
    cell = list(smoke.CELLS).index(case.cell)
    facts = DEVICES[device].facts
    try:
        with smoke.variant(case):
            forward, backward = (
                cuda_plan_text(*sizes, case.dtype, way, facts, cell=cell) for way in (False, True)
            )
    finally:
        matmul.allow_tf32 = before
    return forward, backward


def plans_of(case: smoke.SmokeCase, device: str) -> list[Plan]:
    """Those of them that are persistent."""
    if case.dtype == "float64":
        return []
    product = "tf32" if case.tf32 else PRODUCT_OF[case.dtype]
    found = (
        read_plan(text, product, case.N, case.H, bool(backward))
        for backward, text in enumerate(texts_of(case, device))
    )
    return [replace(plan, options=bool(case.cell)) for plan in found if plan is not None]


@devices
def test_smoke_calls_reach_every_kernel_with_every_product(device: str) -> None:
    """Products are those that are compiled: options have no groups of float32 products."""
    reached = {plan.kernel for case in smoke.CASES for plan in plans_of(case, device)}
    families = {tuple(re.split("[<,>]", kernel)[:2]) for kernel in reached}
    wanted = {(name, product) for name in persistent_kernels() for product in PRODUCTS.values()}
    wanted -= {(f"persistent_group_option_{way}_kernel", "F32Product") for way in WAYS}
    assert families == wanted

    # One block: both sizes, and those that H fills in 16 bits, for which there are kernels besides.
    blocks = {kernel for kernel in reached if "group" not in kernel}
    wanted_blocks = set()
    for way in WAYS:
        for product, sizes in BLOCK_SIZES.items():
            for chunks in sizes:
                wanted_blocks.add(f"persistent_option_{way}_kernel<{product}, {chunks}>")
                for full in ("false", "true")[: 1 + (sizes == CTA_CHUNKS[2])]:
                    arguments = f"{product}, {chunks}, {full}, {full}"
                    wanted_blocks.add(f"persistent_{way}_kernel<{arguments}>")
    assert blocks == wanted_blocks


@devices
def test_smoke_calls_reach_groups_of_one_tile_and_of_several(device: str) -> None:
    """By kernels that have code for both."""
    groups = [(case, p) for case in smoke.CASES for p in plans_of(case, device) if p.group]
    tiles: dict[str, set[bool]] = {}
    for _, plan in groups:
        tiles.setdefault(plan.kernel.split("<")[0], set()).add(plan.group_tiles > 1)
    assert tiles["persistent_group_forward_kernel"] == {False, True}
    assert tiles["persistent_group_option_backward_kernel"] == {False, True}
    assert {plan.units for _, plan in groups if plan.backward} == {16, 32}
    assert any(case.bidirectional and plan.group_tiles > 1 for case, plan in groups)
    assert any(case.ragged and plan.group_tiles > 1 for case, plan in groups)


@devices
def test_smoke_calls_reach_stepwise(device: str) -> None:
    """Stepwise calls of each cell, with projection and without."""
    found = {
        (case.cell, case.dtype, case.projection > 0, bool(backward))
        for case in smoke.CASES
        for backward, text in enumerate(texts_of(case, device))
        if text.startswith("stepwise")
    }
    kinds = [("", "float64", False), ("", "float32", True), ("", "bfloat16", False)]
    kinds += [("options", "float32", True), ("norms", "bfloat16", False)]
    assert {(*kind, backward) for kind in kinds for backward in (False, True)} <= found
