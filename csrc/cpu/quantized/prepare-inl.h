// SPDX-License-Identifier: BSD-3-Clause
// prepare_rows: float32 rows as the products take them.

constexpr float kMaxQuantized = 32767;
// Rows of smaller values count as zeros: their scale and its inverse would leave float32's range.
constexpr float kLeastRow = 0x1p-100f;
constexpr int32_t kInfinityBits = 0x7F800000;

// Values of a row from k on, zeros past its end.
LSTM_INLINE VecF load_row(const float* row, int64_t k, int64_t k_size) {
  const int64_t left = k_size - k;
  return left >= kWidth<float> ? load_unaligned<VecF>(row + k)
                               : load_first<VecF>(row + k, static_cast<int>(left));
}

// The largest of the first 2·kShift lanes, by halves. Measured, Zen 5: rows of 8 and 16 values are
// prepared in 0.63 of the time that it takes lane by lane.
template <int kShift>
LSTM_INLINE int32_t largest_lane(VecI lanes) {
  if constexpr (kShift == 0) {
    return lanes[0];
  } else {
    const VecF floats = bit_cast<VecF>(lanes);
    const VecI above = bit_cast<VecI>(exchange_lanes<-kShift>(floats, floats));
    return largest_lane<kShift / 2>(above > lanes ? above : lanes);
  }
}

// The bits of the largest magnitude of a row.
// NOTE: compared as integers, which are in the order of the magnitudes, NaN above infinity.
LSTM_INLINE int32_t largest_magnitude_bits(const float* row, int64_t k_size) {
  VecI largest{};
  for (int64_t k = 0; k < k_size; k += kWidth<float>) {
    const VecI magnitude = bit_cast<VecI>(load_row(row, k, k_size)) & 0x7FFFFFFF;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest_lane<kWidth<float> / 2>(largest);
}

// Integers q of 16 bits as the products with int8 take a group of four, in 8 bytes:
//   VNNI   the low bytes of q + 32768, which are 0 … 255, and then the high ones
//   else   q0, q2, q1, q3
LSTM_INLINE void store_quantized(VecI q, uint8_t* out) {
#if defined(__AVX512VNNI__)
  const __m512i shifted = bit_cast<__m512i>(q + 32768);
  const __m128i low = _mm512_maskz_cvtepi32_epi8(0xFFFF, shifted);
  const __m128i high =
      _mm512_maskz_cvtepi32_epi8(0xFFFF, _mm512_maskz_srli_epi32(0xFFFF, shifted, 8));
  store_unaligned(out, _mm_unpacklo_epi32(low, high));
  store_unaligned(out + 16, _mm_unpackhi_epi32(low, high));
#elif defined(__AVXVNNI__)
  const __m256i order = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, -1, -1, -1, -1, -1, -1, -1, -1,
                                         0, 4, 8, 12, 1, 5, 9, 13, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i halves = _mm256_shuffle_epi8(bit_cast<__m256i>(q + 32768), order);
  store_unaligned(out, _mm256_castsi256_si128(_mm256_permute4x64_epi64(halves, 0b1000)));
#elif defined(__AVX512F__)
  const __m256i halves = _mm512_maskz_cvtepi32_epi16(0xFFFF, bit_cast<__m512i>(q));
  const __m256i low = _mm256_shufflelo_epi16(halves, _MM_SHUFFLE(3, 1, 2, 0));
  store_unaligned(out, _mm256_shufflehi_epi16(low, _MM_SHUFFLE(3, 1, 2, 0)));
#elif defined(__AVX2__)
  const __m256i packed = _mm256_packs_epi32(bit_cast<__m256i>(q), bit_cast<__m256i>(q));
  const __m256i halves = _mm256_shufflelo_epi16(packed, _MM_SHUFFLE(3, 1, 2, 0));
  store_unaligned(out, _mm256_castsi256_si128(_mm256_permute4x64_epi64(halves, 0b1000)));
#elif defined(__SSE2__)
  const __m128i packed = _mm_packs_epi32(bit_cast<__m128i>(q), bit_cast<__m128i>(q));
  const __m128i halves = _mm_shufflelo_epi16(packed, _MM_SHUFFLE(3, 1, 2, 0));
  __builtin_memcpy(out, &halves, 8);
#else
  const int16_t halves[4] = {static_cast<int16_t>(q[0]), static_cast<int16_t>(q[2]),
                             static_cast<int16_t>(q[1]), static_cast<int16_t>(q[3])};
  __builtin_memcpy(out, halves, sizeof(halves));
#endif
}

LSTM_INLINE float quantize_row(const float* row, int64_t k_size, uint8_t* out) {
  // Choose the scale: NaN for what is not finite, so that all that comes of the row is NaN.
  const int32_t bits = largest_magnitude_bits(row, k_size);
  const float largest = bit_cast<float>(bits);
  const bool is_zero = bits >= kInfinityBits || largest < kLeastRow;
  const float inverse = is_zero ? 0.0f : kMaxQuantized / largest;
  float scale = is_zero ? 0.0f : largest / kMaxQuantized;
  if (bits >= kInfinityBits) scale = bit_cast<float>(kInfinityBits | 0x400000);

  // Round to nearest even: the low bits of the shifted value are the integer.
  const VecI magic_bits = bit_cast<VecI>(broadcast(ExpConstants<float>::kMagic));
  for (int64_t k = 0; k < k_size; k += kWidth<float>) {
    const VecF values = load_row(row, k, k_size) * inverse + ExpConstants<float>::kMagic;
    const VecI q = is_zero ? VecI{} : bit_cast<VecI>(values) - magic_bits;
    store_quantized(q, out + k * 2);
  }
  return scale;
}

template <WeightType kType>
void prepare_rows(const PrepareRows& prepare) {
  for (int64_t j = 0; j < prepare.rows; ++j) {
    const float* row = row_pointer<float>(prepare.source, j);
    uint8_t* out = prepare.out + j * prepare.stride;
    if constexpr (kType == WeightType::kInt8) {
      prepare.scales[j] = quantize_row(row, prepare.k_size, out);
    } else {
      for (int64_t k = 0; k < prepare.k_size; k += kWidth<float>) {
        store_unaligned(out + k * sizeof(float), load_row(row, k, prepare.k_size));
      }
    }
  }
}
