# SPDX-License-Identifier: BSD-3-Clause
"""The emulated CUDA device: which instructions can be broken, beyond barriers and fences."""

import numpy as np
import pytest

from tools.cuda_on_cpu.build import missing
from tools.cuda_on_cpu.ptx import mutations, translate
from tools.cuda_on_cpu.ptx.mutate import find_mutations
from tools.cuda_on_cpu.ptx.syntax import parse_module
from tools.cuda_on_cpu.samples import Samples, ptx_of

KERNEL = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry kernel(.param .u64 x) {{
  .reg .pred %p<9>;
  .reg .b32 %r<9>;
  .reg .b64 %rd<9>;
  .shared .align 4 .b8 s[4];
  ld.param.u64 %rd1, [x];
{body}
  ret;
}}
"""
LOOK = """
  add.s32 %r5, %r5, 1;
  and.b32 %r6, %r5, 255;
  setp.ne.s32 %p2, %r6, 0;
  @%p2 bra NEXT;
  mov.u64 %rd2, %globaltimer;
  ld.relaxed.gpu.global.u32 %r7, [%rd1+64];
  setp.ne.s32 %p3, %r7, 0;
  @%p3 bra LATE;
  setp.gt.u64 %p4, %rd2, 1000;
  @%p4 bra LATE;
"""
LATE = """
LATE:
  st.relaxed.gpu.global.u32 [%rd1+64], 1;
