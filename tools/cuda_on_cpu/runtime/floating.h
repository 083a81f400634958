// SPDX-License-Identifier: BSD-3-Clause
// PTX arithmetic in C++: floating point, 16 bits included. To compile without contraction.
#pragma once

#include "arith.h"

namespace cuda_on_cpu {

// ---- Types
// ---------------------------------------------------------------------------------------

struct f16 {
  uint16_t word;
};
struct bf16 {
  uint16_t word;
};
template <class E>
struct Pair {
  E low, high;
};
using f16x2 = Pair<f16>;
using bf16x2 = Pair<bf16>;

template <class T>
inline bool is_nan(T x) {
  return x != x;
}
inline float to_float(float x) { return x; }
inline float to_float(f16 x) { return static_cast<float>(as<_Float16>(x.word)); }
inline float to_float(bf16 x) { return as<float>(static_cast<uint32_t>(x.word) << 16); }
inline bool is_nan(f16 x) { return (x.word & 0x7fff) > 0x7c00; }
inline bool is_nan(bf16 x) { return (x.word & 0x7fff) > 0x7f80; }

// Rounds a result that was formed in double: to float, or once to a 16-bit type.
template <class T>
inline T from_double(double x);
template <>
inline f16 from_double<f16>(double x) {
  return is_nan(x) ? f16{0x7fff} : f16{bits(static_cast<_Float16>(x))};
}
template <>
inline bf16 from_double<bf16>(double x) {
  if (is_nan(x)) return bf16{0x7fff};
  // Round to odd, so that the second rounding, to nearest even, sees that bits were lost.
  const float near = static_cast<float>(x);
  uint32_t word = bits(near);
  if (static_cast<double>(near) != x && (word & 1) == 0 && (word & 0x7fffffff) != 0x7f800000) {
    const bool away = (static_cast<double>(near) < x) == (x > 0);
    word += away ? 1 : -1;
  }
  return bf16{static_cast<uint16_t>((word + 0x7fff + ((word >> 16) & 1)) >> 16)};
}
template <>
inline float from_double<float>(double x) {
  return static_cast<float>(x);
}
template <>
inline double from_double<double>(double x) {
  return x;
}

inline float flush(float x) {
  return (bits(x) & 0x7f800000) == 0 ? as<float>(bits(x) & 0x80000000) : x;
}

// ---- Floating point
// ------------------------------------------------------------------------------

template <class T>
inline T absolute(T x) {
  return x < T(0) ? static_cast<T>(-x) : x;
}
inline float absolute(float x) { return __builtin_fabsf(x); }
inline double absolute(double x) { return __builtin_fabs(x); }
inline f16 absolute(f16 x) { return {static_cast<uint16_t>(x.word & 0x7fff)}; }
inline bf16 absolute(bf16 x) { return {static_cast<uint16_t>(x.word & 0x7fff)}; }
template <class T>
inline T negate(T x) {
  return static_cast<T>(-x);
}
inline f16 negate(f16 x) { return {static_cast<uint16_t>(x.word ^ 0x8000)}; }
inline bf16 negate(bf16 x) { return {static_cast<uint16_t>(x.word ^ 0x8000)}; }
inline float copy_sign(float sign, float x) { return __builtin_copysignf(x, sign); }
inline double copy_sign(double sign, double x) { return __builtin_copysign(x, sign); }

inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
template <class E>
inline E fused16(E a, E b, E c) {
  // The product is exact in double. Round the sum to odd: rounding it again then errs nowhere.
  const double product = static_cast<double>(to_float(a)) * to_float(b);
  const double addend = to_float(c);
  const double sum = product + addend;
  const double part = sum - product;
  const double error = (product - (sum - part)) + (addend - part);
  uint64_t word = bits(sum);
  if (error != 0 && !is_nan(error) && (word & 1) == 0) word += ((error > 0) == (sum > 0)) ? 1 : -1;
  return from_double<E>(as<double>(word));
}
inline f16 fused(f16 a, f16 b, f16 c) { return fused16(a, b, c); }
inline bf16 fused(bf16 a, bf16 b, bf16 c) { return fused16(a, b, c); }

template <class T>
inline T add(T a, T b) {
  return static_cast<T>(a + b);
}
template <class T>
inline T sub(T a, T b) {
  return static_cast<T>(a - b);
}
template <class T>
inline T mul(T a, T b) {
  return static_cast<T>(a * b);
}
#define CUDA_ON_CPU_16(E)                                                                       \
  inline E add(E a, E b) {                                                                      \
    return from_double<E>(static_cast<double>(to_float(a)) + static_cast<double>(to_float(b))); \
  }                                                                                             \
  inline E sub(E a, E b) {                                                                      \
    return from_double<E>(static_cast<double>(to_float(a)) - static_cast<double>(to_float(b))); \
  }                                                                                             \
  inline E mul(E a, E b) {                                                                      \
    return from_double<E>(static_cast<double>(to_float(a)) * static_cast<double>(to_float(b))); \
  }                                                                                             \
  inline bool operator<(E a, E b) { return to_float(a) < to_float(b); }                         \
  inline bool operator==(E a, E b) { return to_float(a) == to_float(b); }
CUDA_ON_CPU_16(f16)
CUDA_ON_CPU_16(bf16)
#undef CUDA_ON_CPU_16

template <class T>
inline T minimum(T a, T b) {
  return b < a ? b : a;
}
template <class T>
inline T maximum(T a, T b) {
  return a < b ? b : a;
}
// The number where one operand is NaN; -0 is below +0.
template <class F>
inline F float_minimum(F a, F b, bool propagate_nan) {
  if (is_nan(a) || is_nan(b)) return propagate_nan ? (is_nan(a) ? a : b) : is_nan(a) ? b : a;
  if (a == b) return bits(a) >> (kBits<F> - 1) ? a : b;
  return a < b ? a : b;
}
template <class F>
inline F float_maximum(F a, F b, bool propagate_nan) {
  if (is_nan(a) || is_nan(b)) return propagate_nan ? (is_nan(a) ? a : b) : is_nan(a) ? b : a;
  if (a == b) return bits(a) >> (kBits<F> - 1) ? b : a;
  return a < b ? b : a;
}
inline float saturate(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }
inline double saturate(double x) { return x > 0 ? (x < 1 ? x : 1.0) : 0.0; }
template <class E>
inline E saturate(E x) {
  return from_double<E>(saturate(to_float(x)));
}
template <class E>
inline E rectify(E x) {
  return is_nan(x) || to_float(x) > 0 ? x : from_double<E>(0);
}

// Applies an operation to both halves.
template <class E, class F>
inline Pair<E> each(F f, Pair<E> a) {
  return {f(a.low), f(a.high)};
}
template <class E, class F>
inline Pair<E> each(F f, Pair<E> a, Pair<E> b) {
  return {f(a.low, b.low), f(a.high, b.high)};
}
template <class E, class F>
inline Pair<E> each(F f, Pair<E> a, Pair<E> b, Pair<E> c) {
  return {f(a.low, b.low, c.low), f(a.high, b.high, c.high)};
}

// Approximate functions are the exact ones here.
inline float root(float x) { return __builtin_sqrtf(x); }
inline double root(double x) { return __builtin_sqrt(x); }
inline float exp2_of(float x) { return __builtin_exp2f(x); }
inline float log2_of(float x) { return __builtin_log2f(x); }
inline float sin_of(float x) { return __builtin_sinf(x); }
inline float cos_of(float x) { return __builtin_cosf(x); }
inline float tanh_of(float x) { return __builtin_tanhf(x); }

// ---- Comparison and conversion
// -------------------------------------------------------------------

// Whether neither operand is NaN. PTX's comparisons with U are true too where one is.
template <class T>
inline bool ordered(T a, T b) {
  return !is_nan(a) && !is_nan(b);
}

enum class Integral { kNearest, kZero, kDown, kUp };
inline double to_integral(double x, Integral how) {
  switch (how) {
    case Integral::kNearest:
      return __builtin_nearbyint(x);
    case Integral::kZero:
      return __builtin_trunc(x);
    case Integral::kDown:
      return __builtin_floor(x);
    default:
      return __builtin_ceil(x);
  }
}

template <class T>
inline T to_int(double x, Integral how) {
  const double whole = to_integral(x, how);
  if (is_nan(whole)) return sizeof(T) == 8 ? static_cast<T>(T(1) << 63) : T(0);
  const double top = __builtin_ldexp(1, kIsSigned<T> ? kBits<T> - 1 : kBits<T>);
  const T largest =
      static_cast<T>(kIsSigned<T> ? (uint64_t(1) << (kBits<T> - 1)) - 1 : ~uint64_t(0));
  if (whole >= top) return largest;
  if (whole < (kIsSigned<T> ? -top : 0.0)) return static_cast<T>(kIsSigned<T> ? ~largest : 0);
  return static_cast<T>(whole);
}
template <class T, class S>
inline T clamp_int(S x) {
  const __int128 low = kIsSigned<T> ? -(__int128(1) << (kBits<T> - 1)) : 0;
  const __int128 high = (__int128(1) << (kBits<T> - kIsSigned<T>)) - 1;
  return static_cast<T>(x < low ? low : x > high ? high : __int128(x));
}

inline uint16_t toward_zero_f16(float x) {
  const f16 near = from_double<f16>(x);
  const bool beyond = absolute(to_float(near)) > absolute(x);
  return static_cast<uint16_t>(near.word - (beyond ? 1 : 0));
}
inline uint16_t toward_zero_bf16(float x) {
  return is_nan(x) ? 0x7fff : static_cast<uint16_t>(bits(x) >> 16);
}
// To nearest, ties away from zero: the ten leading bits of the mantissa stay.
inline uint32_t to_tf32_away(float x) {
  const uint32_t word = bits(x);
  if ((word & 0x7f800000) == 0x7f800000) return is_nan(x) ? 0x7fffffff : word;
  return (word + 0x1000) & ~0x1fffu;
}
inline uint32_t to_tf32_even(float x) {
  const uint32_t word = bits(x);
  if ((word & 0x7f800000) == 0x7f800000) return is_nan(x) ? 0x7fffffff : word;
  return (word + 0xfff + ((word >> 13) & 1)) & ~0x1fffu;
}

}  // namespace cuda_on_cpu
