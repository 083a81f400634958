# SPDX-License-Identifier: BSD-3-Clause
"""What nvcc made of the CUDA kernels, against what their plans promise; no GPU, nothing is run."""

from functools import cache
from hashlib import md5
from pathlib import Path

import pytest

from tools.cuda_on_cpu.build import missing
from tools.cuda_report import bounds
from tools.cuda_report.__main__ import OUTPUT
from tools.cuda_report.cubins import (
    SOURCES,
    TARGETS,
    Resources,
    compile_all,
    kernel_sources,
    parse_log,
    source_name,
)
from tools.cuda_report.facts import DEVICES
from tools.cuda_report.occupancy import blocks_per_sm
from tools.cuda_report.plans import plan_of
from tools.nvcc import find_nvcc

ROOT = Path(__file__).resolve().parents[2]
TARGET = "80"
KERNELS = kernel_sources()


@cache
def emulated_logs() -> dict[str, Path]:
    """ptxas's logs of this tree's emulated kernels, by source, where they are up to date."""
    if missing():
        return {}
    newest = max(path.stat().st_mtime for path in SOURCES.rglob("*") if path.is_file())
    directory = ROOT / "build" / "cuda_on_cpu" / "build" / f"sm_{TARGET}"
    found = {}
    for source in KERNELS:
        path = md5(str(source).encode()).hexdigest()[:8]  # as CudaOnCpu.cmake names its outputs
        for log in directory.glob(f"{source.stem}-{path}-*.log"):
            if log.stat().st_mtime > newest:
                found[source_name(source)] = log
    return found


@cache
def resources() -> tuple[Resources, ...]:
    """The kernels' resources: read from an earlier build where there is one, or compiled."""
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("needs nvcc")
    found: list[Resources] = []
    for source in KERNELS:
        if log := emulated_logs().get(source_name(source)):
            found += parse_log(log.read_text(), source_name(source), TARGET)
    have = {r.source for r in found}
    missing_ones = [source for source in KERNELS if source_name(source) not in have]
    return (*found, *compile_all(nvcc, missing_ones, [TARGET]))


@pytest.mark.parametrize("source", [source_name(source) for source in KERNELS])
def test_kernels_keep_to_their_plans(source: str) -> None:
    device = next(d for d in DEVICES.values() if d.target == TARGET)
    kernels = [r for r in resources() if r.source == source]
    assert kernels
    faults = [fault for r in kernels for fault in bounds.find_faults(r, device)]
    assert not faults, "\n".join(faults)


def test_no_kernel_of_the_report_spills_on_any_target() -> None:
    """The committed table: of all targets, which take too long to compile here."""
    header, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in OUTPUT.read_text().splitlines()
        if line.startswith(("| kernel | target |", "| `"))
    ]
    rows = [row for row in rows if len(row) == len(header)]  # tables below are of other things
    places = [header.index(name) for name in ("target", "spilled bytes st/ld", "local bytes")]
    found = {target: set() for target in TARGETS}
    for row in rows:
        target, spilled, local = (row[place] for place in places)
        assert (spilled, local) == ("0/0", "0"), row
        found[target.split()[0]].add(row[0].strip("`"))
    names = {r.name for r in resources()}
    assert all(names <= of_target for of_target in found.values())


def test_every_planned_kernel_is_compiled() -> None:
    names = {r.name for r in resources()}
    for device in DEVICES.values():
        planned = bounds.planned_shared(device.name)
        assert planned and planned.keys() <= names


def test_plans_leave_room_for_their_blocks() -> None:
    """A block of a group takes an SM for itself, on every device, of all registers."""
    for device in DEVICES.values():
        for shared in bounds.planned_shared(device.name).values():
            assert blocks_per_sm(device, 256, 255, shared) == 1


def make_resources(**changes: object) -> Resources:
    values: dict[str, object] = {
        **{"name": "persistent_group_forward_kernel<Bf16Product>", "symbol": "s", "source": "a.cu"},
        **{"target": "80", "registers": 255, "static_shared": 0},
        **{"stack": 0, "spill_stores": 0, "spill_loads": 0},
    }
    return Resources(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"spill_stores": 8, "spill_loads": 4}, "spills: 8 bytes stored, 4 loaded"),
        ({"stack": 16}, "16 bytes of local memory"),
        ({"static_shared": 4096}, "4096 bytes of static shared memory, plans know 0"),
        ({"static_shared": 160 << 10}, "does not fit an SM of A100"),
        (
            {"name": "persistent_forward_kernel<F16Product, 4, false, false>", "registers": 129},
            "does not fit",
        ),
        ({"name": "forward_step_kernel<float, 4>", "registers": 255}, "occupancy 12%"),
    ],
)
def test_faults_are_found(changes: dict[str, object], fault: str) -> None:
    assert not bounds.find_faults(make_resources(), DEVICES["A100"])
    found = "\n".join(bounds.find_faults(make_resources(**changes), DEVICES["A100"]))
    assert fault in found


def test_occupancy_is_that_of_nvidias_calculator() -> None:
    """Worked by hand from cuda_occupancy.h."""
    a100, rtx_4090 = DEVICES["A100"], DEVICES["RTX 4090"]
    assert blocks_per_sm(a100, 512, 128, 7168) == 1  # registers: 16 warps x 4096
    assert blocks_per_sm(a100, 128, 32, 0) == 16  # threads
    assert blocks_per_sm(a100, 32, 16, 0) == 32  # blocks
    assert blocks_per_sm(a100, 128, 72, 0) == 7  # 72 x 32 = 2304 registers: 7 warps of a scheduler
    assert blocks_per_sm(a100, 128, 32, 60 << 10) == 2  # shared memory
    assert blocks_per_sm(rtx_4090, 128, 32, 0) == 12
    assert blocks_per_sm(rtx_4090, 256, 255, 100 << 10) == 0  # more than a block may ask for


def test_plans_are_read_from_their_text() -> None:
    plan = plan_of("bf16", 16, 768, False, DEVICES["H100"])
    assert plan is not None and plan.group
    assert (plan.threads, plan.group_blocks * plan.units) == (256, 768)
    assert plan.kernel == "persistent_group_forward_kernel<Bf16Product>"
    one = plan_of("tf32", 9, 96, True, DEVICES["A100"])
    assert one is not None and not one.group
    assert (one.threads, one.groups, one.kernel) == (
        *(384, 2),
        "persistent_backward_kernel<Tf32Product, 6, false, false>",
    )
    many = plan_of("fp32", 9, 96, True, DEVICES["A100"])
    assert many is not None and many.group
    assert (many.threads, many.groups, many.group_blocks, many.units) == (256, 2, 6, 16)
    assert plan_of("fp32", 64, 4096, False, DEVICES["A100"]) is None


def test_ptxas_log_is_read() -> None:
    text = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN3foo1kIfLi4EEEvi' for 'sm_80'
ptxas info    : Function properties for _ZN3foo1kIfLi4EEEvi
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 1024 bytes smem, 360 bytes cmem[0]
"""
    (kernel,) = parse_log(text, "a.cu", "80")
    assert (kernel.name, kernel.registers, kernel.static_shared) == ("k<float, 4>", 40, 1024)
    assert (kernel.stack, kernel.spill_stores, kernel.spill_loads) == (16, 8, 4)
