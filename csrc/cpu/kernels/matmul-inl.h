// SPDX-License-Identifier: BSD-3-Clause
// The micro-kernel: a register block of operand rows times packed panels.
// kernels.h describes the panels; pack-inl.h makes them.

// The register block is kMR rows × kNR columns, in BLIS's names. 6 rows × 4 vectors fill 24 of the
// 32 AVX-512 registers, with 6 broadcast operands and 1 panel vector: 31. AVX2 and SSE2 have 16:
// 3 × 4 + 3 + 1. Measured with AVX2, GFLOP/s a thread: 3 × 4 92 – 96, 6 × 2 86 – 92.
#if defined(__AVX512F__)
constexpr int kMR = 6;
constexpr int kRegisters = 32;
#else
constexpr int kMR = 3;
constexpr int kRegisters = 16;
#endif
static_assert(kMR * kPanelSlots + kMR + 1 <= kRegisters, "must not spill");
static_assert(kMaxMR % kMR == 0, "whole register blocks, whatever the instruction set");

// Columns of a panel.
template <typename A>
constexpr int64_t kNR = kPanelSlots * kWidth<A>;
static_assert(kMaxVectorWidth % kWidth<float> == 0 && kMaxVectorWidth % kWidth<double> == 0,
              "whole vectors, whatever the instruction set");

// Panels in one pass of a single row: 8 independent sums hide the latency of FMA (4 cycles, 2 a
// cycle on most cores).
constexpr int kPanelsOfOneRow = 2;

