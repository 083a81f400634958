// SPDX-License-Identifier: BSD-3-Clause
// The micro-kernel: some prepared rows times the vectors of a panel.
//
// A slot is a vector of W columns; a panel has kAllSlots of them, kParts for each chunk.

constexpr int kParts = static_cast<int>(kUnits) / kWidth<float>;
constexpr int kAllSlots = static_cast<int>(kPanelSlots) * kParts;
static_assert(kParts * kVectorBytes == kChunkBytes, "slots cut chunks evenly");

// Rows that share a pass over a panel, and the slots that go with so many: two accumulators for
// each row and slot, 24 of the 32 registers of AVX-512, 8 of 16. Six rows share what it takes to
// widen 16-bit weights; int8 weights are multiplied as they are.
template <WeightType kType>
constexpr int max_rows() {
#if defined(__AVX512F__)
  return kType == WeightType::kInt8 ? 3 : 6;
#else
  return 2;
#endif
}
constexpr int slots_of(int rows) {
#if defined(__AVX512F__)
  return rows <= 3 ? 4 : 2;
#else
  return rows == 1 ? 4 : 2;
#endif
}
constexpr int kMaxRows = max_rows<WeightType::kBFloat16>();
static_assert(kMaxRows <= kMR, "the epilogue has room for kMR rows");

// Some rows of an operand, and a panel's values and offsets from a slot on.
template <int kRows>
struct Factors {
  const uint8_t* rows[kRows];
  const uint8_t* values;
  const int32_t* offsets;
  int64_t groups;
};

// Groups whose weights come into the first cache ahead of their products, 2 KiB. With one row a
// group is done faster than it comes from the second cache. Measured, one thread of a Sapphire
// Rapids: steps of N=1 H=512 take a tenth less time (int8), bfloat16 an eighth; 16 and 32 groups
// the same, and with prefetches into the second cache they take longer than without. Zen 5: 16 take
// 0 - 3 % longer than 8, 32 3 - 5 %.
constexpr int64_t kGroupsAhead = 8;

template <int kRows, int kSlots>
LSTM_INLINE void prefetch_group(const uint8_t* values, int64_t group) {
  if constexpr (kRows == 1) {
    const uint8_t* ahead = values + (group + kGroupsAhead) * kGroupBytes;
#pragma GCC unroll 8
    for (int at = 0; at < kSlots * kVectorBytes; at += 64) __builtin_prefetch(ahead + at, 0, 3);
  }
}

// Keeps a vector in a register that several instructions use: the compiler would have each load it.
template <typename V>
LSTM_INLINE V in_register(V v) {
#if defined(__SSE2__)
  __asm__("" : "+v"(v));
#endif
  return v;
}

LSTM_INLINE VecI broadcast_word(const uint8_t* from) {
  int32_t word;
  __builtin_memcpy(&word, from, sizeof(word));
  return broadcast(word);
}

LSTM_INLINE VecF broadcast_value(const uint8_t* from) {
  float value;
  __builtin_memcpy(&value, from, sizeof(value));
  return broadcast(value);
}

// The integer 256·high + low, rounded to float32 in a way that does not depend on how it is cut in
// two: low becomes 0 … 255 first.
LSTM_INLINE VecF to_float(VecI high, VecI low) {
  high += low >> 8;
  low &= 255;
  return __builtin_convertvector(high, VecF) * 256.0f + __builtin_convertvector(low, VecF);
}

// Groups whose products int32 has room for: 4 · 128 · 32767 · 128 < 2^31.
constexpr int64_t kExactGroups = 128;

// to_float of a sum that int32 has room for, whose upper part float32 holds exactly: so both round
// once. Measured, Zen 5: int8 steps of N = 16, H = 64 take 3 % less time.
// NOTE: unsigned, since 256·high alone may overflow.
LSTM_INLINE VecF short_to_float(VecI high, VecI low) {
  const VecU sum = (bit_cast<VecU>(high) << 8) + bit_cast<VecU>(low);
  return __builtin_convertvector(bit_cast<VecI>(sum), VecF);
}

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
// sum + four products of bytes 0 … 255 and weights, in each lane.
LSTM_INLINE VecI multiply_add_bytes(VecI sum, VecI bytes, VecI weights) {
#if defined(__AVX512VNNI__)
  return bit_cast<VecI>(_mm512_dpbusd_epi32(bit_cast<__m512i>(sum), bit_cast<__m512i>(bytes),
                                            bit_cast<__m512i>(weights)));
#else
  return bit_cast<VecI>(_mm256_dpbusd_avx_epi32(bit_cast<__m256i>(sum), bit_cast<__m256i>(bytes),
                                                bit_cast<__m256i>(weights)));
#endif
}

