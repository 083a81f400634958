// SPDX-License-Identifier: BSD-3-Clause
// Vectors of the instruction set this file is compiled for, on the compiler's vector extensions.
// Included once per ISA inside its namespace (LSTM_ISA); see isa_*.cpp.
//
// NOTE: everything here must be in the ISA's namespace. A shared inline function compiled with
// AVX-512 flags could be the copy that the linker keeps for a processor without them.

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;  // SSE2 and NEON
#endif

#define LSTM_INLINE static inline __attribute__((always_inline))

template <typename T>
struct VectorOf {
  typedef T Type __attribute__((vector_size(kVectorBytes)));
  static constexpr int kWidth = kVectorBytes / sizeof(T);
};
template <typename T>
using Vec = typename VectorOf<T>::Type;
template <typename T>
constexpr int kWidth = VectorOf<T>::kWidth;

using VecF = Vec<float>;
using VecD = Vec<double>;
using VecI = Vec<int32_t>;
using VecU = Vec<uint32_t>;
using VecL = Vec<int64_t>;
// A vector of as many 16-bit elements as VecF has floats.
typedef uint16_t VecH __attribute__((vector_size(kVectorBytes / 2)));

// The element type of a vector.
template <typename V>
using Element = std::remove_reference_t<decltype(std::declval<V&>()[0])>;

// Integers as wide as the elements of V, and the comparison masks of V.
template <typename T>
struct IntegersOf;
template <>
struct IntegersOf<float> {
  using Type = VecI;
};
template <>
struct IntegersOf<uint32_t> {
  using Type = VecI;
};
template <>
struct IntegersOf<double> {
  using Type = VecL;
};
template <typename T>
using Integers = typename IntegersOf<T>::Type;

template <typename T>
LSTM_INLINE Vec<T> broadcast(T value) {
  return value - Vec<T>{};  // NOTE: `value + {}` would turn -0 into +0
}

template <typename To, typename From>
LSTM_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

template <typename V>
LSTM_INLINE V load_unaligned(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <typename V>
LSTM_INLINE void store_unaligned(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

// Copies `count` < 2·kPart elements: a vector, a half, a quarter, …
template <int kPart, typename T>
LSTM_INLINE void copy_first(T* to, const T* from, int count) {
  if constexpr (kPart > 0) {
    const int skip = count & kPart;
    if (skip) __builtin_memcpy(to, from, kPart * sizeof(T));
    copy_first<kPart / 2>(to + skip, from + skip, count);
  }
}

// The first `count` elements, all at most; the others are zero.
template <typename V, typename T>
LSTM_INLINE V load_first(const T* p, int count) {
#if defined(__AVX512F__)
  const uint32_t mask = (1u << count) - 1;
  if constexpr (sizeof(T) == 4) {
    return bit_cast<V>(_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p));
  } else if constexpr (sizeof(T) == 8) {
    return bit_cast<V>(_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), p));
  } else {
    return bit_cast<V>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), p));
  }
#else
#if defined(__AVX2__)
  // NOTE: loads only. Processors of AMD take tens of cycles for a masked store.
  if constexpr (sizeof(T) == 4) {
    const VecI mask = VecI{0, 1, 2, 3, 4, 5, 6, 7} < count;
    return bit_cast<V>(_mm256_maskload_epi32((const int*)p, bit_cast<__m256i>(mask)));
  } else if constexpr (sizeof(T) == 8) {
    const VecL mask = VecL{0, 1, 2, 3} < int64_t{count};
    return bit_cast<V>(_mm256_maskload_epi64((const long long*)p, bit_cast<__m256i>(mask)));
  }
#endif
  V v{};
  copy_first<sizeof(V) / sizeof(T)>(reinterpret_cast<T*>(&v), p, count);
  return v;
#endif
}

template <typename V, typename T>
LSTM_INLINE void store_first(T* p, V v, int count) {
#if defined(__AVX512F__)
  const uint32_t mask = (1u << count) - 1;
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask), bit_cast<__m512>(v));
  } else if constexpr (sizeof(T) == 8) {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>(mask), bit_cast<__m512d>(v));
  } else {
    _mm256_mask_storeu_epi16(p, static_cast<__mmask16>(mask), bit_cast<__m256i>(v));
  }
#else
  copy_first<sizeof(V) / sizeof(T)>(p, reinterpret_cast<const T*>(&v), count);
#endif
}

LSTM_INLINE VecF widen_bf16(VecH h) {
  return bit_cast<VecF>(__builtin_convertvector(h, VecU) << 16);
}

// Round to nearest even; NaN stays NaN (quiet).
LSTM_INLINE VecH narrow_bf16(VecF f) {
  const VecU bits = bit_cast<VecU>(f);
  const VecU rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const VecU quiet = (bits >> 16) | 0x40u;
  return __builtin_convertvector(f == f ? rounded : quiet, VecH);
}

