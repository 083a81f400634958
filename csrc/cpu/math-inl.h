// SPDX-License-Identifier: BSD-3-Clause
// exp, sigmoid and tanh on vectors: within 2 ulp of the exact value in float and in double
// (measured by tests/cpp/math_test.cpp). NaN stays NaN; infinities saturate.
//
// Both rest on expm1 after the usual reduction y = n·ln2 + r, |r| ≤ ln2/2:
//   2^n = s    expm1(r) = p (polynomial)    exp(y) = s + s·p    expm1(y) = s·p + (s - 1)

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
  // 2^n stays a normal number, so that s and s·p neither overflow nor flush.
  static constexpr float kMax = 88.0f;
  static constexpr float kMin = -87.0f;
};

template <>
struct ExpConstants<double> {
  static constexpr double kMagic = 0x1.8p52;
  static constexpr int kMantissaBits = 52;
  static constexpr int kExponentBias = 1023;
  static constexpr double kLog2E = 0x1.71547652b82fep0;
  static constexpr double kLn2High = 0x1.62e42fee00000p-1;  // 32 bits
  static constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr double kMax = 709.0;
  static constexpr double kMin = -708.0;
};

// expm1(r)/r - 1 = r/2! + r²/3! + …; the Taylor series is as good as a minimax polynomial of the
// same degree plus one here, and shows where it comes from. Remainders: r^7/8! = 1.5e-8 (float),
// r^13/14! = 1.2e-17 (double), relative to r.
LSTM_INLINE VecF expm1_polynomial(VecF r) {
  VecF q = broadcast(1.0f / 5040);
  q = q * r + 1.0f / 720;
  q = q * r + 1.0f / 120;
  q = q * r + 1.0f / 24;
  q = q * r + 1.0f / 6;
  q = q * r + 1.0f / 2;
  return r * r * q + r;
}

LSTM_INLINE VecD expm1_polynomial(VecD r) {
  VecD q = broadcast(1.0 / 6227020800.0);
  q = q * r + 1.0 / 479001600.0;
  q = q * r + 1.0 / 39916800.0;
  q = q * r + 1.0 / 3628800.0;
  q = q * r + 1.0 / 362880.0;
  q = q * r + 1.0 / 40320.0;
  q = q * r + 1.0 / 5040.0;
  q = q * r + 1.0 / 720.0;
  q = q * r + 1.0 / 120.0;
  q = q * r + 1.0 / 24.0;
  q = q * r + 1.0 / 6.0;
  q = q * r + 1.0 / 2.0;
  return r * r * q + r;
}

template <typename V>
struct Exponential {
  V scale;       // 2^n
  V expm1_rest;  // expm1(r)
};

template <typename V>
LSTM_INLINE Exponential<V> reduce_exp(V y) {
  using T = Element<V>;
  using C = ExpConstants<T>;
  // NOTE: the comparisons are false for NaN, which passes through.
  y = y > C::kMax ? broadcast(C::kMax) : y;
  y = y < C::kMin ? broadcast(C::kMin) : y;
  const V shifted = y * C::kLog2E + C::kMagic;
  const V n = shifted - C::kMagic;
  const V r = (y - n * C::kLn2High) - n * C::kLn2Low;
  // The low bits of `shifted` are n in two's complement; those of kMagic are zero.
  const auto exponent = (bit_cast<Integers<T>>(shifted) + C::kExponentBias) << C::kMantissaBits;
  return {bit_cast<V>(exponent), expm1_polynomial(r)};
}

template <typename V>
LSTM_INLINE V exponential(V y) {
  const Exponential<V> e = reduce_exp(y);
  return e.scale * e.expm1_rest + e.scale;
}

// σ and tanh in the form that common/lstm_cell.h takes.
struct VectorMath {
  template <typename V>
  LSTM_INLINE V sigmoid(V x) {
    return 1 / (1 + exponential(-x));
  }

  // tanh|x| = -e / (2 + e) with e = expm1(-2|x|) in (-1, 0].
  template <typename V>
  LSTM_INLINE V tanh(V x) {
    using Bits = Integers<Element<V>>;
    const Bits sign_bit = bit_cast<Bits>(broadcast(Element<V>(-0.0)));
    const Bits sign = bit_cast<Bits>(x) & sign_bit;
    const V magnitude = bit_cast<V>(bit_cast<Bits>(x) & ~sign_bit);
    const Exponential<V> e = reduce_exp(-2 * magnitude);
    const V expm1 = e.scale * e.expm1_rest + (e.scale - 1);
    return bit_cast<V>(bit_cast<Bits>(-expm1 / (2 + expm1)) | sign);
  }
};
