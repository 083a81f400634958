// SPDX-License-Identifier: BSD-3-Clause
// The micro-kernel: a block of operand rows times packed panels, accumulated in registers.
// kernels.h describes the panels; pack-inl.h makes them.

// Rows that share one pass over a panel. 6 rows × 4 slots fill 24 of the 32 AVX-512 registers,
// with 6 broadcast operands and 1 panel vector: 31. AVX2 and SSE2 have 16: 3 × 4 + 3 + 1.
#if defined(__AVX512F__)
constexpr int kRowBlock = 6;
constexpr int kRegisters = 32;
#else
constexpr int kRowBlock = 3;
constexpr int kRegisters = 16;
#endif
static_assert(kRowBlock * kPanelSlots + kRowBlock + 1 <= kRegisters, "must not spill");

// Panels in one pass: a single row needs 8 independent sums to hide the latency of FMA (4 cycles,
// 2 a cycle on most cores).
template <int kRows>
constexpr int kPanelsPerPass = kRows == 1 ? 2 : 1;

// What an operand type multiplies into.
template <typename E>
struct OperandTraits {
  using Accumulator = E;
  static constexpr int64_t kMultiple = 1;  // K is padded to this
};
template <>
struct OperandTraits<BFloat16> {
  using Accumulator = float;
  static constexpr int64_t kMultiple = 2;  // VDPBF16PS multiplies pairs
};
template <>
struct OperandTraits<Float16> {
  using Accumulator = float;
};
template <typename E>
using AccumulatorOf = typename OperandTraits<E>::Accumulator;

template <typename E>
LSTM_INLINE int64_t panel_elements(int64_t k_size) {
  constexpr int64_t multiple = OperandTraits<E>::kMultiple;
  return (k_size + multiple - 1) / multiple * multiple * kPanelSlots * kWidth<AccumulatorOf<E>>;
}

template <typename E>
LSTM_INLINE const E* row_pointer(const Rows& rows, int64_t j) {
  return static_cast<const E*>(rows.base) + (rows.order ? rows.order[j] : j) * rows.stride;
}
template <typename E>
LSTM_INLINE E* row_pointer(const MutableRows& rows, int64_t j) {
  return static_cast<E*>(rows.base) + (rows.order ? rows.order[j] : j) * rows.stride;
}

LSTM_INLINE bool is_reset(const Resets& resets, int64_t j) {
  return resets.flags && j < resets.limit && resets.flags[resets.order ? resets.order[j] : j];
}

// acc[r][s] += Σ_k row_r[k] · panel[k][s], in rising k whatever kRows and kPanels are: a row's
// sums have the same bits in every block.
template <int kRows, int kPanels, typename E>
LSTM_INLINE void accumulate(Vec<E> (&acc)[kRows][kPanels * kPanelSlots],
                            const E* const (&rows)[kRows], int64_t k_size, const E* panel) {
  constexpr int kSlots = kPanels * kPanelSlots;
  const int64_t panel_stride = panel_elements<E>(k_size);
  for (int64_t k = 0; k < k_size; ++k) {
    Vec<E> a[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) a[r] = broadcast(rows[r][k]);
#pragma GCC unroll 8
    for (int s = 0; s < kSlots; ++s) {
      const Vec<E> b = load_unaligned<Vec<E>>(panel + (s / kPanelSlots) * panel_stride +
                                              (k * kPanelSlots + s % kPanelSlots) * kWidth<E>);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) acc[r][s] += a[r] * b;
    }
  }
}

// The same for bfloat16 operands.
#if defined(__AVX512BF16__)
template <int kRows, int kPanels>
LSTM_INLINE void accumulate_pairs(VecF (&acc)[kRows][kPanels * kPanelSlots],
                                  const uint32_t (&pairs)[kRows], const BFloat16* panel,
                                  int64_t panel_stride) {
  constexpr int kSlots = kPanels * kPanelSlots;
#pragma GCC unroll 8
  for (int s = 0; s < kSlots; ++s) {
    const __m512bh b = load_unaligned<__m512bh>(panel + (s / kPanelSlots) * panel_stride +
                                                (s % kPanelSlots) * 2 * kWidth<float>);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512bh a = bit_cast<__m512bh>(broadcast(pairs[r]));
      acc[r][s] = bit_cast<VecF>(_mm512_dpbf16_ps(bit_cast<__m512>(acc[r][s]), a, b));
    }
  }
}

