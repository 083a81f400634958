// SPDX-License-Identifier: BSD-3-Clause
// The cell over packed weights (common/lstm_cell.h has its formulas), in fewer operations than
// VectorMath takes: with few rows it is a fifth of a step. Three divisions in place of five,
//   i·g = e_g / ((e_g + 2)·(1 + exp(-a_i)))        e_g = exp(2·a_g) - 1, tanh = e_g / (e_g + 2)
//   h = e_c / ((e_c + 2)·(1 + exp(-a_o)))          e_c = exp(2·c) - 1
// exp is a power of two, whose argument takes one reduction; its relative error grows with it, but
// not what is seen of it in σ and tanh. Errors are below 2.5e-7 of 1, of tanh near 0 below 3 ulp.

// Rounds once where the instruction set can.
struct OwnMultiplyAdd {
  LSTM_INLINE VecF of(VecF a, VecF b, VecF c) { return multiply_add(a, b, c); }
};
// Rounds once on all instruction sets.
struct ExactMultiplyAdd {
  LSTM_INLINE VecF of(VecF a, VecF b, VecF c) { return exact_multiply_add(a, b, c); }
};

// The larger and the smaller one, or b where that is NaN.
// NOTE: written out for x86, since the compiler makes a mask and a blend of a comparison, four
// times the latency. Measured: int8 steps of N = 16, H = 64 take 5 % less time.
LSTM_INLINE VecF larger(VecF a, VecF b) {
#if defined(__AVX512F__)
  return bit_cast<VecF>(_mm512_maskz_max_ps(0xFFFF, bit_cast<__m512>(a), bit_cast<__m512>(b)));
#elif defined(__AVX2__)
  return bit_cast<VecF>(_mm256_max_ps(bit_cast<__m256>(a), bit_cast<__m256>(b)));
#elif defined(__SSE2__)
  return bit_cast<VecF>(_mm_max_ps(bit_cast<__m128>(a), bit_cast<__m128>(b)));
#else
  return a > b ? a : b;
#endif
}
LSTM_INLINE VecF smaller(VecF a, VecF b) {
#if defined(__AVX512F__)
  return bit_cast<VecF>(_mm512_maskz_min_ps(0xFFFF, bit_cast<__m512>(a), bit_cast<__m512>(b)));
#elif defined(__AVX2__)
  return bit_cast<VecF>(_mm256_min_ps(bit_cast<__m256>(a), bit_cast<__m256>(b)));
#elif defined(__SSE2__)
  return bit_cast<VecF>(_mm_min_ps(bit_cast<__m128>(a), bit_cast<__m128>(b)));
#else
  return a < b ? a : b;
#endif
}

template <typename MultiplyAdd>
struct PackedCell {
  // In their place: i·g, f, nothing, 1 + exp(-a_o).
  LSTM_INLINE void activate(VecF* units) {
    const VecF twice = expm1_of_twice(units[kCellGate]);
    units[kInputGate] = twice / ((twice + 2.0f) * one_plus_exp_of_minus(units[kInputGate]));
    units[kForgetGate] = 1.0f / one_plus_exp_of_minus(units[kForgetGate]);
    units[kOutputGate] = one_plus_exp_of_minus(units[kOutputGate]);
  }

  LSTM_INLINE CellOutput<VecF> finish(const VecF* units, VecF c_prev) {
    const VecF c = MultiplyAdd::of(units[kForgetGate], c_prev, units[kInputGate]);
    const VecF twice = expm1_of_twice(c);
    return {twice / ((twice + 2.0f) * units[kOutputGate]), c};
  }

 private:
  using C = ExpConstants<float>;

  // 2^t = scale + part·series.
  struct Power {
    VecF scale, part, series;
  };

  // (2^f - 1)/f for |f| ≤ 1/2: the Chebyshev fit, of relative error 2.2e-8.
  LSTM_INLINE VecF series(VecF f) {
    VecF q = broadcast(0x1.44138ap-13f);
    q = MultiplyAdd::of(q, f, broadcast(0x1.5f0890p-10f));
    q = MultiplyAdd::of(q, f, broadcast(0x1.3b2a54p-7f));
    q = MultiplyAdd::of(q, f, broadcast(0x1.c6af6cp-5f));
    q = MultiplyAdd::of(q, f, broadcast(0x1.ebfbe0p-3f));
    return MultiplyAdd::of(q, f, broadcast(0x1.62e430p-1f));
  }

  // 2^(factor·y), for -126.5 < factor·y < 127.5.
  LSTM_INLINE Power power(VecF y, float factor) {
    const VecF shifted = MultiplyAdd::of(y, broadcast(factor), broadcast(C::kMagic));
    const VecF minus_n = C::kMagic - shifted;
    const VecF f = MultiplyAdd::of(y, broadcast(factor), minus_n);
    // The low bits of `shifted` are n in two's complement; those of kMagic are zero.
    const VecF scale =
        bit_cast<VecF>((bit_cast<VecI>(shifted) + C::kExponentBias) << C::kMantissaBits);
    return {scale, scale * f, series(f)};
  }

  LSTM_INLINE VecF clamp(VecF x, float least, float most) {
    return smaller(broadcast(most), larger(broadcast(least), x));
  }

  // 1/σ(x). NOTE: from -87.4 down σ is a denormal number, 0 where these are flushed, as they are
  // while kernels run: a closed gate lets nothing through, however large.
  LSTM_INLINE VecF one_plus_exp_of_minus(VecF x) {
    const Power of = power(clamp(x, -88.3f, 87.0f), -C::kLog2E);
    return MultiplyAdd::of(of.part, of.series, of.scale + 1.0f);
  }

  // exp(2x) - 1; beyond 10 its tanh is 1.
  LSTM_INLINE VecF expm1_of_twice(VecF x) {
    const Power of = power(clamp(x, -10.0f, 10.0f), 2 * C::kLog2E);
    return MultiplyAdd::of(of.part, of.series, of.scale - 1.0f);
  }
};
