// SPDX-License-Identifier: BSD-3-Clause
// Products with row-major matrices as they are, for so few rows that packing would cost more than
// the products: operands times a matrix, and sums of outer products.
//
// A cell is what pack-inl.h says: an element, or a pair of bfloat16 that are neighbours in K.

// Rows of a matrix that go into the sums of all its columns before the next rows do: so memory is
// read in pieces of 32 whole rows, at the rate of a plain read. One strip of 4 or 8 vectors over
// all K at a time takes 1.3 times as long from the third cache on, a page for every other row.
constexpr int64_t kMatrixBlock = 32;
static_assert(kMatrixBlock % OperandTraits<BFloat16>::kMultiple == 0, "a block has whole pairs");
static_assert(kMaxOuterRows % OperandTraits<BFloat16>::kMultiple == 0, "so do outer products");

template <typename E>
LSTM_INLINE typename PanelCell<E>::Type operand_cell(const E* row, int64_t k, bool has_next) {
  if constexpr (std::is_same_v<E, BFloat16>) {
    // NOTE: the element behind an odd row belongs to another row; it may be NaN.
    if (!has_next) return row[k].bits;
    uint32_t pair;
    __builtin_memcpy(&pair, row + k, sizeof(pair));
    return pair;
  } else {
    return row[k];
  }
}

template <typename E>
LSTM_INLINE Vec<AccumulatorOf<E>> multiply_add_cells(Vec<typename PanelCell<E>::Type> a,
                                                     Vec<typename PanelCell<E>::Type> b,
                                                     Vec<AccumulatorOf<E>> sum) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<E, BFloat16>) {
    return bit_cast<VecF>(
        _mm512_dpbf16_ps(bit_cast<__m512>(sum), bit_cast<__m512bh>(a), bit_cast<__m512bh>(b)));
  }
#endif
  if constexpr (!std::is_same_v<E, BFloat16>) return multiply_add(a, b, sum);
}

// ---- Operands times a matrix -------------------------------------------------------------------

// sums[r·row_stride + s] += Σ_k row_r[k] · matrix[k][column + s·W …], k in [begin, end), in rising
// k as from panels. Of the last vector `count` columns exist.
// NOTE: not inlined: one copy serves all kinds of steps.
template <typename S, typename E, int kRows, int kSlots, bool kFull>
__attribute__((noinline)) void multiply_strip(Vec<AccumulatorOf<E>>* sums, int row_stride,
                                              const Product& product, int64_t first_row,
                                              int64_t column, int count, int64_t begin,
                                              int64_t end) {
  using A = AccumulatorOf<E>;
  using Cell = typename PanelCell<E>::Type;
  constexpr int64_t multiple = OperandTraits<E>::kMultiple;
  constexpr int width = kWidth<A>;
  const E* rows[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) rows[r] = row_pointer<E>(product.operand, first_row + r);
  Vec<A> acc[kRows][kSlots];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int s = 0; s < kSlots; ++s) acc[r][s] = sums[r * row_stride + s];
  }
  const int64_t stride = product.matrix_columns;
  const S* from = static_cast<const S*>(product.matrix) + begin * stride + column;
  const auto add = [&](int64_t k, auto next) __attribute__((always_inline)) {
    constexpr bool kHasNext = decltype(next)::value;
    Vec<Cell> a[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) a[r] = broadcast(operand_cell(rows[r], k, kHasNext));
#pragma GCC unroll 8
    for (int s = 0; s < kSlots; ++s) {
      const S* at = from + s * width;
      const Vec<Cell> b =
          load_row_cells<S, E>(at, kHasNext ? at + stride : nullptr, kFull ? width : count);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) acc[r][s] = multiply_add_cells<E>(a[r], b, acc[r][s]);
    }
    from += multiple * stride;
  };
  int64_t k = begin;
  for (; k + multiple <= end; k += multiple) add(k, std::bool_constant<multiple == 2>{});
  if (k < end) add(k, std::false_type{});
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int s = 0; s < kSlots; ++s) sums[r * row_stride + s] = acc[r][s];
  }
}

