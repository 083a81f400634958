# SPDX-License-Identifier: BSD-3-Clause
"""Walks through machine code: integers as the hardware computes them, and the way at branches."""

from collections.abc import Callable

import pytest
from kit.sass import compiled, listing, words

from tools.cuda_report.arguments import ARRAY_SPACE, ARRAY_START, Arguments
from tools.cuda_report.sass.flow import Flow
from tools.cuda_report.sass.memory import Access, Memory, shared_wavefronts
from tools.cuda_report.sass.walk import Launch, walk
from tools.cuda_report.sass.warp import Constants

ARCHS = (80, 90, 100)
POINTER = (ARRAY_SPACE + ARRAY_START).to_bytes(8, "little")  # to the first array
THREADS = 64
BLOCK, GRID = (3, 1, 0), (5, 2, 1)

# Writes `expression` of each thread to shared memory, from where `out` keeps it alive.
TEMPLATE = """
__global__ void k(int* out, int a, int b, int c) {{
  __shared__ int result[64];
  const int t = threadIdx.x;
  int r;
  {body}
  result[t] = r;
  __syncthreads();
  out[t] = result[63 - t];
}}
"""


def signed(x: int) -> int:
    return (x + 2**31) % 2**32 - 2**31


def divide(x: int, y: int) -> int:
    """As in C, towards zero."""
    return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)


def collatz(t: int, a: int, b: int, c: int) -> int:
    x, r = t + 1, 0
    while x != 1 and r < b:
        x = x // 2 if x % 2 == 0 else 3 * x + 1
        r += a if x % 4 == 1 else 1
    return r


def diverging(t: int, a: int, b: int, c: int) -> int:
    r = 0
    for i in range(t % 7):
        r += i * a if i & 1 else b
    if t < 13:
        for i in range(c):
            r ^= i + t
    return r