// The low and the high bytes of q + 32768 apart: 32768 = 128 · 256 is taken back by the offsets.
template <int kRows, int kSlots>
LSTM_INLINE void multiply_int8(VecF (&sums)[kRows][kSlots], const Factors<kRows>& factors) {
  // One row: two sums of groups in turn hide the latency of VPDPBUSD.
  constexpr int turns = kRows == 1 && kSlots * 4 + 4 <= kRegisters ? 2 : 1;
  VecI low[turns][kRows][kSlots] = {}, high[turns][kRows][kSlots] = {};
  const auto add = [&](int turn, int64_t group) __attribute__((always_inline)) {
    prefetch_group<kRows, kSlots>(factors.values, group);
    VecI low_bytes[kRows], high_bytes[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      low_bytes[r] = broadcast_word(factors.rows[r] + group * kOperandGroupBytes);
      high_bytes[r] = broadcast_word(factors.rows[r] + group * kOperandGroupBytes + 4);
    }
#pragma GCC unroll 8
    for (int s = 0; s < kSlots; ++s) {
      const VecI w = in_register(
          load_unaligned<VecI>(factors.values + group * kGroupBytes + s * kVectorBytes));
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        low[turn][r][s] = multiply_add_bytes(low[turn][r][s], low_bytes[r], w);
        high[turn][r][s] = multiply_add_bytes(high[turn][r][s], high_bytes[r], w);
      }
    }
  };
  int64_t group = 0;
  for (; group + turns <= factors.groups; group += turns) {
#pragma GCC unroll 2
    for (int turn = 0; turn < turns; ++turn) add(turn, group + turn);
  }
  if (group < factors.groups) add(0, group);
#pragma GCC unroll 8
  for (int s = 0; s < kSlots; ++s) {
    const VecI offset = load_unaligned<VecI>(factors.offsets + s * kWidth<float>);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      high[0][r][s] += offset;
      if constexpr (turns == 2) {
        low[0][r][s] += low[1][r][s];
        high[0][r][s] += high[1][r][s];
      }
    }
  }
  const bool is_short = factors.groups <= kExactGroups;