template <typename S, typename E, int kRows>
void multiply_strips(Vec<AccumulatorOf<E>>* sums, const Tile& tile, const Product& product,
                     int64_t begin, int64_t end) {
  constexpr int width = kWidth<AccumulatorOf<E>>;
  const int64_t first = tile.panel * kNR<AccumulatorOf<E>>;
  const int64_t left = product.matrix_columns - first;
  const int full = static_cast<int>(left / width < tile.slots ? left / width : tile.slots);
  const auto multiply = [&](auto slots, auto is_full, int slot) {
    multiply_strip<S, E, kRows, decltype(slots)::value, decltype(is_full)::value>(
        sums + slot, tile.slots, product, tile.row, first + slot * width,
        static_cast<int>(left - slot * width), begin, end);
  };
  int slot = 0;
  if constexpr (kRows == 1) {
    constexpr int most = kPanelsOfOneRow * kPanelSlots;
    for (; slot + most <= full; slot += most) {
      multiply(std::integral_constant<int, most>{}, std::true_type{}, slot);
    }
  }
  for (; slot + kPanelSlots <= full; slot += kPanelSlots) {
    multiply(std::integral_constant<int, kPanelSlots>{}, std::true_type{}, slot);
  }
  for (; slot < full; ++slot) multiply(std::integral_constant<int, 1>{}, std::true_type{}, slot);
  if (slot < tile.slots) multiply(std::integral_constant<int, 1>{}, std::false_type{}, slot);
}

// multiply_tile for k in [begin, end) of a product with a matrix.
template <typename S, typename E>
void multiply_unpacked_tile(Vec<AccumulatorOf<E>>* sums, const Tile& tile, const Product& product,
                            int64_t begin, int64_t end) {
  switch (tile.rows) {
    case 1:
      return multiply_strips<S, E, 1>(sums, tile, product, begin, end);
    case 2:
      return multiply_strips<S, E, 2>(sums, tile, product, begin, end);
    case 3:
      return multiply_strips<S, E, 3>(sums, tile, product, begin, end);
#if defined(__AVX512F__)
    case 4:
      return multiply_strips<S, E, 4>(sums, tile, product, begin, end);
    case 5:
      return multiply_strips<S, E, 5>(sums, tile, product, begin, end);
    case 6:
      return multiply_strips<S, E, 6>(sums, tile, product, begin, end);
#endif
  }
}

// for_each_tile for products with matrices. The sums of some tiles are held at once: of all
// rows, or as many as fit, and of as many panels as fit then. Blocks of a matrix outside, panels
// inside, rows innermost: a strip of a block stays in the L1 cache for all of them.
template <typename S, typename E, typename Start, typename Epilogue>
LSTM_INLINE void for_each_unpacked_tile(int64_t rows, const PanelRange& panels,
                                        const Product& first, const Product& second,
                                        const Start& start, const Epilogue& epilogue) {
  const int64_t per_tile = rows == 1 ? kPanelsOfOneRow : 1;
  Tile tiles[kMaxTiles];
  Vec<AccumulatorOf<E>> sums[kMaxTiles][kMaxTileVectors];
  int64_t row = 0;
  for (int64_t blocks = (rows + kMR - 1) / kMR; blocks > 0;) {
    const int64_t chunk = blocks < kMaxTiles ? blocks : kMaxTiles;
    const int64_t chunk_end = row + (rows - row) * chunk / blocks;
    const int64_t chunk_panels = kMaxTiles / chunk * per_tile;
    for (int64_t panel = panels.begin; panel < panels.end; panel += chunk_panels) {
      // Lay out the tiles.
      const int64_t end = panel + chunk_panels < panels.end ? panel + chunk_panels : panels.end;
      int count = 0;
      for (int64_t p = panel; p < end; p += per_tile) {
        const int64_t most = (end - p < per_tile ? end - p : per_tile) * kPanelSlots;
        const int64_t used = panels.slots - p * kPanelSlots;
        int64_t tile_row = row;
        for (int64_t left = chunk; left > 0; --left, ++count) {
          const int64_t tile_rows = (chunk_end - tile_row + left - 1) / left;
          tiles[count] = {tile_row, p, static_cast<int>(tile_rows),
                          static_cast<int>(used < most ? used : most)};
          start(tiles[count], sums[count]);
          tile_row += tile_rows;
        }
      }

      // Add the products.
      for (const Product* product : {&first, &second}) {
        if (!product->operand.base) continue;
        for (int64_t k = 0; k < product->size; k += kMatrixBlock) {
          const int64_t left = product->size - k;
          const int64_t k_end = k + (left < kMatrixBlock ? left : kMatrixBlock);
          for (int i = 0; i < count; ++i) {
            multiply_unpacked_tile<S, E>(sums[i], tiles[i], *product, k, k_end);
          }
        }
      }
      for (int i = 0; i < count; ++i) epilogue(tiles[i], sums[i]);
    }
    row = chunk_end;
    blocks -= chunk;
  }
}

// ---- Sums of outer products --------------------------------------------------------------------

