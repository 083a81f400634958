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

// Panels in one pass of a single row: 8 independent sums hide the latency of FMA (4 cycles, 2 a
// cycle on most cores).
constexpr int kPanelsOfOneRow = 2;

// Rows × slots of panels whose sums are held in registers for a pass over K.
struct Tile {
  int64_t row, panel;  // the first ones
  int rows, slots;
};
constexpr int kMaxTileVectors = kRowBlock * kPanelSlots;
static_assert(kMaxTileVectors >= kPanelsOfOneRow * kPanelSlots, "a tile of one row must fit");

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

// acc[r][s] += Σ_k row_r[k] · panel[k][s], in rising k whatever kRows and kSlots are: a row's
// sums have the same bits in every block.
template <int kRows, int kSlots, typename E>
LSTM_INLINE void accumulate(Vec<E> (&acc)[kRows][kSlots], const E* const (&rows)[kRows],
                            int64_t k_size, const E* panel) {
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
      for (int r = 0; r < kRows; ++r) acc[r][s] = multiply_add(a[r], b, acc[r][s]);
    }
  }
}

// The same for bfloat16 operands.
#if defined(__AVX512BF16__)
template <int kRows, int kSlots>
LSTM_INLINE void accumulate_pairs(VecF (&acc)[kRows][kSlots], const uint32_t (&pairs)[kRows],
                                  const BFloat16* panel, int64_t panel_stride) {
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

template <int kRows, int kSlots>
LSTM_INLINE void accumulate_bf16(VecF (&acc)[kRows][kSlots], const BFloat16* const (&rows)[kRows],
                                 int64_t k_size, const BFloat16* panel) {
  const int64_t panel_stride = panel_elements<BFloat16>(k_size);
  uint32_t pairs[kRows];
  for (int64_t k = 0; k + 1 < k_size; k += 2) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) __builtin_memcpy(&pairs[r], rows[r] + k, sizeof(pairs[r]));
    accumulate_pairs<kRows, kSlots>(acc, pairs, panel + k * kPanelSlots * kWidth<float>,
                                    panel_stride);
  }
  if (k_size % 2) {
    // NOTE: the element behind an odd row belongs to another row; it may be NaN.
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) pairs[r] = rows[r][k_size - 1].bits;
    accumulate_pairs<kRows, kSlots>(acc, pairs, panel + (k_size - 1) * kPanelSlots * kWidth<float>,
                                    panel_stride);
  }
}
#endif

// Adds a Product's rows times panels to a tile's sums.
template <typename E, int kRows, int kSlots>
LSTM_INLINE void multiply(Vec<AccumulatorOf<E>> (&acc)[kRows][kSlots], const Product& product,
                          const Tile& tile) {
  if (!product.operand.base || product.size == 0) return;
  const E* rows[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) rows[r] = row_pointer<E>(product.operand, tile.row + r);
  const E* panels =
      static_cast<const E*>(product.panels) + tile.panel * panel_elements<E>(product.size);
#if defined(__AVX512BF16__)
  accumulate_bf16<kRows, kSlots>(acc, rows, product.size, panels);
#else
  accumulate<kRows, kSlots>(acc, rows, product.size, panels);
#endif
}

// NOTE: not inlined. One copy serves all kinds of steps, and the sums' way through memory costs
// less than 2 % of a pass over K = 64.
template <typename E, int kRows, int kSlots>
__attribute__((noinline)) void multiply_rows(Vec<AccumulatorOf<E>>* sums, const Tile& tile,
                                             const Product& first, const Product& second) {
  Vec<AccumulatorOf<E>> acc[kRows][kSlots];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int s = 0; s < kSlots; ++s) acc[r][s] = sums[r * kSlots + s];
  }
  multiply<E, kRows, kSlots>(acc, first, tile);
  multiply<E, kRows, kSlots>(acc, second, tile);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int s = 0; s < kSlots; ++s) sums[r * kSlots + s] = acc[r][s];
  }
}

template <typename E, int kRows>
void multiply_slots(Vec<AccumulatorOf<E>>* sums, const Tile& tile, const Product& first,
                    const Product& second) {
  switch (tile.slots) {
    case 1:
      return multiply_rows<E, kRows, 1>(sums, tile, first, second);
    case 2:
      return multiply_rows<E, kRows, 2>(sums, tile, first, second);
    case 3:
      return multiply_rows<E, kRows, 3>(sums, tile, first, second);
    default:
      return multiply_rows<E, kRows, kPanelSlots>(sums, tile, first, second);
  }
}

// sums[r][s] += the two products' (either may be absent), r < tile.rows, s < tile.slots.
template <typename E>
void multiply_tile(Vec<AccumulatorOf<E>>* sums, const Tile& tile, const Product& first,
                   const Product& second) {
  switch (tile.rows) {
    case 1:
      return tile.slots == kPanelsOfOneRow * kPanelSlots
                 ? multiply_rows<E, 1, kPanelsOfOneRow * kPanelSlots>(sums, tile, first, second)
                 : multiply_slots<E, 1>(sums, tile, first, second);
    case 2:
      return multiply_slots<E, 2>(sums, tile, first, second);
    case 3:
      return multiply_slots<E, 3>(sums, tile, first, second);
#if defined(__AVX512F__)
    case 4:
      return multiply_slots<E, 4>(sums, tile, first, second);
    case 5:
      return multiply_slots<E, 5>(sums, tile, first, second);
    case 6:
      return multiply_slots<E, 6>(sums, tile, first, second);
#endif
  }
}

// Panels of `slots` used slots in all: the last one may have columns for fewer than 4.
struct PanelRange {
  int64_t begin, end;
  int64_t slots;
  bool descending;  // the last one first
};

template <typename A>
LSTM_INLINE PanelRange plain_panels(int64_t begin, int64_t end, int64_t columns,
                                    bool descending = false) {
  return {begin, end, (columns + kWidth<A> - 1) / kWidth<A>, descending};
}
LSTM_INLINE PanelRange gate_panels(int64_t begin, int64_t end, bool descending = false) {
  return {begin, end, end * kPanelSlots, descending};
}

// Calls run(tile) over rows × panels. Panels outside, rows inside: a panel is read from memory
// once and stays in the L1 or L2 cache for all the row blocks. Blocks differ by at most one row,
// since a block of one or two rows wastes the panel's bandwidth.
template <typename Run>
LSTM_INLINE void for_each_tile(int64_t rows, const PanelRange& panels, const Run& run) {
  const int64_t blocks = (rows + kRowBlock - 1) / kRowBlock;
  const int64_t per_pass = rows == 1 ? kPanelsOfOneRow : 1;
  const int64_t passes = (panels.end - panels.begin + per_pass - 1) / per_pass;
  for (int64_t pass = 0; pass < passes; ++pass) {
    const int64_t panel = panels.begin + (panels.descending ? passes - 1 - pass : pass) * per_pass;
    const int64_t left = panels.end - panel;
    const int64_t most = (left < per_pass ? left : per_pass) * kPanelSlots;
    const int64_t used = panels.slots - panel * kPanelSlots;
    const int slots = static_cast<int>(used < kPanelSlots ? used : most);
    int64_t row = 0;
    for (int64_t block = blocks; block > 0; --block) {
      const int block_rows = static_cast<int>((rows - row + block - 1) / block);
      run(Tile{row, panel, block_rows, slots});
      row += block_rows;
    }
  }
}