#pragma GCC unroll 8
  for (int s = 0; s < kSlots; ++s) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const VecI h = high[0][r][s], l = low[0][r][s];
      sums[r][s] = is_short ? short_to_float(h, l) : to_float(h, l);
    }
  }
}
#else
// The two products of 16-bit integers in each lane, added up.
LSTM_INLINE VecI multiply_pairs(VecI a, VecI b) {
#if defined(__AVX512F__)
  return bit_cast<VecI>(_mm512_madd_epi16(bit_cast<__m512i>(a), bit_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return bit_cast<VecI>(_mm256_madd_epi16(bit_cast<__m256i>(a), bit_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return bit_cast<VecI>(_mm_madd_epi16(bit_cast<__m128i>(a), bit_cast<__m128i>(b)));
#else
  return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}

// Weights widened to 16 bits, even k and odd k.
template <int kRows, int kSlots>
LSTM_INLINE void multiply_int8(VecF (&sums)[kRows][kSlots], const Factors<kRows>& factors) {
  typedef int16_t Halves __attribute__((vector_size(kVectorBytes)));
  VecI low[kRows][kSlots] = {}, high[kRows][kSlots] = {};
  for (int64_t begin = 0; begin < factors.groups; begin += kExactGroups) {
    const int64_t left = factors.groups - begin;
    const int64_t end = begin + (left < kExactGroups ? left : kExactGroups);
    VecI sum[kRows][kSlots] = {};
    for (int64_t group = begin; group < end; ++group) {
      prefetch_group<kRows, kSlots>(factors.values, group);
      VecI even[kRows], odd[kRows];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        even[r] = broadcast_word(factors.rows[r] + group * kOperandGroupBytes);
        odd[r] = broadcast_word(factors.rows[r] + group * kOperandGroupBytes + 4);
      }
#pragma GCC unroll 8
      for (int s = 0; s < kSlots; ++s) {
        const Halves w =
            load_unaligned<Halves>(factors.values + group * kGroupBytes + s * kVectorBytes);
        const VecI w_even = bit_cast<VecI>((w << 8) >> 8), w_odd = bit_cast<VecI>(w >> 8);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          sum[r][s] += multiply_pairs(even[r], w_even);
          sum[r][s] += multiply_pairs(odd[r], w_odd);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int s = 0; s < kSlots; ++s) {
        high[r][s] += sum[r][s] >> 8;
        low[r][s] += sum[r][s] & 255;
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int s = 0; s < kSlots; ++s) sums[r][s] = to_float(high[r][s], low[r][s]);
  }
}
#endif

// The weights of a group in a slot: as bfloat16 in pairs, as float16 even k and odd k apart.
template <WeightType kType>
struct GroupWeights {
  VecU pairs;
};
template <>
struct GroupWeights<WeightType::kFloat16> {
  VecH of_k[2];
};

template <WeightType kType>
LSTM_INLINE GroupWeights<kType> load_both(const uint8_t* group, int slot) {
  if constexpr (kType == WeightType::kBFloat16) {
    return {in_register(load_unaligned<VecU>(group + slot * kVectorBytes))};
  } else {
    const uint8_t* at = group + slot / kParts * kChunkBytes + slot % kParts * sizeof(VecH);
    return {{load_unaligned<VecH>(at), load_unaligned<VecH>(at + kChunkBytes / 2)}};
  }
}

// The even k (0) or the odd k (1) of a group of 16-bit weights, as float32.
template <WeightType kType>
LSTM_INLINE VecF widened(const GroupWeights<kType>& weights, int k) {
  if constexpr (kType == WeightType::kBFloat16) {
    return bit_cast<VecF>(k == 0 ? weights.pairs << 16 : weights.pairs & 0xFFFF0000u);
  } else {
    return widen_fp16(weights.of_k[k]);
  }
}

// NOTE: even k of all rows, then odd k. With both at once the compiler keeps both values of every
// row in registers, and moves sums to memory and back for it: 0.76 of the rate of its FMAs, in
// place of 0.97. With a single row there is room, and each weight is loaded once.
template <WeightType kType, int kRows, int kSlots>
LSTM_INLINE void multiply_16_bit(VecF (&sums)[kRows][kSlots], const Factors<kRows>& factors) {
  VecF of_k[2][kRows][kSlots] = {};
  for (int64_t group = 0; group < factors.groups; ++group) {
    prefetch_group<kRows, kSlots>(factors.values, group);
    const uint8_t* weights = factors.values + group * kGroupBytes;
    const auto value = [&](int r, int k) __attribute__((always_inline)) {
      return in_register(
          broadcast_value(factors.rows[r] + group * kOperandGroupBytes + k * sizeof(float)));
    };
    if constexpr (kRows == 1) {
      const VecF values[2] = {value(0, 0), value(0, 1)};
#pragma GCC unroll 8
      for (int s = 0; s < kSlots; ++s) {
        const auto both = load_both<kType>(weights, s);
#pragma GCC unroll 2
        for (int k = 0; k < 2; ++k) {
          of_k[k][0][s] = multiply_add(values[k], widened<kType>(both, k), of_k[k][0][s]);
        }
      }
      continue;
    }
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      VecF w[kSlots];
#pragma GCC unroll 8
      for (int s = 0; s < kSlots; ++s) {
        w[s] = in_register(widened<kType>(load_both<kType>(weights, s), k));
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const VecF of_row = value(r, k);
#pragma GCC unroll 8
        for (int s = 0; s < kSlots; ++s) {
          of_k[k][r][s] = multiply_add(of_row, w[s], of_k[k][r][s]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int s = 0; s < kSlots; ++s) sums[r][s] = of_k[0][r][s] + of_k[1][r][s];
  }
}

// The sums of a panel's columns, (row, kAllSlots), scales not applied yet.
// NOTE: not inlined: one copy for each number of rows serves all kinds of steps.
template <WeightType kType, int kRows>
__attribute__((noinline)) void multiply_rows(VecF* sums, const Operand& operand,
                                             const PackedMatrix& matrix, int64_t row,
                                             int64_t panel) {
  constexpr int slots = slots_of(kRows);
  Factors<kRows> factors;
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) factors.rows[r] = operand.rows + (row + r) * operand.stride;
  factors.groups = matrix.groups;
  const uint8_t* values = matrix.values + panel * matrix.groups * kGroupBytes;
  for (int first = 0; first < kAllSlots; first += slots) {
    VecF part[kRows][slots];
    factors.values = values + first / kParts * kChunkBytes;
    if constexpr (kType == WeightType::kInt8) {
      factors.values += first % kParts * kVectorBytes;
      factors.offsets = matrix.offsets + panel * kPanelColumns + first * kWidth<float>;
      multiply_int8<kRows, slots>(part, factors);
    } else {
      if constexpr (kType == WeightType::kBFloat16) {
        factors.values += first % kParts * kVectorBytes;
      } else {
        factors.values += first % kParts * sizeof(VecH);
      }
      multiply_16_bit<kType, kRows, slots>(part, factors);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int s = 0; s < slots; ++s) sums[r * kAllSlots + first + s] = part[r][s];
    }
  }
}

template <WeightType kType, int kRows = max_rows<kType>()>
LSTM_INLINE void multiply_block(VecF* sums, const Operand& operand, const PackedMatrix& matrix,
                                int64_t row, int rows, int64_t panel) {
  if (rows == kRows) return multiply_rows<kType, kRows>(sums, operand, matrix, row, panel);
  if constexpr (kRows > 1) {
    multiply_block<kType, kRows - 1>(sums, operand, matrix, row, rows, panel);
  }
}