#if defined(__F16C__)
LSTM_INLINE VecF widen_fp16(VecH h) {
#if defined(__AVX512F__)
  // NOTE: the unmasked intrinsic warns of its own undefined register (GCC 12, bug 105593).
  return bit_cast<VecF>(_mm512_maskz_cvtph_ps(0xFFFF, bit_cast<__m256i>(h)));
#else
  return bit_cast<VecF>(_mm256_cvtph_ps(bit_cast<__m128i>(h)));
#endif
}
LSTM_INLINE VecH narrow_fp16(VecF f) {
#if defined(__AVX512F__)
  return bit_cast<VecH>(_mm512_maskz_cvtps_ph(0xFFFF, bit_cast<__m512>(f),
                                              _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  return bit_cast<VecH>(
      _mm256_cvtps_ph(bit_cast<__m256>(f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#endif
}
#else
LSTM_INLINE VecF widen_fp16(VecH h) {
  const VecU bits = __builtin_convertvector(h, VecU);
  const VecU sign = (bits & 0x8000u) << 16;
  const VecU magnitude = (bits & 0x7FFFu) << 13;
  const VecU normal = magnitude + 0x38000000u;  // moves the exponent bias from 15 to 127
  // Subnormal: the mantissa of 0.5 counts in units of 2^-24.
  const VecU subnormal = bit_cast<VecU>(bit_cast<VecF>((bits & 0x03FFu) | 0x3F000000u) - 0.5f);
  const VecU special = magnitude | 0x7F800000u;  // inf and NaN
  VecU out = magnitude < 0x00800000u ? subnormal : normal;
  out = magnitude >= 0x0F800000u ? special : out;
  return bit_cast<VecF>(sign | out);
}
LSTM_INLINE VecH narrow_fp16(VecF f) {
  const VecU bits = bit_cast<VecU>(f);
  const VecU sign = (bits >> 16) & 0x8000u;
  const VecU magnitude = bits & 0x7FFFFFFFu;
  // Normal: move the bias, round to nearest even on bit 13.
  const VecU normal = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal: adding 0.5 lets the FPU round at 2^-24.
  const VecU subnormal = bit_cast<VecU>(bit_cast<VecF>(magnitude) + 0.5f) - 0x3F000000u;
  VecU out = magnitude < 0x38800000u ? subnormal : normal;
  out = magnitude >= 0x477FF000u ? (out & 0u) | 0x7C00u : out;  // overflow
  out = magnitude > 0x7F800000u ? (out & 0u) | 0x7E00u : out;   // NaN
  return __builtin_convertvector(sign | out, VecH);
}
#endif

// Loads as accumulators and stores from them, with conversion. `count` lanes; the full width is
// the fast path, known at compile time.
template <bool kFull, typename V, typename S>
LSTM_INLINE V load_lanes(const S* p, int count) {
  if constexpr (sizeof(S) == sizeof(Element<V>)) {
    return kFull ? load_unaligned<V>(p) : load_first<V>(p, count);
  } else {
    const VecH half = kFull ? load_unaligned<VecH>(p) : load_first<VecH>(p, count);
    return std::is_same_v<S, BFloat16> ? widen_bf16(half) : widen_fp16(half);
  }
}

template <typename S>
LSTM_INLINE VecH narrow(VecF v) {
  return std::is_same_v<S, BFloat16> ? narrow_bf16(v) : narrow_fp16(v);
}

template <bool kFull, typename V, typename S>
LSTM_INLINE void store_lanes(S* p, V v, int count) {
  if constexpr (sizeof(S) == sizeof(Element<V>)) {
    kFull ? store_unaligned(p, v) : store_first(p, v, count);
  } else {
    kFull ? store_unaligned(p, narrow<S>(v)) : store_first(p, narrow<S>(v), count);
  }
}

// One step of a transposition. Lanes whose number has the bit kShift come from `b`, those without
// it from `a`: with kShift > 0 those of `b` from kShift lanes below, with kShift < 0 those of `a`
// from -kShift lanes above.
template <int kShift, typename V>
LSTM_INLINE V exchange_lanes(V a, V b) {
  constexpr int width = sizeof(V) / sizeof(Element<V>);
  constexpr int shift = kShift > 0 ? kShift : -kShift;
  Integers<Element<V>> from;
#pragma GCC unroll 16
  for (int lane = 0; lane < width; ++lane) {
    const bool second = lane & shift;
    if (kShift > 0) {
      from[lane] = second ? width + lane - shift : lane;
    } else {
      from[lane] = second ? width + lane : lane + shift;
    }
  }
#if defined(__clang__)
  V out;
  for (int lane = 0; lane < width; ++lane) {
    out[lane] = from[lane] < width ? a[from[lane]] : b[from[lane] - width];
  }
  return out;
#else
  return __builtin_shuffle(a, b, from);
#endif
}

// Transposes a square of W vectors, by halves, quarters, … of it.
template <int kShift, typename V, int kCount>
LSTM_INLINE void transpose_square(V (&rows)[kCount]) {
  if constexpr (kShift > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) {
      if (i & kShift) continue;
      const V low = exchange_lanes<kShift>(rows[i], rows[i + kShift]);
      rows[i + kShift] = exchange_lanes<-kShift>(rows[i], rows[i + kShift]);
      rows[i] = low;
    }
    transpose_square<kShift / 2>(rows);
  }
}

// Lane i = the sum of the lanes of rows[i], in the same order for every i: a transposition that
// adds where that one keeps two halves apart. Destroys `rows`.
template <int kShift, typename V>
LSTM_INLINE V sum_square(V* rows) {
  if constexpr (kShift == 0) {
    return rows[0];
  } else {
    constexpr int width = sizeof(V) / sizeof(Element<V>);
#pragma GCC unroll 16
    for (int i = 0; i < width; i += 2 * kShift) {
      rows[i] = exchange_lanes<kShift>(rows[i], rows[i + kShift]) +
                exchange_lanes<-kShift>(rows[i], rows[i + kShift]);
    }
    return sum_square<kShift == width / 2 ? 0 : kShift * 2>(rows);
  }
}
