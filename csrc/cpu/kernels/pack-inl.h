// SPDX-License-Identifier: BSD-3-Clause
// Packing of weights into the panels that kernels.h describes.
//
// A panel is [steps][4 slots][W] cells; a cell is an operand element, or a pair of bfloat16 that
// are neighbours in K.

template <typename E>
struct PanelCell {
  using Type = E;
};
template <>
struct PanelCell<BFloat16> {
  using Type = uint32_t;
};

// Cells k … k + W - 1 of a row of the source, of which `count` exist; the others are zero.
template <typename S, typename E>
LSTM_INLINE Vec<typename PanelCell<E>::Type> load_cells(const S* row, int64_t k, int64_t k_size) {
  using Cell = typename PanelCell<E>::Type;
  constexpr int width = kWidth<Cell>;
  if constexpr (std::is_same_v<E, BFloat16>) {
    Vec<Cell> cells{};
    const int64_t left = (k_size - k * 2) * sizeof(S);
    if (left >= kVectorBytes) return load_unaligned<Vec<Cell>>(row + k * 2);
    __builtin_memcpy(&cells, row + k * 2, left > 0 ? left : 0);
    return cells;
  } else {
    const int64_t left = k_size - k;
    if (left >= width) return load_lanes<true, Vec<Cell>>(row + k, width);
    return load_lanes<false, Vec<Cell>>(row + k, static_cast<int>(left));
  }
}

// load_cells where all W cells exist; `from` points at cell k.
template <typename S, typename E>
LSTM_INLINE Vec<typename PanelCell<E>::Type> load_all_cells(const S* from) {
  using Cells = Vec<typename PanelCell<E>::Type>;
  if constexpr (std::is_same_v<E, BFloat16>) {
    return load_unaligned<Cells>(from);
  } else {
    return load_lanes<true, Cells>(from, kWidth<Element<Cells>>);
  }
}

// Transposes W rows of the source into one slot, W cells of K at a time. Rows from `count` on are
// zero.
template <typename S, typename E>
LSTM_INLINE void pack_slot(const S* rows, int64_t count, int64_t k_size, E* slot) {
  using Cell = typename PanelCell<E>::Type;
  constexpr int width = kWidth<Cell>;
  constexpr int64_t multiple = OperandTraits<E>::kMultiple;
  const int64_t steps = (k_size + multiple - 1) / multiple;
  Cell* out = reinterpret_cast<Cell*>(slot);
  for (int64_t k = 0; k < steps; k += width) {
    Vec<Cell> square[width];
    if (count == width && (k + width) * multiple <= k_size) {
#pragma GCC unroll 16
      for (int lane = 0; lane < width; ++lane) {
        square[lane] = load_all_cells<S, E>(rows + lane * k_size + k * multiple);
      }
    } else {
      for (int lane = 0; lane < width; ++lane) {
        square[lane] =
            lane < count ? load_cells<S, E>(rows + lane * k_size, k, k_size) : Vec<Cell>{};
      }
    }
    transpose_square<width / 2>(square);
    const int64_t left = steps - k;
    for (int i = 0; i < (left < width ? left : width); ++i) {
      store_unaligned(out + (k + i) * kPanelSlots * width, square[i]);
    }
  }
}

template <typename S, typename E>
void pack_transposed(const void* source, int64_t columns, int64_t k_size, bool gate_order,
                     int64_t begin, int64_t end, void* panels) {
  using Cell = typename PanelCell<E>::Type;
  constexpr int64_t width = kWidth<Cell>;
  const int64_t slot_columns = gate_order ? columns / kPanelSlots : columns;
  for (int64_t p = begin; p < end; ++p) {
    E* panel = static_cast<E*>(panels) + p * panel_elements<E>(k_size);
    for (int64_t q = 0; q < kPanelSlots; ++q) {
      // Lane l of this slot is column first + l, of which `count` exist.
      const int64_t offset = gate_order ? p * width : (p * kPanelSlots + q) * width;
      const int64_t first = offset + (gate_order ? q * slot_columns : 0);
      const int64_t left = slot_columns - offset;
      const int64_t count = left < 0 ? 0 : left < width ? left : width;
      pack_slot<S, E>(static_cast<const S*>(source) + first * k_size, count, k_size,
                      panel + q * kVectorBytes / static_cast<int64_t>(sizeof(E)));
    }
  }
}

// `count` of the W cells of a row of B, or of a pair of rows; without `next` the pair's second is
// zero.
template <typename S, typename E>
LSTM_INLINE Vec<typename PanelCell<E>::Type> load_row_cells(const S* row, const S* next,
                                                            int count) {
  using Cell = typename PanelCell<E>::Type;
  constexpr int width = kWidth<Cell>;
  if constexpr (std::is_same_v<E, BFloat16>) {
    const auto load = [&](const S* from) {
      return count == width ? load_unaligned<VecH>(from) : load_first<VecH>(from, count);
    };
    const VecU low = __builtin_convertvector(load(row), VecU);
    const VecU high = next ? __builtin_convertvector(load(next), VecU) : VecU{};
    return low | (high << 16);
  } else {
    return count == width ? load_lanes<true, Vec<Cell>>(row, width)
                          : load_lanes<false, Vec<Cell>>(row, count);
  }
}