template <int kRows, int kPanels>
LSTM_INLINE void accumulate_bf16(VecF (&acc)[kRows][kPanels * kPanelSlots],
                                 const BFloat16* const (&rows)[kRows], int64_t k_size,
                                 const BFloat16* panel) {
  const int64_t panel_stride = panel_elements<BFloat16>(k_size);
  uint32_t pairs[kRows];
  for (int64_t k = 0; k + 1 < k_size; k += 2) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) __builtin_memcpy(&pairs[r], rows[r] + k, sizeof(pairs[r]));
    accumulate_pairs<kRows, kPanels>(acc, pairs, panel + k * kPanelSlots * kWidth<float>,
                                     panel_stride);
  }
  if (k_size % 2) {
    // NOTE: the element behind an odd row belongs to another row; it may be NaN.
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) pairs[r] = rows[r][k_size - 1].bits;
    accumulate_pairs<kRows, kPanels>(acc, pairs, panel + (k_size - 1) * kPanelSlots * kWidth<float>,
                                     panel_stride);
  }
}
#endif

// Adds a Product's rows [row, row + kRows) times panels from `panel` on.
template <typename E, int kRows, int kPanels>
LSTM_INLINE void multiply(Vec<AccumulatorOf<E>> (&acc)[kRows][kPanels * kPanelSlots],
                          const Product& product, int64_t row, int64_t panel) {
  if (!product.operand.base || product.size == 0) return;
  const E* rows[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) rows[r] = row_pointer<E>(product.operand, row + r);
  const E* panels = static_cast<const E*>(product.panels) + panel * panel_elements<E>(product.size);
#if defined(__AVX512BF16__)
  accumulate_bf16<kRows, kPanels>(acc, rows, product.size, panels);
#else
  accumulate<kRows, kPanels>(acc, rows, product.size, panels);
#endif
}

// Calls tile.run<rows, panels>(row, panel) over rows × panels. Panels outside, rows inside: a
// panel is read from memory once and stays in the L1 or L2 cache for all the row blocks. Blocks
// differ by at most one row, since a block of one or two rows wastes the panel's bandwidth.
template <int kRows, typename Tile>
LSTM_INLINE void run_panels(const Tile& tile, int64_t row, int64_t panel, int64_t panels) {
  if (panels == 2) {
    tile.template run<kRows, 2>(row, panel);
  } else {
    tile.template run<kRows, 1>(row, panel);
  }
}

template <typename Tile>
LSTM_INLINE void for_each_tile(int64_t rows, int64_t panel_begin, int64_t panel_end,
                               const Tile& tile) {
  const int64_t blocks = (rows + kRowBlock - 1) / kRowBlock;
  const int64_t per_pass = rows == 1 ? kPanelsPerPass<1> : 1;
  for (int64_t panel = panel_begin; panel < panel_end; panel += per_pass) {
    const int64_t left = panel_end - panel;
    int64_t row = 0;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t block_rows = (rows - row + blocks - block - 1) / (blocks - block);
      switch (block_rows) {
        case 1:
          run_panels<1>(tile, row, panel, left < per_pass ? left : per_pass);
          break;
        case 2:
          tile.template run<2, 1>(row, panel);
          break;
        case 3:
          tile.template run<3, 1>(row, panel);
          break;
#if defined(__AVX512F__)
        case 4:
          tile.template run<4, 1>(row, panel);
          break;
        case 5:
          tile.template run<5, 1>(row, panel);
          break;
        case 6:
          tile.template run<6, 1>(row, panel);
          break;
#endif
      }
      row += block_rows;
    }
  }
}
