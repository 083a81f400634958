# SPDX-License-Identifier: BSD-3-Clause
"""Timing of machine code: counts of cycles worked by hand, from the latencies of latencies.py."""

import pytest
from kit.sass import listing

from tools.cuda_report.arguments import ARRAY_SPACE, ARRAY_START, Arguments
from tools.cuda_report.facts import DEVICES
from tools.cuda_report.latencies import Latencies, latencies_of
from tools.cuda_report.pipeline import Simulation
from tools.cuda_report.sass.flow import Flow
from tools.cuda_report.sass.memory import Memory
from tools.cuda_report.sass.walk import Launch, walk
from tools.cuda_report.sass.warp import Constants
from tools.cuda_report.step_time import critical_path
from tools.cuda_report.times import CAUSES, columns_of

HIGH, LOW = divmod(ARRAY_SPACE + ARRAY_START, 2**32)
# R2: the first array's address; R0: the thread. Without waits, for tests that begin behind it.
ADDRESS = (f"MOV R2, {LOW:#x}", f"MOV R3, {HIGH:#x}", "S2R R0, SR_TID.X")


def simulate(*lines: str, warps: int = 1, first: int = 0, array: str = "x") -> Simulation:
    """Times a block that runs these lines, from the line `first` on."""
    code = listing(*lines)
    memory = Memory(Arguments(b"", b"", [array]), {})
    walked = walk(Flow(code), Constants(b"", b""), Launch(32 * warps, (1, 1, 1)), memory)
    simulation = Simulation(code, [steps[first:] for steps in walked.warps], Latencies())
    simulation.run()
    return simulation


def times(simulation: Simulation, warp: int = 0) -> list[int]:
    return [issued.time for issued in simulation.warps[warp].issued]


def causes(simulation: Simulation, warp: int = 0) -> list[str]:
    return [issued.cause for issued in simulation.warps[warp].issued]


def test_stalls_and_scoreboards_of_one_warp() -> None:
    found = simulate(
        "LDS R0, [RZ] ; stall=1 write=0",  # one wavefront: there 30 cycles later
        "FADD R1, R0, R0 ; stall=4 waits=0",
        "FADD R2, R1, R1 ; stall=5",
        "EXIT ;",
    )
    assert times(found) == [0, 30, 34, 39]
    assert causes(found) == ["fixed", "shared memory", "fixed", "fixed"]
    assert critical_path(found, 3, 0) == {"shared memory": 30, "issue": 2, "fixed stalls": 7}
    assert critical_path(found, 3, 20) == {"shared memory": 10, "issue": 2, "fixed stalls": 7}


def test_warps_of_a_scheduler_share_its_pipes() -> None:
    """Warps 0 and 4: an integer addition takes the pipe for two cycles; the same warp goes on."""
    lines = [f"IADD3 R{n}, R{n}, 0x1, RZ ; stall=1" for n in range(3)]
    found = simulate(*lines, "EXIT ;", warps=5)
    assert times(found, 0) == [0, 2, 4, 5]
    assert times(found, 4) == [6, 8, 10, 11]
    assert times(found, 1) == [0, 2, 4, 5]  # of another scheduler
    holders = [
        (found.warps[n].issued[m].held, found.warps[n].issued[m].holder)
        for n, m in ((0, 1), (4, 0))
    ]
    assert holders == [(1, "ALU pipe taken"), (6, "other warps issue")]
    assert critical_path(found, 2, 0) == {"issue": 2, "ALU pipe taken": 2}


def test_a_scheduler_goes_on_with_its_warp() -> None:
    """Warp 4 is ahead; warp 0, ready at 8, has to wait until it ends."""
    found = simulate(
        *("S2R R0, SR_TID.X", "ISETP.GE.AND P0, PT, R0, 0x80, PT", "@P0 BRA `(.L_x_0) ; stall=2"),
        *("NOP ; stall=6", ".L_x_0:", *["NOP"] * 8, "EXIT"),  # the first one of warps 0 to 3 only
        warps=5,
        first=2,
    )
    assert times(found, 4) == [1, *range(3, 12)]
    assert times(found, 0) == [0, 2, *range(12, 21)]


def test_the_unit_of_special_functions_takes_a_warp_in_eight_cycles() -> None:
    found = simulate(
        "MUFU.EX2 R0, R1 ; stall=1 write=0", "FADD R0, R0, R0 ; waits=0", "EXIT ;", warps=5
    )
    assert (times(found, 0), times(found, 4)) == ([0, 24, 25], [8, 32, 33])


def test_memory_serves_all_schedulers_in_turn() -> None:
    """Conflicts: a warp's 32 lanes in one bank take 32 wavefronts; another warp's come behind."""
    found = simulate(
        *("S2R R0, SR_TID.X", "SHF.L.U32 R1, R0, 0x7, RZ"),
        "LDS R2, [R1] ; stall=1 write=0",
        "FADD R2, R2, R2 ; waits=0",
        "EXIT ;",
        warps=2,
        first=2,
    )
    assert times(found, 0) == [0, 31 + 30, 62]
    assert times(found, 1) == [0, 32 + 31 + 30, 94]


