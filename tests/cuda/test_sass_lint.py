# SPDX-License-Identifier: BSD-3-Clause
"""What the machine code of the persistent kernels must not have in its loops of time steps."""

import pytest
from kit.sass import listing

from tools.cuda_report.arguments import Arguments
from tools.cuda_report.cubins import compile_all, cubin_path, kernel_sources, source_name
from tools.cuda_report.facts import DEVICES
from tools.cuda_report.launch import kernel_code, walk_plan
from tools.cuda_report.lint import lint_loops, lint_steps
from tools.cuda_report.plans import plan_of
from tools.cuda_report.sass.decode import disassemble, find_nvdisasm
from tools.cuda_report.sass.flow import Flow
from tools.cuda_report.sass.memory import Memory
from tools.cuda_report.sass.walk import Launch, walk
from tools.cuda_report.sass.warp import Constants
from tools.nvcc import find_nvcc

NAMES = ("H100",)  # each more target takes minutes to compile
SOURCES = [source for source in kernel_sources() if source.parent.name == "persistent"]
# Kernels of groups of blocks, as (product, N, H, backward): every product, both numbers of units
# of the backward kernels, and one, two and three pieces of h for a lane of the forward.
GROUPS = (
    *(("fp16", 16, 256, False), ("fp16", 16, 768, True), ("fp16", 64, 512, True)),
    *(("bf16", 16, 768, False), ("bf16", 16, 768, True)),
    *(("tf32", 16, 256, False), ("tf32", 16, 256, True)),
    *(("fp32", 16, 256, False), ("fp32", 64, 256, True)),
)

needs_compiler = pytest.mark.skipif(
    find_nvcc() is None or find_nvdisasm() is None, reason="needs nvcc and nvdisasm"
)


@needs_compiler
@pytest.mark.parametrize("source", SOURCES, ids=source_name)
@pytest.mark.parametrize("name", NAMES)
def test_loops_of_time_steps_are_clean(name: str, source: object) -> None:
    nvcc, nvdisasm, target = find_nvcc(), find_nvdisasm(), DEVICES[name].target
    assert nvcc is not None and nvdisasm is not None
    kernels = compile_all(nvcc, [source], [target])
    listings = disassemble(nvdisasm, cubin_path(source, target))
    assert {kernel.symbol for kernel in kernels} == listings.keys()
    faults = []
    for kernel in kernels:
        flow = Flow(listings[kernel.symbol])
        assert flow.time_loop is not None, kernel.name
        faults += [f"{kernel.name}: {fault}" for fault in lint_loops(flow)]
    assert not faults, "\n".join(faults)


@needs_compiler
@pytest.mark.parametrize("shape", GROUPS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_steps_of_groups_are_clean(name: str, shape: tuple[str, int, int, bool]) -> None:
    device = DEVICES[name]
    plan = plan_of(*shape, device)
    assert plan is not None and plan.group
    code, cubin = kernel_code(plan, device)
    flow = Flow(code)
    faults = lint_steps(flow, walk_plan(flow, cubin, plan, steps=4))
    assert not faults, f"{plan.kernel}:\n" + "\n".join(faults)


def faults_of(*lines: str, array: str = "exchange") -> list[str]:
    """Faults of a loop of these lines, and of its steps."""
    code = listing(
        *("MOV R30, RZ", "MOV R3, 0x1800", "MOV R2, RZ", ".L_x_0:", *lines),
        *("IADD3 R30, R30, 0x1, RZ", "ISETP.NE.AND P0, PT, R30, 0x3, PT", "@P0 BRA `(.L_x_0)"),
        *(
            "EXIT",
            "$__internal_0_$__slowpath:",
            "$__internal_1_$__cuda_sm70_warpsync:",
            "RET.REL.NODEC R4 `(kernel)",
        ),
    )
    memory = Memory(Arguments(b"", b"", [array]), {})
    flow = Flow(code)
    walked = walk(flow, Constants(b"", b""), Launch(32, (1, 1, 1)), memory)
    return lint_loops(flow) + lint_steps(flow, walked)


BARRIER = "BAR.SYNC.DEFER_BLOCKING 0x0"
LOAD, STORE = "LDG.E.128.STRONG.GPU", "STG.E.STRONG.GPU [R2.64], R16"


@pytest.mark.parametrize(
    ("lines", "faults"),
    [
        (
            ("@!PT CALL.REL.NOINC `($__internal_0_$__slowpath)", BARRIER),
            ["calls a function, as the slow path of a division: 0x30"],
        ),
        ((BARRIER, "STL [R1], R0"), ["uses local memory: 0x40"]),
        (
            (BARRIER, "LDG.E.CONSTANT R4, [R2.64]"),
            ["loads as constant what may be written: 0x40"],
        ),
        (
            (BARRIER, "LDG.E R4, [R2.64]", STORE),
            ["loads what blocks exchange by no strong access: 0x40"],
        ),
        (
            (f"{LOAD} R4, [R2.64]", BARRIER, "STG.E [R2.64], R16"),
            ["stores what blocks exchange by no strong access: 0x50"],
        ),
        ((BARRIER, "MEMBAR.SC.GPU"), ["waits for a fence: 0x40"]),
        (
            (
                *(f"{LOAD} R4, [R2.64]", "STS.128 [RZ], R4"),
                *(f"{LOAD} R8, [R2.64]", "STS.128 [RZ+0x10], R8", BARRIER),
            ),
            ["loads to shared memory only after an earlier load's data: 0x50"],
        ),
        # All is well: loads together, or a barrier between; a jump; a fence that nobody executes.
        (
            (
                *(f"{LOAD} R4, [R2.64]", f"{LOAD} R8, [R2.64]", "STS.128 [RZ], R4"),
                *("STS.128 [RZ], R8", BARRIER, f"{LOAD} R4, [R2.64]", "STS.128 [RZ], R4", BARRIER),
            ),
            [],
        ),
        (
            (f"{LOAD} R4, [R2.64]", BARRIER, STORE, "@!PT CALL.REL.NOINC `(.L_x_0)"),
            [],
        ),
        ((BARRIER, "@!PT MEMBAR.SC.GPU"), []),
        ((BARRIER, "@!PT CALL.REL.NOINC `($__internal_1_$__cuda_sm70_warpsync)"), []),
    ],
)
def test_faults_are_found(lines: tuple[str, ...], faults: list[str]) -> None:
    found = faults_of(*lines)
    assert len(found) == len(faults)
    assert all(text.startswith(fault) for text, fault in zip(found, faults, strict=True))


def test_code_outside_of_loops_may_have_what_loops_may_not() -> None:
    chain = ("LDG.E R4, [R2.64]", "STS [RZ], R4", "LDG.E R4, [R2.64]", "STS [RZ], R4")
    code = listing(
        *("MOV R2, RZ", "MOV R3, RZ", *chain, "MEMBAR.SC.GPU", ".L_x_0:", BARRIER),
        *("@!PT BRA `(.L_x_0)", "@!PT CALL.REL.NOINC `($f)", *chain, "EXIT", "$f:", "NOP"),
    )
    flow = Flow(code)
    memory = Memory(Arguments(b"", b"", []), {})
    walked = walk(flow, Constants(b"", b""), Launch(32, (1, 1, 1)), memory)
    assert lint_loops(flow) == lint_steps(flow, walked) == []


def test_arrays_of_a_direction_are_no_exchange() -> None:
    lines = ("LDG.E R4, [R2.64]", BARRIER, "STG.E [R2.64], R16")
    assert faults_of(*lines, array="direction[0].y") == []
    assert len(faults_of(*lines)) == 2
