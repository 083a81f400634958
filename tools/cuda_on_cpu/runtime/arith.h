// SPDX-License-Identifier: BSD-3-Clause
// PTX arithmetic in C++, one small function per operation: integers and bits. Registers are
// unsigned integers; as<T> reads one as a type, and bits() goes back. To compile with -fwrapv.
#pragma once

#include <cstdint>

namespace cuda_on_cpu {

// ---- Types
// ---------------------------------------------------------------------------------------

template <class T, class U>
inline T as(U word) {
  static_assert(sizeof(T) == sizeof(U));
  return __builtin_bit_cast(T, word);
}

template <int bytes>
struct Word;
template <>
struct Word<1> {
  using type = uint8_t;
};
template <>
struct Word<2> {
  using type = uint16_t;
};
template <>
struct Word<4> {
  using type = uint32_t;
};
template <>
struct Word<8> {
  using type = uint64_t;
};

template <class T>
inline typename Word<sizeof(T)>::type bits(T value) {
  return __builtin_bit_cast(typename Word<sizeof(T)>::type, value);
}

template <class T>
constexpr bool kIsSigned = T(-1) < T(0);
template <class T>
constexpr uint32_t kBits = 8 * sizeof(T);
template <class A, class B>
constexpr bool kSame = false;
template <class A>
constexpr bool kSame<A, A> = true;

// ---- Integers
// ------------------------------------------------------------------------------------

template <class T>
inline T mul_hi(T a, T b) {
  if constexpr (sizeof(T) == 8 && kIsSigned<T>) {
    return static_cast<T>((static_cast<__int128>(a) * b) >> 64);
  } else if constexpr (sizeof(T) == 8) {
    return static_cast<T>((static_cast<unsigned __int128>(a) * b) >> 64);
  } else if constexpr (kIsSigned<T>) {
    return static_cast<T>((static_cast<int64_t>(a) * b) >> kBits<T>);
  } else {
    return static_cast<T>((static_cast<uint64_t>(a) * b) >> kBits<T>);
  }
}

// Division by zero is unspecified in PTX; GPUs give all ones.
template <class T>
inline T divide(T a, T b) {
  if (b == 0) return static_cast<T>(~T(0));
  if (kIsSigned<T> && b == T(-1)) return static_cast<T>(-a);
  return static_cast<T>(a / b);
}
template <class T>
inline T remainder(T a, T b) {
  if (b == 0) return a;
  if (kIsSigned<T> && b == T(-1)) return 0;
  return static_cast<T>(a % b);
}
inline float divide(float a, float b) { return a / b; }
inline double divide(double a, double b) { return a / b; }

template <class T>
inline T mul24(T a, T b, bool high) {
  const int64_t product = kIsSigned<T> ? static_cast<int64_t>(static_cast<int32_t>(a << 8) >> 8) *
                                             (static_cast<int32_t>(b << 8) >> 8)
                                       : static_cast<int64_t>(a & 0xffffff) * (b & 0xffffff);
  return static_cast<T>(high ? product >> 16 : product);
}
template <class T>
inline T sum_abs_difference(T a, T b, T c) {
  return static_cast<T>(c + (a < b ? b - a : a - b));
}
inline int32_t add_saturated(int32_t a, int32_t b) {
  const int64_t sum = static_cast<int64_t>(a) + b;
  return sum > INT32_MAX ? INT32_MAX : sum < INT32_MIN ? INT32_MIN : static_cast<int32_t>(sum);
}

template <class T>
inline T add_carry(T a, T b, bool in, bool* out) {
  const T sum = static_cast<T>(a + b);
  const T total = static_cast<T>(sum + T(in));
  *out = sum < a || total < sum;
  return total;
}
template <class T>
inline T sub_borrow(T a, T b, bool in, bool* out) {
  const T difference = static_cast<T>(a - b);
  *out = a < b || difference < T(in);
  return static_cast<T>(difference - T(in));
}

template <class T>
inline T shift_left(T x, uint32_t n) {
  return n >= kBits<T> ? T(0) : static_cast<T>(x << n);
}
template <class T>
inline T shift_right(T x, uint32_t n) {
  return n >= kBits<T> ? (x < T(0) ? T(-1) : T(0)) : static_cast<T>(x >> n);
}
inline uint32_t funnel_left(uint32_t a, uint32_t b, uint32_t n, bool wrap) {
  const uint32_t m = wrap ? n & 31 : n < 32 ? n : 32;
  return static_cast<uint32_t>(((static_cast<uint64_t>(b) << 32 | a) << m) >> 32);
}
inline uint32_t funnel_right(uint32_t a, uint32_t b, uint32_t n, bool wrap) {
  const uint32_t m = wrap ? n & 31 : n < 32 ? n : 32;
  return static_cast<uint32_t>((static_cast<uint64_t>(b) << 32 | a) >> m);
}

template <class T>
inline T bit_insert(T a, T b, uint32_t at, uint32_t length) {
  at &= 255;
  length &= 255;
  if (at >= kBits<T>) return b;
  const T mask = static_cast<T>((length >= kBits<T> ? ~T(0) : (T(1) << length) - 1) << at);
  return static_cast<T>((b & ~mask) | ((a << at) & mask));
}
template <class T>
inline T bit_extract(T a, uint32_t at, uint32_t length) {
  at &= 255;
  length &= 255;
  if (length == 0) return 0;
  T result = 0;
  const uint32_t last = at + length - 1 < kBits<T> - 1 ? at + length - 1 : kBits<T> - 1;
  for (uint32_t i = 0; i < kBits<T>; ++i) {
    const bool inside = i < length && at + i < kBits<T>;
    const uint32_t from = inside ? at + i : last;
    const bool bit = (inside || kIsSigned<T>) && ((a >> from) & 1);
    result = static_cast<T>(result | static_cast<T>(T(bit) << i));
  }
  return result;
}
inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t pick = selector >> (4 * i);
    uint32_t byte = static_cast<uint32_t>(bytes >> (8 * (pick & 7))) & 0xff;
    if (pick & 8) byte = (byte & 0x80) ? 0xff : 0;
    result |= byte << (8 * i);
  }
  return result;
}
inline uint32_t logic3(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t result = 0;
  for (uint32_t i = 0; i < 8; ++i) {
    if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  }
  return result;
}
template <class T>
inline uint32_t leading_zeros(T x) {
  if (x == 0) return kBits<T>;
  return static_cast<uint32_t>(sizeof(T) == 8 ? __builtin_clzll(x)
                                              : __builtin_clz(static_cast<uint32_t>(x)));
}
template <class T>
inline uint32_t population(T x) {
  return static_cast<uint32_t>(__builtin_popcountll(x));
}
template <class T>
inline T reverse_bits(T x) {
  T result = 0;
  for (uint32_t i = 0; i < kBits<T>; ++i) result |= ((x >> i) & 1) << (kBits<T> - 1 - i);
  return result;
}
// The place of the highest bit that differs from the sign; all ones where there is none.
template <class T>
inline uint32_t find_leading(T x, bool shift_amount) {
  using U = typename Word<sizeof(T)>::type;
  const U word = static_cast<U>(kIsSigned<T> && x < T(0) ? ~x : x);
  if (word == 0) return ~0u;
  const uint32_t zeros = leading_zeros(word);
  return shift_amount ? zeros : kBits<T> - 1 - zeros;
}
template <class A, class B, class C>
inline C dot4(uint32_t a, uint32_t b, C c) {
  for (uint32_t i = 0; i < 4; ++i) {
    c = static_cast<C>(c + static_cast<A>(a >> (8 * i)) * static_cast<B>(b >> (8 * i)));
  }
  return c;
}

// ---- Atomic operations
// ---------------------------------------------------------------------------

template <class T>
inline T wrap_increment(T old, T limit) {
  return old >= limit ? T(0) : static_cast<T>(old + 1);
}
template <class T>
inline T wrap_decrement(T old, T limit) {
  return old == 0 || old > limit ? limit : static_cast<T>(old - 1);
}

}  // namespace cuda_on_cpu
