// SPDX-License-Identifier: BSD-3-Clause
// The fused multiply-add of the instruction set, apart from vec-inl.h: kernels whose results must
// have the same bits on all of them bring another in its place.

// a·b + c, rounded once where the instruction set can.
// NOTE: written out, and the compiler's own contraction is off (-ffp-contract=off): it may differ
// from one instance of a template to the next, and with it a row's bits from block to block.
template <typename V>
LSTM_INLINE V multiply_add(V a, V b, V c) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<V, VecF>) {
    return bit_cast<V>(
        _mm512_fmadd_ps(bit_cast<__m512>(a), bit_cast<__m512>(b), bit_cast<__m512>(c)));
  } else {
    return bit_cast<V>(
        _mm512_fmadd_pd(bit_cast<__m512d>(a), bit_cast<__m512d>(b), bit_cast<__m512d>(c)));
  }
#elif defined(__FMA__)
  if constexpr (std::is_same_v<V, VecF>) {
    return bit_cast<V>(
        _mm256_fmadd_ps(bit_cast<__m256>(a), bit_cast<__m256>(b), bit_cast<__m256>(c)));
  } else {
    return bit_cast<V>(
        _mm256_fmadd_pd(bit_cast<__m256d>(a), bit_cast<__m256d>(b), bit_cast<__m256d>(c)));
  }
#elif defined(__aarch64__)
  if constexpr (std::is_same_v<V, VecF>) {
    return bit_cast<V>(
        vfmaq_f32(bit_cast<float32x4_t>(c), bit_cast<float32x4_t>(a), bit_cast<float32x4_t>(b)));
  } else {
    return bit_cast<V>(
        vfmaq_f64(bit_cast<float64x2_t>(c), bit_cast<float64x2_t>(a), bit_cast<float64x2_t>(b)));
  }
#else
  return a * b + c;
#endif
}