// Columns of grad, each a row of the result, that share a pass over vectors of the operands: a
// quarter of the registers, or an eighth of 16, times 4 vectors.
constexpr int kOuterColumns = kRegisters / 8;
static_assert(kOuterColumns * 4 + 4 + 1 <= kRegisters, "must not spill");

// Rows `column` to column + kColumns of the result, in vectors of the operands from `at` on, whose
// factors of grad are cells[k][column …].
template <typename S, typename E, int kColumns, int kSlots, bool kFull>
LSTM_INLINE void add_outer(const OuterProducts& outer,
                           const Vec<typename PanelCell<E>::Type>* cells, int column, S* out,
                           int64_t at, int count) {
  using A = AccumulatorOf<E>;
  using Cell = typename PanelCell<E>::Type;
  constexpr int64_t multiple = OperandTraits<E>::kMultiple;
  constexpr int width = kWidth<A>;
  Vec<A> acc[kColumns][kSlots] = {};
  for (int64_t k = 0; k < outer.k_size; k += multiple, ++cells) {
    const S* row = static_cast<const S*>(outer.operands[k]) + at;
    const bool has_next = multiple == 2 && k + 1 < outer.k_size;
    const S* next = has_next ? static_cast<const S*>(outer.operands[k + 1]) + at : nullptr;
    const Cell* factors = reinterpret_cast<const Cell*>(cells) + column;
    Vec<Cell> b[kSlots];
#pragma GCC unroll 4
    for (int s = 0; s < kSlots; ++s) {
      b[s] = load_row_cells<S, E>(row + s * width, next ? next + s * width : nullptr,
                                  kFull ? width : count);
    }
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) {
      const Vec<Cell> a = broadcast(factors[c]);
#pragma GCC unroll 4
      for (int s = 0; s < kSlots; ++s) acc[c][s] = multiply_add_cells<E>(a, b[s], acc[c][s]);
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < kColumns; ++c) {
#pragma GCC unroll 4
    for (int s = 0; s < kSlots; ++s) {
      S* to = out + c * outer.columns + at + s * width;
      // NOTE: what follows in this row comes for writing meanwhile: a store waits for its line.
      __builtin_prefetch(to + kSlots * width, 1, 3);
      store_lanes<kFull>(to, acc[c][s], count);
    }
  }
}

template <typename S, typename E, int kColumns>
__attribute__((noinline)) void add_outer_rows(const OuterProducts& outer,
                                              const Vec<typename PanelCell<E>::Type>* cells,
                                              int column, S* out) {
  constexpr int width = kWidth<AccumulatorOf<E>>;
  constexpr int slots = 4;
  int64_t at = 0;
  for (; at + slots * width <= outer.columns; at += slots * width) {
    add_outer<S, E, kColumns, slots, true>(outer, cells, column, out, at, width);
  }
  for (; at + width <= outer.columns; at += width) {
    add_outer<S, E, kColumns, 1, true>(outer, cells, column, out, at, width);
  }
  if (const int left = static_cast<int>(outer.columns - at)) {
    add_outer<S, E, kColumns, 1, false>(outer, cells, column, out, at, left);
  }
}

template <typename S, typename E>
void outer_products(const OuterProducts& outer) {
  using Cell = typename PanelCell<E>::Type;
  constexpr int64_t multiple = OperandTraits<E>::kMultiple;
  constexpr int64_t width = kWidth<Cell>;
  Vec<Cell> cells[kMaxOuterRows / multiple];
  S* out = static_cast<S*>(outer.out);
  for (int64_t begin = outer.begin; begin < outer.end; begin += width) {
    // Bring the factors of W columns of grad into cells.
    const int64_t left = outer.end - begin;
    const int count = static_cast<int>(left < width ? left : width);
    for (int64_t k = 0; k < outer.k_size; k += multiple) {
      const S* row = static_cast<const S*>(outer.grads[k]) + begin;
      const bool has_next = multiple == 2 && k + 1 < outer.k_size;
      const S* next = has_next ? static_cast<const S*>(outer.grads[k + 1]) + begin : nullptr;
      cells[k / multiple] = load_row_cells<S, E>(row, next, count);
    }
    int column = 0;
    for (; column + kOuterColumns <= count; column += kOuterColumns) {
      add_outer_rows<S, E, kOuterColumns>(outer, cells, column, out);
      out += kOuterColumns * outer.columns;
    }
    for (; column < count; ++column, out += outer.columns) {
      add_outer_rows<S, E, 1>(outer, cells, column, out);
    }
  }
}
