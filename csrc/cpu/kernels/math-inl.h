// SPDX-License-Identifier: BSD-3-Clause
// exp, sigmoid and tanh on vectors: σ within 2.5 ulp and tanh within 1.5 of the exact value
// (measured by tests/cpp/math_test.cpp); torch's own σ: 2. NaN stays NaN. Where exp overflows,
// below -88.72 (float) or -709.78 (double), σ is 0: a closed gate lets nothing through, however
// large. Above that to -87.34 or -708.4 σ is a denormal number; 0 where these are flushed.
//
// exp takes the usual reduction y = n·ln2 + r, |r| ≤ ln2/2, so that exp(y) = 2^n·exp(r).

template <typename T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float kMagic = 0x1.8p23f;  // adding it rounds to an integer
  static constexpr int kMantissaBits = 23;
  static constexpr int kExponentBias = 127;
  static constexpr float kLog2E = 0x1.715476p0f;
  static constexpr float kLn2High = 0x1.62e400p-1f;  // 15 bits: n·kLn2High is exact
  static constexpr float kLn2Low = 0x1.7f7d1cp-20f;
  // exp(kMax) is infinite and its half is not. Below kMin 1 + exp is 1.
  static constexpr float kMax = 89.0f;
  static constexpr float kMin = -30.0f;
};

template <>
struct ExpConstants<double> {
  static constexpr double kMagic = 0x1.8p52;
  static constexpr int kMantissaBits = 52;
  static constexpr int kExponentBias = 1023;
  static constexpr double kLog2E = 0x1.71547652b82fep0;
  static constexpr double kLn2High = 0x1.62e42fee00000p-1;  // 32 bits
  static constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr double kMax = 710.0;
  static constexpr double kMin = -60.0;
};

// exp(r) - 1 = r + r²·(1/2! + r/3! + …): the Taylor series is as good as a minimax polynomial of
// the same degree plus one here, and shows where it comes from. Remainders: r^7/8! = 1.5e-8
// (float), r^13/14! = 1.2e-17 (double), relative to r.
LSTM_INLINE VecF exp_polynomial(VecF r) {
  VecF q = broadcast(1.0f / 5040);
  q = multiply_add(q, r, broadcast(1.0f / 720));
  q = multiply_add(q, r, broadcast(1.0f / 120));
  q = multiply_add(q, r, broadcast(1.0f / 24));
  q = multiply_add(q, r, broadcast(1.0f / 6));
  q = multiply_add(q, r, broadcast(1.0f / 2));
  return multiply_add(r * r, q, r);
}

LSTM_INLINE VecD exp_polynomial(VecD r) {
  VecD q = broadcast(1.0 / 6227020800.0);
  q = multiply_add(q, r, broadcast(1.0 / 479001600.0));
  q = multiply_add(q, r, broadcast(1.0 / 39916800.0));
  q = multiply_add(q, r, broadcast(1.0 / 3628800.0));
  q = multiply_add(q, r, broadcast(1.0 / 362880.0));
  q = multiply_add(q, r, broadcast(1.0 / 40320.0));
  q = multiply_add(q, r, broadcast(1.0 / 5040.0));
  q = multiply_add(q, r, broadcast(1.0 / 720.0));
  q = multiply_add(q, r, broadcast(1.0 / 120.0));
  q = multiply_add(q, r, broadcast(1.0 / 24.0));
  q = multiply_add(q, r, broadcast(1.0 / 6.0));
  q = multiply_add(q, r, broadcast(1.0 / 2.0));
  return multiply_add(r * r, q, r);
}

// tanh(x) = x + x·z·P(z), z = x², for |x| ≤ 0.625: beyond it 1 - 2/(exp(2|x|) + 1) is as exact,
// below it that cancels. P is the Chebyshev fit of (tanh(√z)/√z - 1)/z on [0, 0.390625], of error
// 4.3e-8 (float) and 3.9e-18 (double).
constexpr double kTanhBound = 0.625;

