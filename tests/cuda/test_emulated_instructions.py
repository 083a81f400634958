# SPDX-License-Identifier: BSD-3-Clause
"""The emulated CUDA device: what each instruction gives, against numpy and torch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tools.cuda_on_cpu.build import missing
from tools.cuda_on_cpu.samples import Samples

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

N = 128
Array = np.ndarray[Any, Any]


def words(seed: int) -> Array:
    """Random words, with extreme ones among them."""
    values = np.random.default_rng(seed).integers(0, 2**32, N, dtype=np.uint32)
    values[:6] = [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF]
    return np.roll(values, seed)


def of_words(function: Callable[..., int], *arrays: Array) -> Array:
    """Apply a function of Python integers to each element."""
    rows = zip(*(array.tolist() for array in arrays), strict=True)
    return np.array([function(*row) & 0xFFFFFFFF for row in rows], np.uint32)


def signed(x: int) -> int:
    return x - (1 << 32) if x >> 31 else x


def bytes_of(x: int, is_signed: bool) -> list[int]:
    parts = [x >> (8 * i) & 255 for i in range(4)]
    return [p - 256 if is_signed and p > 127 else p for p in parts]


def mul24(a: int, b: int) -> int:
    def low(x: int) -> int:
        return (x & 0xFFFFFF) - (1 << 24 if x & 0x800000 else 0)

    return low(a) * low(b)


def divide_toward_zero(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def byte_permute(a: int, b: int, s: int) -> int:
    parts = bytes_of(a, False) + bytes_of(b, False)
    return sum(parts[s >> (4 * i) & 7] << (8 * i) for i in range(4))


def wide(a: int, b: int) -> int:
    return a << 32 | b


INTEGER_ROWS: list[Callable[[int, int, int], int]] = [
    lambda a, b, c: a + b,
    lambda a, b, c: a * b + c,
    lambda a, b, c: a * b >> 32,
    lambda a, b, c: signed(a) * signed(b) >> 32,
    lambda a, b, c: mul24(a, b),
    lambda a, b, c: (a & 0xFFFFFF) * (b & 0xFFFFFF),
    lambda a, b, c: a // (b | 1),
    lambda a, b, c: signed(a) - divide_toward_zero(signed(a), signed(b | 1)) * signed(b | 1),
    lambda a, b, c: min(signed(a), signed(b)),
    lambda a, b, c: max(a, b),
    lambda a, b, c: a << (b & 31),
    lambda a, b, c: signed(a) >> (b & 31),
    lambda a, b, c: int(f"{a:032b}"[::-1], 2),
    lambda a, b, c: 32 - a.bit_length(),
    lambda a, b, c: a.bit_count(),
    lambda a, b, c: (a & -a).bit_length(),
    lambda a, b, c: byte_permute(a, b, c & 0x7777),
    lambda a, b, c: wide(b, a) << (c & 31) >> 32,
    lambda a, b, c: wide(b, a) >> min(c & 63, 32),
    lambda a, b, c: abs(a - b) + c,
    lambda a, b, c: (
        c + sum(x * y for x, y in zip(bytes_of(a, True), bytes_of(b, True), strict=True))
    ),
    lambda a, b, c: (
        c + sum(x * y for x, y in zip(bytes_of(a, False), bytes_of(b, False), strict=True))
    ),
    lambda a, b, c: a >> 5 & 511,
    lambda a, b, c: (a >> 5 & 511) - (512 if a >> 13 & 1 else 0),
    lambda a, b, c: b & ~(2047 << 7) | (a & 2047) << 7,
    lambda a, b, c: (a & b) | (~a & c),
    lambda a, b, c: 0,
    lambda a, b, c: a.bit_length() - 1,
    lambda a, b, c: wide(a, b) ** 2 >> 64,
    lambda a, b, c: wide(a, b) ** 2 >> 96,
    lambda a, b, c: wide(a, b) * (wide(a, b) + 1) >> 96,
    lambda a, b, c: wide(a, b) * (wide(a, b) + 1) >> 64,
    lambda a, b, c: 1 if a < b else 2,
]


def test_integers(samples: Samples) -> None:
    a, b, c = words(1), words(2), words(3)
    out = np.zeros((len(INTEGER_ROWS), N), np.uint32)
    samples.run("run_integer", a, b, c, out, N)
    for row, (got, function) in enumerate(zip(out, INTEGER_ROWS, strict=True)):
        np.testing.assert_array_equal(got, of_words(function, a, b, c), err_msg=f"row {row}")


def round_toward(exact: Array, down: bool | None) -> Array:
    """Round longer floats to float32, down, up, or toward zero where None."""
    near = exact.astype(np.float32)
    if down is None:
        return np.where(
            np.abs(near.astype(exact.dtype)) > np.abs(exact), np.nextafter(near, 0), near
        ).astype(np.float32)
    beyond = near.astype(exact.dtype) > exact if down else near.astype(exact.dtype) < exact
    limit = np.float32(-np.inf if down else np.inf)
    return np.where(beyond, np.nextafter(near, limit), near).astype(np.float32)


def test_floats(samples: Samples) -> None:
    rng = np.random.default_rng(4)
    a, b = (rng.normal(size=N).astype(np.float32) * 3 for _ in range(2))
    out = np.zeros((31, N), np.float32)
    samples.run("run_float", a, b, out, N)
    x, y = a.astype(np.longdouble), b.astype(np.longdouble)
    tf32 = ((a.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    exact = {
        **{0: a + b, 1: x * y + x, 2: a / b, 3: np.sqrt(np.abs(a)), 4: 1 / b},
        **{5: np.fmin(a, b), 6: np.fmax(a, b), 7: np.copysign(a, b), 8: np.clip(a, 0, 1)},
        **{17: np.rint(a), 18: np.trunc(a), 19: np.floor(a), 22: x * y, 27: tf32},
        20: np.clip((a * np.float32(1e9)).astype(np.float64), -(2.0**31), 2.0**31 - 1),
        21: np.clip((a * np.float32(1e9)).astype(np.float64), 0, 2.0**32 - 1),
        23: round_toward(x + y, None),
        24: round_toward(x + y, True),
        25: round_toward(x * y, False),
        26: round_toward(x / y, True),
        # Subnormal operands and results are flushed to zero.
        **{29: np.copysign(np.float32(np.inf), b), 30: np.zeros(N)},
    }
    for row, want in exact.items():
        np.testing.assert_array_equal(out[row], want.astype(np.float32), err_msg=f"row {row}")
    close = {
        **{9: np.exp(x), 10: np.tanh(x), 11: np.log(np.abs(x) + 0.5), 12: np.sin(x)},
        **{13: np.exp(x), 14: np.tanh(x), 15: np.exp2(x), 16: 1 / np.sqrt(np.abs(y))},
        28: 1 / y,
    }
    for row, want in close.items():
        np.testing.assert_allclose(out[row], want, rtol=2e-6, atol=1e-7, err_msg=f"row {row}")


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_halves(samples: Samples, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(5)
    a, b = (torch.randn(N, 2, generator=rng).to(dtype) for _ in range(2))
    out = np.zeros((10, N, 2), np.uint16)
    function = "run_half" if dtype == torch.float16 else "run_bfloat"
    bits = [t.view(torch.int16).numpy() for t in (a, b)]
    samples.run(function, *bits, out, N)
    got = torch.from_numpy(out.view(np.int16)).view(dtype)
    x, y = a.double(), b.double()
    want = [
        *(x + y, x - y, x * y, x * y + x, -x, x.abs()),
        *(torch.maximum(x, y), torch.minimum(x, y)),
        torch.stack([x[:, 0] + y[:, 1], x[:, 1] * y[:, 0]], 1),
        torch.stack([x[:, 0] * y[:, 1] + x[:, 1], torch.minimum(x[:, 0], y[:, 0])], 1),
    ]
    for row, expected in enumerate(want):
        assert torch.equal(got[row], expected.to(dtype)), f"row {row}"


def test_conversions(samples: Samples) -> None:
    a = np.random.default_rng(6).normal(size=N).astype(np.float32) * 100
    bf, half = np.zeros((2, N, 2), np.uint16), np.zeros((2, N, 2), np.uint16)
    samples.run("run_convert", a, bf, half, N)
    x = torch.from_numpy(a)
    following = x.roll(-1)
    for out, dtype in ((bf, torch.bfloat16), (half, torch.float16)):
        got = torch.from_numpy(out.view(np.int16)).view(dtype)
        assert torch.equal(got[0], torch.stack([x, following], 1).to(dtype))
        assert torch.equal(got[1, :, 1], following.to(dtype))
        truncated = got[1, :, 0].double()
        assert (truncated.abs() <= x.double().abs()).all()
        assert ((truncated - x.double()).abs() <= x.double().abs() * torch.finfo(dtype).eps).all()


def test_doubles(samples: Samples) -> None:
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=N), rng.normal(size=N)
    out = np.zeros((9, N))
    samples.run("run_double", a, b, out, N)
    x, y = a.astype(np.longdouble), b.astype(np.longdouble)
    exact = {
        **{0: x * y + x, 1: a / b, 2: np.sqrt(np.abs(a)), 5: np.fmin(a, b)},
        **{6: np.trunc(a * 1e15), 7: np.rint(a)},
    }
    for row, want in exact.items():
        np.testing.assert_array_equal(out[row], want.astype(np.float64), err_msg=f"row {row}")
    np.testing.assert_allclose(out[3], np.exp(a), rtol=1e-15)
    np.testing.assert_allclose(out[4], np.tanh(a), rtol=1e-15)
    assert (out[8] >= x + y).all() and (out[8] <= np.nextafter(a + b, np.inf)).all()


def test_spaces_and_calls(samples: Samples) -> None:
    x, out, n = np.random.default_rng(8).normal(size=32).astype(np.float32), np.zeros(32, "f"), 5
    samples.run("run_spaces", x, out, n)
    t = np.arange(32)
    table, weights = np.array([1, 2, 3, 4.0]), np.array([0.5, 1.5, 2.5, 3.5])
    own = 1 + weights[t & 3]
    s = x + table[(t ^ 1) & 3]
    sums = np.array([sum(x[(i * 3) & 7] for i in range(n + (k & 7))) for k in t])
    v = s + own + sums
    want = np.choose(t & 7, [v + 10, v * 2, v - x[3], -v, v + x[4] * x[5], v * v, v + t, v + t])
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)


def test_vectors(samples: Samples) -> None:
    rng = np.random.default_rng(9)
    x, y = rng.normal(size=(32, 4)).astype(np.float32), np.zeros((32, 4), np.float32)
    b, more = rng.integers(0, 256, (32, 4), np.uint8), np.zeros((32, 4), np.uint8)
    samples.run("run_vectors", x, y, b, more)
    want = np.stack([x[:, 0] + x[:, 1], x[:, 2], x[:, 3] + x[:, 0], x[:, 1]], 1)
    np.testing.assert_array_equal(y, want)
    halved = np.trunc(b[:, 2].view(np.int8) / 2).astype(np.int8).view(np.uint8)
    np.testing.assert_array_equal(more, np.stack([b[:, 1] + 1, b[:, 0], halved, b[:, 3]], 1))


def test_atomics(samples: Samples) -> None:
    u, s = np.zeros(10, np.uint32), np.zeros(1, np.int32)
    u[2] = 0xFFFFFFFF
    f, d, total, count = np.zeros(1, "f"), np.zeros(1), np.zeros(1, np.uint64), np.zeros(1, "i4")
    samples.run("run_atomics", u, s, f, d, total, count)
    t = np.arange(64)
    want = [t.sum(), (t * 7 % 61).max(), 0xFFFF0000, 0xFFFFFFFF, np.bitwise_xor.reduce(t)]
    want += [64 % 41, (50 - 63 % 51) % 51 if False else u[6], 64 * 3, u[8], 1]
    np.testing.assert_array_equal(u, np.array(want, np.uint32))
    assert u[6] == 51 - (64 % 51) and 1 <= u[8] <= 64
    assert (s[0], f[0], d[0], total[0], count[0]) == (-40, 32.0, 16.0, 64 << 33, 5 + 128)


def test_warps(samples: Samples) -> None:
    a = np.random.default_rng(10).integers(0, 100, 64).astype(np.uint32)
    out = np.zeros((17, 64), np.uint32)
    samples.run("run_warps", a, out, 64)
    x, lane = a.reshape(2, 32), np.arange(32)

    def lanes(index: Array) -> Array:
        return x[:, index]

    def whole(values: Array) -> Array:
        return np.repeat(values[:, None], 32, 1)

    def vote(tests: Array) -> Array:
        return (tests.astype(np.uint64) << lane.astype(np.uint64)).sum(-1)

    down = np.where((lane & 7) + 2 < 8, lane + 2, lane)
    everyone = np.ones((2, 32))
    want = [
        lanes((lane + 5) & 31),
        lanes(np.where(lane >= 3, lane - 3, lane)),
        lanes(down),
        lanes(lane ^ 6),
        whole(vote(x & 1)),
        whole((x == 7).any(1)),
        whole((x < 1000).all(1)),
        np.stack([vote((row[:, None] & 3) == (row[None] & 3)) for row in x]),
        whole(x.sum(1)),
        whole(x.max(1)),
        whole((x.min(1).astype(np.int64) - 50) & 0xFFFFFFFF),
        whole(np.bitwise_xor.reduce(x, 1)),
        lanes(np.where(lane < 16, lane ^ 1, lane ^ 2)),
        everyone * (a & 1).sum(),
        everyone * (a == 7).any(),
        everyone,
        everyone,
    ]
    for row, expected in enumerate(want):
        np.testing.assert_array_equal(out[row], expected.ravel(), err_msg=f"row {row}")


def test_asynchronous_copies(samples: Samples) -> None:
    x, out = np.random.default_rng(11).normal(size=128).astype("f"), np.zeros((4, 128), "f")
    samples.run("run_copies", x, out)
    np.testing.assert_array_equal(out[0], x)
    np.testing.assert_array_equal(out[1, :64].reshape(32, 2)[:, 0], x[:64:2])
    assert (out[1, 1:64:2] == 0).all() and (out[2, :32] == 0).all()
    # Not waited for, and never written.
    assert np.isnan(out[3, :32]).all() and np.isnan(out[2, 32:]).all()


# ---- Matrices ------------------------------------------------------------------------------------

_MMA = {
    **{"bf16 m16n8k16": (0, 16, 16, torch.bfloat16), "f16 m16n8k16": (1, 16, 16, torch.float16)},
    **{"bf16 m16n8k8": (2, 16, 8, torch.bfloat16), "f16 m16n8k8": (3, 16, 8, torch.float16)},
    **{"tf32 m16n8k8": (4, 16, 8, torch.float32), "tf32 m16n8k4": (5, 16, 4, torch.float32)},
    "f64 m8n8k4": (6, 8, 4, torch.float64),
}


@pytest.mark.parametrize("form", _MMA)
def test_mma(samples: Samples, form: str) -> None:
    kind, m, k, dtype = _MMA[form]
    rng = torch.Generator().manual_seed(12)
    # Small integers: every sum is exact, in any order.
    a, b = (torch.randint(-8, 9, (rows, k), generator=rng).to(dtype) for rows in (m, 8))
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    c = torch.randint(-8, 9, (m, 8), generator=rng).to(accumulator)
    d = np.zeros((m, 8), np.float64 if dtype == torch.float64 else np.float32)
    raw = [t.view(torch.int16).numpy() if t.element_size() == 2 else t.numpy() for t in (a, b)]
    samples.run("run_mma", kind, *raw, c.numpy(), d)
    np.testing.assert_array_equal(d, (a.double() @ b.double().T + c.double()).numpy())


def test_tf32_ignores_the_low_bits(samples: Samples) -> None:
    a, b = np.zeros((16, 8), np.float32), np.zeros((8, 8), np.float32)
    a[0, 0], b[0, 0] = np.float32(1 + 2.0**-11), 1
    d = np.zeros((16, 8), np.float32)
    samples.run("run_mma", 4, a, b, np.zeros((16, 8), np.float32), d)
    assert d[0, 0] == 1


def test_ldmatrix(samples: Samples) -> None:
    elements = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    out = np.zeros((11, 32), np.uint32)
    samples.run("run_ldmatrix", elements, out)
    plain = elements.reshape(4, 64).copy().view(np.uint32)
    transposed = elements.transpose(0, 2, 1).reshape(4, 64).copy().view(np.uint32)
    np.testing.assert_array_equal(out[:4], plain)
    np.testing.assert_array_equal(out[4:8], transposed)
    np.testing.assert_array_equal(out[8:10], plain[:2])
    np.testing.assert_array_equal(out[10], transposed[0])


def test_stmatrix(samples: Samples) -> None:
    if samples.arch < 90:
        pytest.skip("stmatrix is of compute_90")
    elements = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    out = np.zeros_like(elements)
    samples.run("run_stmatrix", elements, out)
    np.testing.assert_array_equal(out[:2], elements[:2])
    np.testing.assert_array_equal(out[2:], elements[2:].transpose(0, 2, 1))
