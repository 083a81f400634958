# SPDX-License-Identifier: BSD-3-Clause
"""Times of a step of many shapes, from the machine code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from tools.cuda_report.facts import DEVICES
from tools.cuda_report.plans import PRODUCTS, plan_of
from tools.cuda_report.step_time import step_time
from tools.cuda_report.stepwise import stepwise_microseconds

# (product, N, H): one block, a group, and the shape of cuDNN's best published figure (H = 768).
SHAPES = (
    *(("bf16", 1, 64), ("bf16", 64, 128), ("bf16", 16, 256), ("bf16", 16, 768)),
    *(("bf16", 64, 512), ("bf16", 64, 1024)),
    *(("tf32", 64, 96), ("tf32", 16, 256), ("tf32", 16, 512), ("tf32", 64, 1024)),
    *(("fp32", 1, 64), ("fp32", 64, 96), ("fp32", 16, 256), ("fp32", 16, 512)),
)
# (N, H) that the kernels are to be fast for on an H100, with all products.
GOAL_DEVICE = "H100"
FORWARD_GOALS = ((16, 768), (16, 256), (64, 512), (64, 1024), (8, 64), (8, 128))
BACKWARD_GOALS = ((16, 768), (8, 128), (8, 64))

# The columns of a split, and the causes that they have: beginnings of their names.
CAUSES = {
    "issue": ("issue",),
    "fixed stalls": ("fixed stalls",),
    "products": ("HMMA", "tensor"),
    "L2, DRAM": ("L2", "DRAM", "asynchronous copy"),
    "exchange": ("exchange", "MEMBAR"),
    "shared": ("shared memory", "memory pipe"),
    "MUFU": ("MUFU", "conversion"),
    "barriers": ("barrier",),
    "other warps": ("other warps", "ALU pipe", "IMAD pipe", "FMA pipe", "half pipe"),
}
REST = "rest"


@dataclass(frozen=True)
class Case:
    product: str
    rows: int
    hidden: int
    backward: bool
    inference: bool
    device: str


@dataclass(frozen=True)
class Time:
    """A case's time, and what the plan is; nothing but the stepwise time where there is none."""

    case: Case
    stepwise: float  # microseconds
    plan: str = "stepwise"
    blocks: str = ""
    l2_bytes: float = 0  # of a block, a step
    shared_bytes: float = 0
    cycles: float = 0
    microseconds: float = 0
    split: tuple[float, ...] = ()  # cycles: columns of CAUSES, and the rest


def cases() -> list[Case]:
    """The shapes on all devices, in training; and the goals, in inference too."""
    found = [
        Case(*shape, backward, False, device)
        for shape in SHAPES
        for backward in (False, True)
        for device in DEVICES
    ]
    for product in ("fp16", *(p for p in PRODUCTS if p != "fp16")):
        for inference in (False, True):
            found += [
                Case(product, *shape, False, inference, GOAL_DEVICE) for shape in FORWARD_GOALS
            ]
        found += [Case(product, *shape, True, False, GOAL_DEVICE) for shape in BACKWARD_GOALS]
    return list(dict.fromkeys(found))


def times_of(wanted: Sequence[Case], jobs: int) -> list[Time]:
    """Models each case, so many at once; kernels are compiled where they are not yet."""
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(time_of, wanted))


def time_of(case: Case) -> Time:
    device = DEVICES[case.device]
    shape = (case.product, case.rows, case.hidden, case.backward, device)
    plan, stepwise = plan_of(*shape), stepwise_microseconds(*shape)
    if plan is None:
        return Time(case, stepwise)
    found = step_time(plan, device, case.inference)
    return Time(
        case=case,
        stepwise=stepwise,
        plan="group" if plan.group else "one block",
        blocks=f"{plan.groups} × {plan.group_blocks}" if plan.group else str(plan.groups),
        l2_bytes=found.l2_bytes,
        shared_bytes=found.shared_bytes,
        cycles=found.cycles,
        microseconds=found.microseconds(device),
        split=columns_of(found.split.items()),
    )


def columns_of(split: Iterable[tuple[str, float]]) -> tuple[float, ...]:
    """Cycles by the columns of CAUSES; the last column is the rest."""
    found = dict.fromkeys((*CAUSES, REST), 0.0)
    for cause, cycles in split:
        names = (name for name, begins in CAUSES.items() if cause.startswith(begins))
        found[next(names, REST)] += cycles
    return tuple(found.values())