// Rows × slots of panels whose sums are held in registers for a pass over K.
struct Tile {
  int64_t row, panel;  // the first ones
  int rows, slots;
  const void* ahead = nullptr;  // a vector for each k that will be read soon; or null
};
constexpr int kMaxTileVectors = kMR * kPanelSlots;
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
  return (k_size + multiple - 1) / multiple * multiple * kNR<AccumulatorOf<E>>;
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
// sums have the same bits in every block. Meanwhile K vectors from `ahead` on come into the L2
// cache.
template <int kRows, int kSlots, typename E>
LSTM_INLINE void accumulate(Vec<E> (&acc)[kRows][kSlots], const E* const (&rows)[kRows],
                            int64_t k_size, const E* panel, const E* ahead) {
  const int64_t panel_stride = panel_elements<E>(k_size);
  for (int64_t k = 0; k < k_size; ++k) {
    if constexpr (kRows > 1) __builtin_prefetch(ahead + k * kWidth<E>, 0, 2);
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

// `accumulate` for bfloat16 operands, which are multiplied in pairs.
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
                                 int64_t k_size, const BFloat16* panel, const BFloat16* ahead) {
  const int64_t panel_stride = panel_elements<BFloat16>(k_size);
  uint32_t pairs[kRows];
  for (int64_t k = 0; k + 1 < k_size; k += 2) {
    if constexpr (kRows > 1) __builtin_prefetch(ahead + k * kWidth<float>, 0, 2);
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
  const E* ahead = static_cast<const E*>(tile.ahead ? tile.ahead : panels);
#if defined(__AVX512BF16__)
  accumulate_bf16<kRows, kSlots>(acc, rows, product.size, panels, ahead);
#else
  accumulate<kRows, kSlots>(acc, rows, product.size, panels, ahead);
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
LSTM_INLINE PanelRange column_panels(int64_t begin, int64_t end, int64_t columns,
                                     bool descending = false) {
  return {begin, end, (columns + kWidth<A> - 1) / kWidth<A>, descending};
}
LSTM_INLINE PanelRange gate_panels(int64_t begin, int64_t end, bool descending = false) {
  return {begin, end, end * kPanelSlots, descending};
}

// Bytes of a panel's block, kKC × kNR, that kMC rows are multiplied with before they go on to the
// next: it stays in a core's L2 cache beside the next, which is fetched meanwhile. Measured at
// K = 4096 on Zen 5, GFLOP/s a thread of 257 at most: 30 rows 245 (160 with whole panels), 16 rows
// 195 (135).
constexpr int64_t kPanelBlockBytes = 128 << 10;
template <typename E>
constexpr int64_t kKC = kPanelBlockBytes / (sizeof(E) * kNR<AccumulatorOf<E>>);
static_assert(kKC<BFloat16> % OperandTraits<BFloat16>::kMultiple == 0, "a block has whole pairs");

// Rows that share a block of a panel, at most, and the tiles whose sums are held meanwhile.
constexpr int kMC = 16 * kMR;
constexpr int kMaxTiles = kMC / kMR;

// The product's part from k = begin on, for one panel, which is number 0 there.
template <typename E>
LSTM_INLINE Product block_of(const Product& product, int64_t panel, int64_t begin) {
  const int64_t left = product.size - begin;
  Product block = product;
  block.operand.base = static_cast<const E*>(product.operand.base) + begin;
  block.size = left < kKC<E> ? left : kKC<E>;
  block.panels = static_cast<const E*>(product.panels) + panel * panel_elements<E>(product.size) +
                 begin * kNR<AccumulatorOf<E>>;
  return block;
}

// Adds a product to the sums of some tiles of one panel.
template <typename E>
LSTM_INLINE void multiply_in_blocks(Vec<AccumulatorOf<E>> (*sums)[kMaxTileVectors],
                                    const Tile* tiles, int count, const Product& product) {
  if (!product.operand.base) return;
  for (int64_t k = 0; k < product.size; k += kKC<E>) {
    const Product block = block_of<E>(product, tiles[0].panel, k);
    // Each of the first tiles fetches its part of what follows: the next block, or panel.
    const int64_t part = block.size * kWidth<AccumulatorOf<E>>;
    const E* next = static_cast<const E*>(block.panels) + kPanelSlots * part;
    for (int i = 0; i < count; ++i) {
      const Tile tile = {tiles[i].row, 0, tiles[i].rows, tiles[i].slots,
                         i < kPanelSlots ? next + i * part : nullptr};
      multiply_tile<E>(sums[i], tile, block, {});
    }
  }
}

// For each tile of rows × panels: start(tile, sums), sums += the two products', epilogue(tile,
// sums). Panels outside, rows inside: a panel is read from memory once and stays in the L1 or L2
// cache for all the row blocks. Blocks differ by at most one row, since a block of one or two rows
// wastes the panel's bandwidth.
template <typename E, typename Start, typename Epilogue>
LSTM_INLINE void for_each_tile(int64_t rows, const PanelRange& panels, const Product& first,
                               const Product& second, const Start& start,
                               const Epilogue& epilogue) {
  const int64_t blocks = (rows + kMR - 1) / kMR;
  const bool in_blocks = blocks > 1 && first.size + second.size > kKC<E>;
  const int chunk = in_blocks ? kMaxTiles : 1;
  const int64_t per_pass = rows == 1 ? kPanelsOfOneRow : 1;
  const int64_t passes = (panels.end - panels.begin + per_pass - 1) / per_pass;
  Tile tiles[kMaxTiles];
  Vec<AccumulatorOf<E>> sums[kMaxTiles][kMaxTileVectors];
  for (int64_t pass = 0; pass < passes; ++pass) {
    const int64_t panel = panels.begin + (panels.descending ? passes - 1 - pass : pass) * per_pass;
    const int64_t left = panels.end - panel;
    const int64_t most = (left < per_pass ? left : per_pass) * kPanelSlots;
    const int64_t used = panels.slots - panel * kPanelSlots;
    const int slots = static_cast<int>(used < kPanelSlots ? used : most);
    int64_t row = 0;
    for (int64_t block = blocks; block > 0;) {
      int count = 0;
      for (; count < chunk && block > 0; ++count, --block) {
        const int block_rows = static_cast<int>((rows - row + block - 1) / block);
        tiles[count] = {row, panel, block_rows, slots};
        start(tiles[count], sums[count]);
        row += block_rows;
      }
      if (in_blocks) {
        multiply_in_blocks<E>(sums, tiles, count, first);
        multiply_in_blocks<E>(sums, tiles, count, second);
      } else {
        multiply_tile<E>(sums[0], tiles[0], first, second);
      }
      for (int i = 0; i < count; ++i) epilogue(tiles[i], sums[i]);
    }
  }
}