def test_l2_gives_a_block_so_many_bytes_a_cycle() -> None:
    """128 bytes of a warp take two cycles at 64 bytes each; four loads of it are in flight."""
    loads = [f"LDG.E R{4 + n}, [R6.64+{n * 128:#x}] ; stall=1 write={n}" for n in range(4)]
    lines = (*ADDRESS, "IMAD.WIDE R6, R0, 0x4, R2", *loads)
    found = simulate(
        *lines, "FADD R0, R4, R4 ; waits=0", "FADD R0, R7, R7 ; waits=3", "EXIT", first=4
    )
    assert times(found) == [0, 2, 4, 6, 282, 288, 289]
    assert causes(found)[4:6] == ["L2 load", "L2 load"]


def test_a_barrier_holds_until_the_last_warp_comes() -> None:
    lines = (
        *("S2R R0, SR_TID.X", "ISETP.GE.AND P0, PT, R0, 0x20, PT", "@!P0 BRA `(.L_x_0) ; stall=5"),
        *("NOP ; stall=15", "NOP ; stall=15", "NOP ; stall=10"),  # of warp 1 only
        *(".L_x_0:", "BAR.SYNC.DEFER_BLOCKING 0x0 ; stall=5", "NOP", "EXIT"),
    )
    found = simulate(*lines, warps=2, first=2)
    assert times(found, 0) == [0, 5, 45 + 20, 66]
    assert times(found, 1) == [0, 5, 20, 35, 45, 65, 66]
    assert critical_path(found, 2, 0) == {"barrier": 20, "issue": 4, "fixed stalls": 41}


EXCHANGE = (
    *(*ADDRESS, "LOP3.LUT R4, R0, 0x1f, RZ, 0xc0, !PT", "IMAD.WIDE R6, R4, 0x4, R2"),
    *("ISETP.GE.AND P0, PT, R0, 0x20, PT", "@!P0 BRA `(.L_x_0) ; stall=5"),
    *("NOP ; stall=15", "NOP ; stall=15", "NOP ; stall=10"),  # warp 1 comes 40 cycles later
    *(".L_x_0:", "STG.E.STRONG.GPU [R6.64], R0 ; stall=2 read=1"),
    *("LDG.E.STRONG.GPU R8, [R6.64] ; stall=1 write=0", "FADD R8, R8, R8 ; waits=0", "EXIT"),
)


def test_what_blocks_exchange_comes_a_hop_after_the_slowest_store() -> None:
    """Warp 1 stores at 45: 500 cycles to the other block, two for the bytes, and two more for the
    second warp's, which loads later."""
    found = simulate(*EXCHANGE, warps=2, first=6, array="exchange")
    assert times(found, 0) == [0, 5, 7, 45 + 500 + 2, 548]
    assert times(found, 1)[-2:] == [45 + 500 + 4, 550]
    assert causes(found)[3] == "exchange"
    assert critical_path(found, 3, 0) == {"exchange": 502, "issue": 4, "fixed stalls": 41}


def test_what_a_block_reads_of_its_own_is_no_exchange() -> None:
    found = simulate(*EXCHANGE, warps=2, first=6, array="direction[0].y")
    assert times(found, 0) == [0, 5, 7, 7 + 282, 290]


def test_a_wait_for_a_store_that_waits_for_it_is_refused() -> None:
    load = "LDG.E.STRONG.GPU R8, [R2.64] ; write=0"
    store = "STG.E.STRONG.GPU [R2.64], R8 ; waits=0"
    with pytest.raises(RuntimeError, match=r"warps \[0\] wait forever, at 0x40 STG.E.STRONG.GPU"):
        simulate(*ADDRESS, load, store, "EXIT", array="exchange")


def test_asynchronous_copies_are_waited_for() -> None:
    found = simulate(
        *(*ADDRESS, "IMAD.WIDE R6, R0, 0x4, R2", "IMAD.SHL.U32 R4, R0, 0x4, RZ"),
        "LDGSTS.E [R4], [R6.64] ; stall=4",
        "LDGDEPBAR ; stall=1 write=0",
        "DEPBAR.LE SB0, 0x0 ; stall=1",
        "EXIT",
        first=5,
    )
    assert times(found) == [0, 4, 282, 283]
    assert causes(found)[2] == "asynchronous copy"


def test_fences_hold_their_warp() -> None:
    assert times(simulate("MEMBAR.ALL.GPU ; stall=1", "NOP", "EXIT")) == [0, 500, 501]


def test_switched_off_instructions_cost_their_slot_only() -> None:
    found = simulate("@!PT LDS R0, [RZ] ; stall=1 write=0", "FADD R0, R0, R0 ; waits=0", "EXIT")
    assert times(found) == [0, 8, 9]


def test_latencies_follow_the_device() -> None:
    h100, a100 = (latencies_of(DEVICES[name], 48) for name in ("H100", "A100"))
    assert (h100.fma, a100.fma) == (1, 2)
    assert (round(h100.tensor, 2), a100.tensor) == (6.35, 8)
    assert (h100.dram_load, a100.dram_load) == (479, 466)
    assert h100.l2_bytes == 64
    assert latencies_of(DEVICES["H100"], 132).l2_bytes == pytest.approx(3942 / 132)


def test_causes_are_put_in_columns() -> None:
    split = {"L2 load": 5.0, "DRAM load": 2.0, "tensor pipe taken": 3.0, "constant": 1.0}
    columns = dict(zip((*CAUSES, "rest"), columns_of(split.items()), strict=True))
    assert columns == {**dict.fromkeys(columns, 0.0), "L2, DRAM": 7.0, "products": 3.0, "rest": 1.0}