OUT:
"""
LOOPS = {
    "a branch back": (
        "AGAIN: ld.acquire.gpu.global.u32 %r1, [%rd1];\nsetp.eq.s32 %p1, %r1, 0;\n@%p1 bra AGAIN;",
        ["fall through @%p1 bra AGAIN"],
    ),
    "a branch out, then a look at the time": (
        "AGAIN: ld.relaxed.gpu.global.v2.u32 {%r1, %r2}, [%rd1];\nxor.b32 %r3, %r1, %r2;\n"
        f"setp.eq.s32 %p1, %r3, 0;\n@%p1 bra OUT;\n{LOOK}\nNEXT: bra.uni AGAIN;\n{LATE}",
        ["take @%p1 bra OUT"],
    ),
    "a branch round the way out": (
        "AGAIN: ld.volatile.global.u32 %r1, [%rd1];\nsetp.ne.s32 %p1, %r1, 0;\n"
        f"@!%p1 bra MORE;\nbra.uni OUT;\nMORE:\n{LOOK}\nNEXT: bra.uni AGAIN;\n{LATE}",
        ["fall through @!%p1 bra MORE"],
    ),
    # What is missing is counted by branches, and what has come is stored.
    "words that come one by one": (
        "AGAIN: mov.u32 %r2, 0;\nld.relaxed.gpu.global.u32 %r1, [%rd1];\n"
        "setp.eq.s32 %p1, %r1, 0;\n@%p1 bra MISSING;\nst.shared.u32 [s], %r1;\n"
        f"bra.uni BOTH;\nMISSING: or.b32 %r2, %r2, 1;\nBOTH:\n{LOOK}\nNEXT:\n"
        f"setp.ne.s32 %p5, %r2, 0;\n@%p5 bra AGAIN;\nbra.uni OUT;\n{LATE}",
        ["fall through @%p5 bra AGAIN"],
    ),
    # The outer loop does not wait.
    "a loop within a loop": (
        "MORE: add.s32 %r2, %r2, 4;\nAGAIN: ld.relaxed.gpu.global.u32 %r1, [%rd1];\n"
        "setp.eq.s32 %p1, %r1, 0;\n@%p1 bra AGAIN;\nsetp.lt.s32 %p2, %r1, %r2;\n@%p2 bra MORE;",
        ["fall through @%p1 bra AGAIN"],
    ),
    "a loop that reads, and does not wait": (
        "AGAIN: ld.relaxed.gpu.global.u32 %r1, [%rd1];\nadd.s32 %r2, %r2, 1;\n"
        "st.global.u32 [%rd1+128], %r1;\nsetp.lt.s32 %p1, %r2, 9;\n@%p1 bra AGAIN;",
        [],
    ),
    "a loop over steps": (
        "AGAIN: ld.relaxed.gpu.global.u32 %r1, [%rd1];\nbar.sync 0;\nsetp.eq.s32 %p1, %r1, 0;\n"
        "@%p1 bra AGAIN;",
        ["remove bar.sync 0"],
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_wait_is_left_where_what_it_waits_for_has_come(name: str) -> None:
    body, expected = LOOPS[name]
    module = parse_module(KERNEL.format(body=body))
    found = [f"{m.kind} {m.text}" for m in find_mutations(module) if m.kind != "weaken"]
    assert found == expected


@pytest.mark.parametrize(
    ("vote", "alone"),
    (
        ("bar.red.or.pred %p1, 0, %p2;", "mov.pred %p1, %p2;"),
        ("@%p3 barrier.cta.red.and.pred %p1, 1, 64, !%p2;", "@%p3 not.pred %p1, %p2;"),
        ("@!%p3 bar.red.popc.u32 %r1, 0, %p2;", "@!%p3 selp.u32 %r1, 1, 0, %p2;"),
        ("bar.red.popc.u32 %r1, 0, !%p2;", "selp.u32 %r1, 0, 1, %p2;"),
    ),
)
def test_a_vote_at_a_barrier_becomes_a_vote_alone(vote: str, alone: str) -> None:
    # In a block of its own, whose names are made unique for the translation only.
    ptx = KERNEL.format(body=f"{{ .reg .pred %p<9>;\n{vote}\n}}")
    ((mutation, text),) = mutations(ptx)
    assert mutation.kind == "alone"
    assert text == ptx.replace(vote, alone)
    assert translate(text, "mutant").unsupported == {}


# ---- On the emulated device ----------------------------------------------------------------------

needs_nvcc = pytest.mark.skipif(missing() is not None, reason=str(missing()))
BLOCKS, STEPS = 4, 8


def exchange(checked: Samples) -> tuple[bytes, bool]:
    """Run the exchange of tagged words: the results, and whether a race or a late wait was seen."""
    raw = np.zeros(4 * 2 * 32 * BLOCKS + 16, np.uint8)
    area = raw[-raw.ctypes.data % 16 :][: 4 * 2 * 32 * BLOCKS].view(np.uint32)
    late, out = np.zeros(1, np.uint32), np.zeros(32 * BLOCKS, np.uint32)
    checked.device.clear_races()
    checked.run("run_exchange_right", area, late, out, BLOCKS, STEPS)
    return out.tobytes(), bool(late[0]) or checked.device.races != []


@needs_nvcc
@pytest.mark.parametrize("weak_memory", (0, 1))
def test_every_part_of_an_exchange_is_needed(checked: Samples, weak_memory: int) -> None:
    checked.device.set(weak_memory=weak_memory)
    right, is_seen = exchange(checked)
    assert not is_seen
    kernel = "exchange_kernelILNS_8ExchangeE0E"
    loaded = [m for m in checked.device.mutations if m.target == checked.arch]
    found = [m for m in loaded if kernel in m.function]
    assert sorted(m.kind for m in found) == ["alone", "remove", "take"]
    for mutation in found:
        caught = False
        for seed in (1, 2, 3):
            checked.device.set(seed=seed, mutation=mutation.number)
            out, is_seen = exchange(checked)
            assert checked.device.mutation_hits > 0
            caught |= is_seen or out != right
        assert caught, mutation


@needs_nvcc
def test_mutations_of_the_exchange_are_ptx() -> None:
    for mutation, text in mutations(ptx_of("weak_memory", 80)):
        if mutation.kind in ("alone", "take"):
            assert translate(text, "mutant").unsupported == {}