LSTM_INLINE VecF tanh_polynomial(VecF z) {
  VecF q = broadcast(-0x1.8f8de4p-8f);
  q = multiply_add(q, z, broadcast(0x1.58048ep-6f));
  q = multiply_add(q, z, broadcast(-0x1.b9258ap-5f));
  q = multiply_add(q, z, broadcast(0x1.110e1cp-3f));
  return multiply_add(q, z, broadcast(-0x1.555552p-2f));
}

LSTM_INLINE VecD tanh_polynomial(VecD z) {
  VecD q = broadcast(0x1.b33642a122cddp-18);
  q = multiply_add(q, z, broadcast(-0x1.05bbdae896297p-15));
  q = multiply_add(q, z, broadcast(0x1.8445870f6fe41p-14));
  q = multiply_add(q, z, broadcast(-0x1.f243823c8c981p-13));
  q = multiply_add(q, z, broadcast(0x1.3526e9ed54da1p-11));
  q = multiply_add(q, z, broadcast(-0x1.7d9f6f23e8682p-10));
  q = multiply_add(q, z, broadcast(0x1.d6d39ae3905e2p-9));
  q = multiply_add(q, z, broadcast(-0x1.226e3473dce5cp-7));
  q = multiply_add(q, z, broadcast(0x1.664f487e0a749p-6));
  q = multiply_add(q, z, broadcast(-0x1.ba1ba1ba0f126p-5));
  q = multiply_add(q, z, broadcast(0x1.11111111110a8p-3));
  return multiply_add(q, z, broadcast(-0x1.5555555555555p-2));
}

// 1 + exp(y).
// NOTE: half of exp(y) is doubled at the end, where it becomes infinite if it must. 2^n would be so
// before, and infinity times a negative exp(r) - 1, plus infinity, is NaN.
template <typename V>
LSTM_INLINE V one_plus_exp(V y) {
  using T = Element<V>;
  using C = ExpConstants<T>;
  // NOTE: the comparisons are false for NaN, which passes through.
  y = y > C::kMax ? broadcast(C::kMax) : y;
  y = y < C::kMin ? broadcast(C::kMin) : y;
  const V shifted = multiply_add(y, broadcast(C::kLog2E), broadcast(C::kMagic));
  const V n = shifted - C::kMagic;
  const V rest = multiply_add(n, broadcast(-C::kLn2High), y);
  const V r = multiply_add(n, broadcast(-C::kLn2Low), rest);
  // The low bits of `shifted` are n in two's complement; those of kMagic are zero.
  const V half_scale =
      bit_cast<V>((bit_cast<Integers<T>>(shifted) + (C::kExponentBias - 1)) << C::kMantissaBits);
  const V half = multiply_add(half_scale, exp_polynomial(r), half_scale);
  return multiply_add(half, broadcast(T(2)), broadcast(T(1)));
}

// σ and tanh in the form that common/lstm_cell.h takes.
struct VectorMath {
  template <typename V>
  LSTM_INLINE V multiply_add(V a, V b, V c) {
    return LSTM_ISA::multiply_add(a, b, c);
  }

  template <typename V>
  LSTM_INLINE V sigmoid(V x) {
    return 1 / one_plus_exp(-x);
  }

  template <typename V>
  LSTM_INLINE V tanh(V x) {
    using T = Element<V>;
    using Bits = Integers<T>;
    const Bits sign_bit = bit_cast<Bits>(broadcast(T(-0.0)));
    const Bits sign = bit_cast<Bits>(x) & sign_bit;
    const V magnitude = bit_cast<V>(bit_cast<Bits>(x) & ~sign_bit);
    const V far = 1 - 2 / one_plus_exp(2 * magnitude);
    const V z = x * x;
    const V near = multiply_add(magnitude * z, tanh_polynomial(z), magnitude);
    const V result = magnitude <= T(kTanhBound) ? near : far;
    return bit_cast<V>(bit_cast<Bits>(result) | sign);
  }
};