// Panels [begin, end) of B (K, columns), column order; row_of(k) points at row k.
template <typename S, typename E, typename RowOf>
LSTM_INLINE void pack_panels(const RowOf& row_of, int64_t columns, int64_t k_size, int64_t begin,
                             int64_t end, E* panels) {
  using Cell = typename PanelCell<E>::Type;
  constexpr int64_t width = kWidth<Cell>;
  constexpr int64_t multiple = OperandTraits<E>::kMultiple;
  for (int64_t p = begin; p < end; ++p) {
    Cell* out = reinterpret_cast<Cell*>(panels + p * panel_elements<E>(k_size));
    for (int64_t k = 0; k < k_size; k += multiple) {
      const S* row = row_of(k);
      const S* next = multiple == 2 && k + 1 < k_size ? row_of(k + 1) : nullptr;
      for (int64_t q = 0; q < kPanelSlots; ++q, out += width) {
        const int64_t column = (p * kPanelSlots + q) * width;
        const int64_t left = columns - column;
        const int count = static_cast<int>(left < 0 ? 0 : left < width ? left : width);
        store_unaligned(out,
                        load_row_cells<S, E>(row + column, next ? next + column : nullptr, count));
      }
    }
  }
}

template <typename S, typename E>
void pack_untransposed(const void* source, int64_t columns, int64_t k_size, int64_t begin,
                       int64_t end, void* panels) {
  const auto row_of = [&](int64_t k) { return static_cast<const S*>(source) + k * columns; };
  pack_panels<S, E>(row_of, columns, k_size, begin, end, static_cast<E*>(panels));
}

template <typename S, typename E>
void pack_rows(const void* const* rows, int64_t k_size, int64_t columns, void* panels) {
  constexpr int64_t panel_columns = kNR<AccumulatorOf<E>>;
  const auto row_of = [&](int64_t k) { return static_cast<const S*>(rows[k]); };
  pack_panels<S, E>(row_of, columns, k_size, 0, (columns + panel_columns - 1) / panel_columns,
                    static_cast<E*>(panels));
}

template <typename S, typename E>
void pack_columns(const void* const* rows, int64_t k_size, int64_t begin, int64_t end,
                  int64_t stride, void* out) {
  using Cell = typename PanelCell<E>::Type;
  constexpr int64_t width = kWidth<Cell>;
  constexpr int64_t multiple = OperandTraits<E>::kMultiple;
  for (int64_t column = begin; column < end; column += width) {
    const int count = static_cast<int>(end - column < width ? end - column : width);
    E* to = static_cast<E*>(out) + (column - begin) * stride;
    for (int64_t first = 0; first < k_size; first += width * multiple) {
      const auto load = [&](int64_t k) {
        const S* row = static_cast<const S*>(rows[k]) + column;
        const bool has_next = multiple == 2 && k + 1 < k_size;
        const S* next = has_next ? static_cast<const S*>(rows[k + 1]) + column : nullptr;
        return load_row_cells<S, E>(row, next, count);
      };
      Vec<Cell> square[width];
      for (int i = 0; i < width; ++i) {
        const int64_t k = first + i * multiple;
        square[i] = k < k_size ? load(k) : Vec<Cell>{};
      }
      transpose_square<width / 2>(square);
      for (int lane = 0; lane < count; ++lane) {
        store_unaligned(to + lane * stride + first, square[lane]);
      }
    }
  }
}

// out (kVectors vectors, or the first `count` lanes of one) [+]= Σ_k of rows[k] from `column` on.
template <int kVectors, bool kFull, typename S, typename A>
LSTM_INLINE void sum_columns(const void* const* rows, int64_t k_size, int64_t column, int count,
                             bool accumulate, A* out) {
  Vec<A> sums[kVectors] = {};
  for (int64_t k = 0; k < k_size; ++k) {
    const S* row = static_cast<const S*>(rows[k]) + column;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      sums[v] += load_lanes<kFull, Vec<A>>(row + v * kWidth<A>, count);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    A* to = out + v * kWidth<A>;
    // NOTE: added at the end: sums of sums lose less than one long sum.
    if (accumulate) sums[v] += load_lanes<kFull, Vec<A>>(to, count);
    store_lanes<kFull>(to, sums[v], count);
  }
}

template <typename S, typename A>
void sum_rows(const void* const* rows, int64_t k_size, int64_t begin, int64_t end, bool accumulate,
              void* out) {
  constexpr int width = kWidth<A>;
  constexpr int vectors = 4;  // additions at once: one takes 4 cycles
  A* to = static_cast<A*>(out);
  int64_t column = begin;
  for (; column + vectors * width <= end; column += vectors * width, to += vectors * width) {
    sum_columns<vectors, true, S>(rows, k_size, column, width, accumulate, to);
  }
  for (; column < end; column += width, to += width) {
    const int count = static_cast<int>(end - column < width ? end - column : width);
    sum_columns<1, false, S>(rows, k_size, column, count, accumulate, to);
  }
}
