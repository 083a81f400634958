# SPDX-License-Identifier: BSD-3-Clause
"""The emulated CUDA device: launches, barriers, deadlocks, memory errors, races, mutations."""

from typing import Any

import numpy as np
import pytest

from tools.cuda_on_cpu.build import missing
from tools.cuda_on_cpu.device import Device, LoadedMutation
from tools.cuda_on_cpu.ptx import PtxError, mutations, translate
from tools.cuda_on_cpu.samples import Samples, library, ptx_of

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

_RACES = ("reverse", "chain", "fence", "step", "scope", "copy", "named", "warp")


def floats(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


# ---- Launches ------------------------------------------------------------------------------------


def run_shift(samples: Samples, shared_bytes: int, opt_in: bool = False) -> int:
    a, b = floats(300), np.zeros(300, np.float32)
    status = samples.status("run_shift", a, b, 300, shared_bytes, int(opt_in))
    if status == 0:
        np.testing.assert_array_equal(b[:256], a[:256].reshape(-1, 2)[:, ::-1].ravel() + 3)
    return status


def test_launch(samples: Samples) -> None:
    assert run_shift(samples, 512) == 0


def test_dynamic_shared_memory_beyond_48_kib_must_be_asked_for(samples: Samples) -> None:
    samples.device.set(shared_per_block_optin=64 << 10)
    assert run_shift(samples, 65 << 10, opt_in=True) == 1
    assert "wanted at most 65536" in samples.device.last_error
    assert run_shift(samples, 49153) == 1
    assert "49153 bytes of dynamic shared memory, but 49152 allowed" in samples.device.last_error
    assert run_shift(samples, 49153, opt_in=True) == 0
    # The attribute stays set: put back what it was.
    assert run_shift(samples, 48 << 10, opt_in=True) == 0


def test_occupancy_follows_the_facts(samples: Samples) -> None:
    occupancy = samples._lib.occupancy
    assert occupancy(128, 0) == 16
    assert occupancy(1024, 0) == 2
    samples.device.set(max_threads_per_sm=1024)
    assert occupancy(1024, 0) == 1
    samples.device.set(shared_per_sm=100 << 10, shared_per_block_optin=99 << 10)
    assert occupancy(128, 40 << 10) == 2


def test_no_kernel_for_an_older_device(device: Device) -> None:
    device.set(compute_capability=80)
    assert run_shift(library("samples", 90), 512) == 209
    assert "compute capability, 80" in device.last_error


def test_cooperative_launch(samples: Samples) -> None:
    c = np.zeros((2, 16), np.float32)
    c[0] = np.arange(16)
    samples.run("run_ring", c, 16, 4)
    np.testing.assert_array_equal(c[0], (np.arange(16) + 4) % 16 + 4)
    samples.device.set(sm_count=1, max_threads_per_sm=512)
    assert samples.status("run_ring", c, 16, 4) == 720
    assert "16 blocks, but 8 are resident at a time" in samples.device.last_error


def test_a_device_may_refuse_cooperative_launches(samples: Samples) -> None:
    c = np.zeros((2, 16), np.float32)
    before = samples.device.get("kernel_launches")
    samples.device.set(refuse_cooperative=1)
    assert samples.status("run_ring", c, 16, 4) == 720
    assert "16 blocks, refused by the setting refuse_cooperative" in samples.device.last_error
    assert samples.device.get("kernel_launches") == before
    # Other launches are not concerned, and the error does not stay.
    assert run_shift(samples, 512) == 720
    assert run_shift(samples, 512) == 0
    samples.device.set(refuse_cooperative=0)
    samples.run("run_ring", c, 16, 4)


def test_blocks_start_in_an_order_of_the_seed(samples: Samples) -> None:
    samples.device.set(sm_count=2)
    counts = []
    for seed in (0, 1, 2):
        samples.device.set(seed=seed)
        before = samples.device.switches
        samples.run("run_spin", np.zeros(1, np.uint32), 8, 64, 3)
        counts.append(samples.device.switches - before)
    assert len(set(counts)) == 3
    samples.device.set(seed=2)
    before = samples.device.switches
    samples.run("run_spin", np.zeros(1, np.uint32), 8, 64, 3)
    assert samples.device.switches - before == counts[2]


# ---- Deadlocks -----------------------------------------------------------------------------------


def test_a_persistent_kernel_whose_grid_is_not_resident_deadlocks(samples: Samples) -> None:
    samples.device.set(sm_count=2, max_threads_per_sm=256)
    count = np.zeros(1, np.uint32)
    samples.run("run_spin", count, 4, 128, 3)
    assert count[0] == 12
    count[0] = 0
    assert samples.status("run_spin", count, 5, 128, 3) == 702
    message = samples.device.last_error
    assert "deadlock in kernel (anonymous namespace)::spin_kernel" in message
    assert "127 threads (the first is 1) wait at barrier 0, where 127 of 128" in message
    assert "in a loop for 'argument0' + 0 of 4 bytes" in message
    assert "ld.volatile.global.u32" in message
    assert "1 of 5 blocks have not started: 4 are resident at a time" in message


def test_a_barrier_that_a_thread_misses_deadlocks(samples: Samples) -> None:
    assert samples.status("run_errors", np.zeros(64, np.float32), 7, 0) == 702
    assert "31 threads (the first is 0) wait at barrier 0, where 31 of 32" in (
        samples.device.last_error
    )


# ---- Errors --------------------------------------------------------------------------------------

_ERRORS = {
    0: (700, "thread (5, 0, 0): out-of-bounds access to 4 bytes of global memory at 0x", "st.glob"),
    1: (700, "thread (6, 0, 0): out-of-bounds access to 4 bytes of global", "4 bytes before '"),
    2: (716, "thread (7, 0, 0): misaligned access to 4 bytes of global", "'argument0' + 2 of 256"),
    3: (700, "thread (8, 0, 0): out-of-bounds access to 4 bytes of shared", "offset 384 of 384"),
    4: (716, "thread (9, 0, 0): misaligned access to 4 bytes of shared memory at 0x402", "[PTX"),
    5: (710, "thread (3, 0, 0): assertion 't != 3' failed at ", "errors_kernel"),
    6: (719, "thread (4, 0, 0): trap", "[PTX line "),
    8: (715, "an instruction that is not emulated", "discard.global.L2"),
    10: (700, "out-of-bounds access to 4 bytes of shared memory at 0x0", "offset -1024 of 384"),
}


@pytest.mark.parametrize("kind", _ERRORS)
def test_errors_name_kernel_thread_and_place(samples: Samples, kind: int) -> None:
    x = np.zeros(64, np.float32)
    status, *texts = _ERRORS[kind]
    assert samples.status("run_errors", x, kind, 64) == status
    message = samples.device.last_error
    assert message.startswith(
        "kernel (anonymous namespace)::errors_kernel(float*, int, int), block"
    )
    for text in texts:
        assert text in message
    # An error of a kernel stays until it is cleared.
    assert samples.status("run_errors", x, 9, 64) == status
    samples.device.clear_error()
    assert samples.status("run_errors", x, 9, 64) == 0


def test_unwritten_shared_memory_is_nan(samples: Samples) -> None:
    x = np.zeros(64, np.float32)
    samples.run("run_errors", x, 9, 64)
    assert np.isnan(x[:32]).all()


def test_unregistered_memory_is_an_error_where_asked(samples: Samples) -> None:
    x = np.zeros(64, np.float32)
    function = samples._lib.run_errors
    assert function(x.ctypes._data, 9, 64) == 700
    samples.device.clear_error()
    samples.device.set(strict_memory=0)
    assert function(x.ctypes._data, 9, 64) == 0


def test_what_is_not_translated_is_listed() -> None:
    translation = translate(ptx_of("memory", 80), "memory.cu")
    assert dict(translation.unsupported) == {"discard.global.L2: not emulated": 1}
    with pytest.raises(PtxError, match="not understood"):
        translate(".version 9.0\n.target sm_80\n.address_size 64\n.nonsense;\n", "x")


# ---- Races ---------------------------------------------------------------------------------------


def run_races(checked: Samples, name: str) -> int:
    # Aligned as cudaMalloc aligns: the statistics depend on it.
    raw = np.zeros(4096 * 4 + 256, np.uint8)
    x = raw[-raw.ctypes.data % 256 :][: 4096 * 4].view(np.float32)
    return checked.status(f"run_{name}", x, np.zeros(64, np.uint32))


@pytest.mark.parametrize("seed", (1, 2, 3))
@pytest.mark.parametrize("name", (*_RACES, "bytes"))
def test_kernels_without_races(checked: Samples, name: str, seed: int) -> None:
    checked.device.set(seed=seed)
    assert run_races(checked, name) == 0
    assert checked.device.races == []


def test_grid_barriers_have_no_race(checked: Samples) -> None:
    c = np.zeros((2, 16), np.float32)
    checked.run("run_ring", c, 16, 4)
    checked.run("run_spin", np.zeros(1, np.uint32), 8, 64, 3)
    assert checked.device.races == []


def test_a_fence_of_too_narrow_a_scope_is_a_race(checked: Samples) -> None:
    assert run_races(checked, "narrow") == 0
    (race,) = checked.device.races
    assert "on 'argument0' + 0 of 16384 bytes: block 1 thread 0 reads what is written by" in race
    assert "ld.global.f32" in race and "st.global" in race


def mutants(checked: Samples, name: str) -> list[LoadedMutation]:
    kernel = "scope_kernelILb0E" if name == "scope" else f"{name}_kernel"
    loaded = checked.device.mutations
    return [m for m in loaded if kernel in m.function and m.target == checked.arch]


@pytest.mark.parametrize("name", _RACES)
def test_every_mutation_is_caught(checked: Samples, name: str) -> None:
    found = mutants(checked, name)
    assert found
    for mutation in found:
        caught = ran = False
        for seed in (1, 2, 3):
            checked.device.set(seed=seed, mutation=mutation.number)
            checked.device.clear_races()
            status = run_races(checked, name)
            ran |= checked.device.mutation_hits > 0
            caught |= status == 702 or checked.device.races != []
            checked.device.clear_error()
        assert ran and caught, mutation


def test_mutations_of_all_kinds_are_found() -> None:
    ptx = ptx_of("races", 80)
    found = list(mutations(ptx))
    kinds = {(m.kind, m.text.split()[0].split(".")[0].lstrip("@%p0123456789!")) for m, _ in found}
    assert {kind for kind, _ in kinds} == {"remove", "weaken", "fall through"}
    assert {("remove", "bar"), ("remove", "membar"), ("remove", "cp"), ("weaken", "st")} <= kinds
    assert {("weaken", "ld"), ("weaken", "red")} <= kinds
    for mutation, text in found:
        changed = [
            i
            for i, (a, b) in enumerate(zip(ptx.split("\n"), text.split("\n"), strict=True), 1)
            if a != b
        ]
        assert changed == [mutation.line]
        assert translate(text, "mutant").unsupported == {}


# ---- Statistics ----------------------------------------------------------------------------------


def test_statistics(checked: Samples) -> None:
    checked.device.set(statistics=1, race_check=0)
    assert run_races(checked, "reverse") == 0
    (figures,) = checked.device.statistics.values()
    # 3 rounds, 2 blocks, 4 warps: a request for each.
    assert figures["global_load"] == {"requests": 24, "bytes": 24 * 128, "sectors": 24 * 4}
    assert figures["global_store"] == {"requests": 24, "bytes": 24 * 128, "sectors": 24 * 4}
    no_conflict = {"requests": 24, "bytes": 24 * 128, "wavefronts": 24, "ideal_wavefronts": 24}
    assert figures["shared_load"] == figures["shared_store"] == no_conflict
    assert figures["instructions"]["barrier"] == 3 * 2 * 256