BODIES: dict[str, Callable[[int, int, int, int], int]] = {
    "r = (t - a) / b + (t * 5 - a) % b;": lambda t, a, b, c: (
        divide(t - a, b) + (t * 5 - a) - divide(t * 5 - a, b) * b
    ),
    "r = (unsigned)(t * 12345 - a) / (unsigned)b + (unsigned)(t - 70) % 9u;": lambda t, a, b, c: (
        signed((t * 12345 - a) % 2**32 // b + (t - 70) % 2**32 % 9)
    ),
    "r = (int)((long long)(t - a) * (b * 1000003LL) >> 17);": lambda t, a, b, c: signed(
        (t - a) * (b * 1000003) >> 17
    ),
    "r = t * (blockIdx.x + gridDim.x * blockIdx.y) + blockDim.x * gridDim.y;": lambda t, a, b, c: (
        t * (3 + 5 * 1) + THREADS * 2
    ),
    "long long x = (long long)a << 32 | t, y = (long long)a << 32 | 31; r = (x < y) | (x <= y) << 1"
    " | (x > y) << 2 | (x >= y) << 3 | (x == y) << 4 | (x - y < -t) << 5;": lambda t, a, b, c: (
        (t < 31)
        | (t <= 31) << 1
        | (t > 31) << 2
        | (t >= 31) << 3
        | (t == 31) << 4
        | (t - 31 < -t) << 5
    ),
    "r = min(t, a) * max(b, t - 9) + abs(t - 31);": lambda t, a, b, c: (
        min(t, a) * max(b, t - 9) + abs(t - 31)
    ),
    "long long x = (long long)a << (t % 40); r = (x > 100000000000LL) + (int)(x >> 33);": (
        lambda t, a, b, c: int((a << t % 40) > 10**11) + ((a << t % 40) >> 33)
    ),
    "r = __popc(t * a) + __clz(t + 1) + (__brev(t) >> 20) + __ffs(t + a);": lambda t, a, b, c: (
        (t * a).bit_count()
        + (32 - (t + 1).bit_length())
        + (int(f"{t:032b}"[::-1], 2) >> 20)
        + ((t + a) & -(t + a)).bit_length()
    ),
    "r = __shfl_xor_sync(~0u, t * 3, 5) + __shfl_sync(~0u, t, a % 32) + (t % 32 < 30 ? "
    "__shfl_down_sync(0x3fffffff, t, 1) : 0);": lambda t, a, b, c: (
        ((t // 32 * 32) + (t % 32 ^ 5)) * 3
        + t // 32 * 32
        + a % 32
        + ((t + (1 if t % 32 < 31 else 0)) if t % 32 < 30 else 0)
    ),
    "r = __ballot_sync(~0u, t % b == 1) ^ __any_sync(~0u, t == 40) ^ "
    "__all_sync(~0u, t < 32) * 2;": lambda t, a, b, c: signed(
        sum((t // 32 * 32 + n) % b == 1 and 1 << n for n in range(32))
        ^ int(t >= 32)
        ^ 2 * int(t < 32)
    ),
    "r = __byte_perm(t * a, b, 0x5170 + t % 3) + (signed char)(t * 11);": lambda t, a, b, c: signed(
        permuted(t * a, b, 0x5170 + t % 3) + (t * 11 + 128) % 256 - 128
    ),
    "int x = t + 1; r = 0; while (x != 1 && r < b) { x = x % 2 == 0 ? x / 2 : 3 * x + 1; "
    "r += x % 4 == 1 ? a : 1; }": collatz,
    "r = 0; for (int i = 0; i < t % 7; ++i) { if (i & 1) r += i * a; else r += b; } "
    "if (t < 13) { for (int i = 0; i < c; ++i) r ^= i + t; }": diverging,
}

SWITCH = """
__global__ void k(int* out, int a, int b, int c) {
  __shared__ int result[64];
  const int t = threadIdx.x;
  int r = 0;
  for (int i = 0; i < a; ++i) {
    switch ((t + i) % 11 * b) {
      case 0: r += 7; result[t] = i; break;
      case 1: r = r * 3 + t; out[t] = 1; break;
      case 2: r -= out == nullptr; break;
      case 3: r ^= 0x55; result[t] = 9; break;
      case 4: r <<= 1; out[t] = 2; break;
      case 5: r = -r; out[t + 1] = 2; break;
      case 6: r += c; out[t + 2] = 2; break;
      case 7: r |= 6; out[t + 3] = 2; break;
    }
    __syncthreads();
  }
  result[t] = r;
  __syncthreads();
  out[t] = result[63 - t];
}
"""


def switched(t: int, a: int, b: int, c: int) -> int:
    r = 0
    for i in range(a):
        ways = [r + 7, r * 3 + t, r, r ^ 0x55, r << 1, -r, r + c, r | 6]
        way = (t + i) % 11 * b
        r = signed(ways[way]) if way < len(ways) else r
    return r


@pytest.mark.parametrize("arch", ARCHS)
def test_jumps_by_tables_are_followed(arch: int) -> None:
    kernel = compiled(SWITCH, arch)
    assert any(i.targets for i in kernel.listing.instructions)
    _, memory = kernel.walk(Launch(THREADS, GRID), POINTER + words(9, 1, 40), ["out"])
    first = min(memory.shared.words)
    found = {(place - first) // 4: signed(x) for place, x in memory.shared.words.items()}
    assert found == {t: switched(t, 9, 1, 40) for t in range(THREADS)}


def permuted(x: int, y: int, selector: int) -> int:
    data = (x % 2**32).to_bytes(4, "little") + (y % 2**32).to_bytes(4, "little")
    return int.from_bytes(bytes(data[selector >> 4 * n & 7] for n in range(4)), "little")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("body", BODIES)
def test_integers_are_those_of_the_program(body: str, arch: int) -> None:
    kernel = compiled(TEMPLATE.format(body=body), arch)
    for a, b, c in ((37, 11, 6), (5, 3, 1)):
        parameters = POINTER + words(a, b, c)
        _, memory = kernel.walk(Launch(THREADS, GRID, BLOCK), parameters, ["out"])
        first = min(memory.shared.words)
        found = {(place - first) // 4: signed(x) for place, x in memory.shared.words.items()}
        assert found == {t: signed(BODIES[body](t, a, b, c)) for t in range(THREADS)}


POLL = """
__global__ void poll(int* out, const int* flags, int n) {
  for (int i = 0; i < n; ++i) {
    int polls = 0;
    while (*((volatile const int*)flags + threadIdx.x + i * 32) != i) {
      if (++polls % 64 == 0 && clock64() > 1000000) { out[0] = -1; return; }
    }
    __syncthreads();
    out[i] = 1;
  }
}
"""


@pytest.mark.parametrize("arch", ARCHS)
def test_a_loop_that_waits_is_left_after_its_first_poll(arch: int) -> None:
    kernel = compiled(POLL, arch)
    parameters = POINTER + (2 * ARRAY_SPACE + ARRAY_START).to_bytes(8, "little") + words(5)
    walked, _ = kernel.walk(Launch(32, (1, 1, 1)), parameters, ["out", "flags"])
    accesses = [step.access for step in walked.warps[0] if step.access is not None]
    assert [a.array for a in accesses] == ["flags", "out"] * 5
    assert [len(a.sectors) for a in accesses if a.array == "flags"] == [4] * 5
    names = kernel.steps(walked)
    assert names.count("BAR") == 5 and "CS2R" not in names
    assert walked.decisions
    assert all("of flags" in origin for _, origin in walked.decisions.values())


def test_the_shortest_way_out_of_a_waiting_loop_is_taken() -> None:
    """Two words are polled, and a timer looked at; R9 counts polls."""
    code = listing(
        *(".L_x_0:", "LDG.E.64 R0, [R2.64]", "IADD3 R9, R9, 0x1, RZ"),
        *("ISETP.NE.AND P0, PT, R0, RZ, PT", "@P0 BRA `(.L_x_1)"),
        *("ISETP.EQ.AND P1, PT, R1, RZ, PT", "@P1 BRA `(.L_x_2)"),
        *(".L_x_1:", "ISETP.NE.AND P2, PT, R9, 0x40, PT", "@P2 BRA `(.L_x_0)"),
        *("S2UR UR4, SR_GLOBALTIMERLO", "MUFU.RCP R1, R1", "BRA `(.L_x_0)"),
        *(".L_x_2:", "BAR.SYNC 0x0", "EXIT"),
    )
    memory = Memory(Arguments(b"", b"", []), {})
    walked = walk(Flow(code), Constants(b"", b""), Launch(32, (1, 1, 1)), memory)
    names = [code.instructions[step.place].base for step in walked.warps[0]]
    assert names == [*("LDG", "IADD3", "ISETP", "BRA", "ISETP", "BRA", "BAR", "EXIT")]
    decided = {place: decision.rule for place, (decision, _) in walked.decisions.items()}
    assert decided == dict.fromkeys((3, 5), "a loop that waits is left")


DIVISION = """
__global__ void divide(float* x, int n) {
  for (int i = 0; i < n; ++i) {
    x[threadIdx.x] = 1.0f / (1.0f + x[threadIdx.x]);
    __syncthreads();
  }
}
"""


@pytest.mark.parametrize("arch", ARCHS)
def test_slow_paths_are_not_taken(arch: int) -> None:
    kernel = compiled(DIVISION, arch)
    assert any(i.base == "CALL" for i in kernel.listing.instructions)
    walked, _ = kernel.walk(Launch(32, (1, 1, 1)), POINTER + words(3), ["x"])
    names = kernel.steps(walked)
    assert names.count("BAR") == names.count("MUFU") == 3 and "CALL" not in names


def test_rare_ways_are_not_taken() -> None:
    """Branches on loaded data: out of the loop, to cold code, and past a fix-up."""
    code = listing(
        *("MOV R9, RZ", ".L_x_0:", "IADD3 R9, R9, 0x1, RZ", "LDG.E R0, [R2.64]"),
        *("ISETP.NE.AND P0, PT, R0, RZ, PT", "@P0 BRA `(.L_x_9)"),  # an abort
        *("ISETP.GT.AND P1, PT, R0, 0x5, PT", "@P1 BRA `(.L_x_8)"),  # cold code
        *("@!P1 BRA `(.L_x_1)", "FADD R1, R1, R1", "FADD R1, R1, R1", ".L_x_1:"),  # a fix-up
        *("BAR.SYNC 0x0", "ISETP.NE.AND P2, PT, R9, 0x3, PT", "@P2 BRA `(.L_x_0)", "EXIT"),
        *(".L_x_8:", "MUFU.RCP R1, R1", "BRA `(.L_x_1)", ".L_x_9:", "STG.E [R2.64], R0", "EXIT"),
    )
    arguments = Arguments(b"", b"", [])
    walked = walk(Flow(code), Constants(b"", b""), Launch(32, (1, 1, 1)), Memory(arguments, {}))
    names = [code.instructions[step.place].base for step in walked.warps[0]]
    assert names.count("BAR") == 3
    assert not {"FADD", "MUFU", "STG"} & set(names)
    rules = {
        code.instructions[place].text: (decision.taken, decision.rule)
        for place, (decision, _) in walked.decisions.items()
    }
    assert rules == {
        "@P0 BRA `(.L_x_9)": (False, "the kernel goes on"),
        "@P1 BRA `(.L_x_8)": (False, "cold code is not taken"),
        "@!P1 BRA `(.L_x_1)": (True, "the shorter way is taken"),
    }


def test_a_branch_on_an_unheard_of_instruction_is_refused() -> None:
    code = listing("WONDER P0, R0, R1", "@P0 BRA `(.L_x_0)", "NOP", ".L_x_0:", "EXIT")
    with pytest.raises(NotImplementedError, match="no meaning is known of WONDER at 0x0"):
        walk(
            Flow(code),
            Constants(b"", b""),
            Launch(32, (1, 1, 1)),
            Memory(Arguments(b"", b"", []), {}),
        )


def accesses(*lines: str) -> list[Access]:
    """Accesses of a warp that runs these lines; R0 is the lane, R2 the first array's address."""
    high, low = divmod(ARRAY_SPACE + ARRAY_START, 2**32)
    code = listing(
        *("S2R R0, SR_LANEID", f"MOV R2, {low:#x}", f"MOV R3, {high:#x}", *lines, "EXIT")
    )
    memory = Memory(Arguments(b"", b"", ["x"]), {})
    walked = walk(Flow(code), Constants(b"", b""), Launch(32, (1, 1, 1)), memory)
    return [step.access for step in walked.warps[0] if step.access is not None]


def test_sectors_and_wavefronts_are_counted() -> None:
    wide = "IMAD.WIDE R4, R0, {}, R2"
    row, column, part = accesses(
        *(wide.format("0x4"), "LDG.E R6, [R4.64]"),  # 128 bytes in a row
        *(wide.format("0x40"), "LDG.E.U16 R6, [R4.64+0x2]"),  # a sector a lane
        *(wide.format("0x10"), "ISETP.LT.AND P0, PT, R0, 0x8, PT", "@P0 STG.E.128 [R4.64], R8"),
    )
    assert [(a.array, a.is_store, len(a.sectors), a.lanes) for a in (row, column, part)] == [
        *(("x", False, 4, 32), ("x", False, 32, 32), ("x", True, 4, 8)),
    ]
    assert row.bytes_moved == 128
    (spread,) = accesses("SHF.L.U32 R5, R0, 0x7, RZ", "LDS R6, [R5]")  # all in one bank
    assert (spread.space, spread.wavefronts) == ("shared", 32)


@pytest.mark.parametrize(
    ("addresses", "size", "wavefronts"),
    [
        ([4 * n for n in range(32)], 4, 1),
        ([0] * 32, 4, 1),
        ([8 * n for n in range(32)], 4, 2),
        ([16 * n for n in range(32)], 16, 4),
        ([0] * 32, 16, 4),
        ([132 * n for n in range(32)], 4, 1),
    ],
)
def test_wavefronts_are_those_of_banks(addresses: list[int], size: int, wavefronts: int) -> None:
    assert shared_wavefronts(addresses, size) == wavefronts
