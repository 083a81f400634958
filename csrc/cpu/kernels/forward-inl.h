// SPDX-License-Identifier: BSD-3-Clause
// forward_step: pre-activations in registers, the cell in their epilogue.

// What the epilogues make of a vector of units, in two passes: the gates in the place of their
// pre-activations, then c and h. Kernels that have a cell of their own bring another.
struct PlainCell {
  template <typename V>
  LSTM_INLINE void activate(V* units) {
    const Gates<V> gates = activate_gates<VectorMath>(units[kInputGate], units[kForgetGate],
                                                      units[kCellGate], units[kOutputGate]);
    units[kInputGate] = gates.i;
    units[kForgetGate] = gates.f;
    units[kCellGate] = gates.g;
    units[kOutputGate] = gates.o;
  }

  template <typename V>
  LSTM_INLINE CellOutput<V> finish(const V* units, V c) {
    const Gates<V> gates = {units[kInputGate], units[kForgetGate], units[kCellGate],
                            units[kOutputGate]};
    return lstm_cell_forward<VectorMath>(gates, c);
  }
};

template <bool kFull, typename S, typename V>
LSTM_INLINE void store_gates(const ForwardStep& step, const V* units, int64_t row, int64_t unit,
                             int count) {
  if (!step.gates.base) return;
  S* gate_row = row_pointer<S>(step.gates, row) + unit;
#pragma GCC unroll 4
  for (int g = 0; g < kGates; ++g) {
    store_lanes<kFull>(gate_row + g * step.hidden_size, units[g], count);
  }
}

template <bool kFull, typename A>
LSTM_INLINE Vec<A> load_state(const ForwardStep& step, int64_t row, int64_t unit, int count) {
  const A* c = static_cast<const A*>(step.c) + row * step.hidden_size + unit;
  return load_lanes<kFull, Vec<A>>(c, count);
}

// Stores what the cell makes of `count` units of a row.
template <bool kFull, typename S, typename E>
LSTM_INLINE void store_cell(const ForwardStep& step, const CellOutput<Vec<AccumulatorOf<E>>>& out,
                            int64_t row, int64_t unit, int count) {
  using A = AccumulatorOf<E>;
  using V = Vec<A>;

  // Hand the state to the next step.
  A* c_row = static_cast<A*>(step.c) + row * step.hidden_size + unit;
  const bool reset = is_reset(step.next_reset, row);
  store_lanes<kFull>(c_row, reset ? V{} : out.c, count);
  // NOTE: h goes through the storage type, so that the state is what y shows.
  const bool clear_h = reset && step.h_is_state;
  S* y_row = step.y.base ? row_pointer<S>(step.y, row) + unit : nullptr;
  E* h_row = row_pointer<E>(step.h, row) + unit;
  if constexpr (std::is_same_v<S, E>) {
    store_lanes<kFull>(h_row, clear_h ? V{} : out.h, count);
  } else {
    const VecH half = narrow<S>(out.h);
    const VecF widened = std::is_same_v<S, BFloat16> ? widen_bf16(half) : widen_fp16(half);
    store_lanes<kFull>(h_row, clear_h ? V{} : widened, count);
  }

  // Write what the caller sees and what the backward needs.
  if (y_row) store_lanes<kFull>(y_row, out.h, count);
  if (step.cells.base) {
    store_lanes<kFull>(row_pointer<A>(step.cells, row) + unit, out.c, count);
  }
  if (step.cell_states.base) {
    store_lanes<kFull>(row_pointer<S>(step.cell_states, row) + unit, out.c, count);
  }
}

// Puts the gates of `count` units of a row in the place of their pre-activations.
template <bool kFull, typename S, typename A>
LSTM_INLINE void activate_units(const ForwardStep& step, Vec<A>* units, int64_t row, int64_t unit,
                                int count) {
  PlainCell::activate(units);
  store_gates<kFull, S>(step, units, row, unit, count);
}

// The cell of `count` units of a row, from their gates.
template <bool kFull, typename S, typename E, typename Cell>
LSTM_INLINE void finish_units(const ForwardStep& step, const Vec<AccumulatorOf<E>>* units,
                              int64_t row, int64_t unit, int count) {
  using A = AccumulatorOf<E>;
  const Vec<A> c = load_state<kFull, A>(step, row, unit, count);
  store_cell<kFull, S, E>(step, Cell::finish(units, c), row, unit, count);
}

// The cell of `count` units of some rows, from their pre-activations, a row's `stride` vectors
// after those of the row before. In two passes: each is a chain of dependent instructions, and the
// processor works on as many rows at once as it has room for in its window. Measured on two cores:
// a fifth less time than in one pass.
template <bool kFull, typename S, typename E>
LSTM_INLINE void forward_epilogue(const ForwardStep& step, Vec<AccumulatorOf<E>>* pre, int stride,
                                  int64_t first_row, int rows, int64_t unit, int count) {
  using A = AccumulatorOf<E>;
#pragma GCC unroll 1
  for (int r = 0; r < rows; ++r) {
    activate_units<kFull, S, A>(step, pre + r * stride, first_row + r, unit, count);
  }
  if (!step.c) return;
#pragma GCC unroll 1
  for (int r = 0; r < rows; ++r) {
    finish_units<kFull, S, E, PlainCell>(step, pre + r * stride, first_row + r, unit, count);
  }
}

// forward_epilogue for so few units that a vector has room for those of several rows, one behind
// the other: activations are most of the work of a small layer. Measured: 1.4 times as fast at H
// = 8.
template <typename S, typename E, typename Cell>
LSTM_INLINE void narrow_epilogue(const ForwardStep& step, const Vec<AccumulatorOf<E>>* pre,
                                 int stride, int64_t first_row, int rows, int64_t unit, int count) {
  using A = AccumulatorOf<E>;
  using V = Vec<A>;
  constexpr int width = kWidth<A>;
  // Gates, then c, then h; a row's vector overwrites the empty lanes of the row before.
  constexpr int kC = kGates, kH = kGates + 1;
  A dense[kGates + 2][kMR * width / 2 + width];
  const int lanes = rows * count;
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int g = 0; g < kGates; ++g) store_unaligned(dense[g] + r * count, pre[r * stride + g]);
    if (step.c) {
      store_unaligned(dense[kC] + r * count,
                      load_state<false, A>(step, first_row + r, unit, count));
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i <= kC; ++i) store_unaligned(dense[i] + lanes, V{});

  for (int lane = 0; lane < lanes; lane += width) {
    V units[kGates];
#pragma GCC unroll 4
    for (int g = 0; g < kGates; ++g) units[g] = load_unaligned<V>(dense[g] + lane);
    Cell::activate(units);
#pragma GCC unroll 4
    for (int g = 0; g < kGates; ++g) store_unaligned(dense[g] + lane, units[g]);
    if (!step.c) continue;
    const CellOutput<V> out = Cell::finish(units, load_unaligned<V>(dense[kC] + lane));
    store_unaligned(dense[kC] + lane, out.c);
    store_unaligned(dense[kH] + lane, out.h);
  }

  for (int r = 0; r < rows; ++r) {
    const auto row_of = [&](int i) { return load_unaligned<V>(dense[i] + r * count); };
    const V units[kGates] = {row_of(kInputGate), row_of(kForgetGate), row_of(kCellGate),
                             row_of(kOutputGate)};
    store_gates<false, S>(step, units, first_row + r, unit, count);
    if (!step.c) continue;
    store_cell<false, S, E>(step, {row_of(kH), row_of(kC)}, first_row + r, unit, count);
  }
}

// The cell of some rows of a panel.
template <typename S, typename E>
LSTM_INLINE void panel_epilogue(const ForwardStep& step, Vec<AccumulatorOf<E>>* pre, int stride,
                                int64_t first_row, int rows, int64_t panel) {
  constexpr int width = kWidth<AccumulatorOf<E>>;
  const int64_t unit = panel * width;
  const int64_t left = step.hidden_size - unit;
  if (left >= width) {
    forward_epilogue<true, S, E>(step, pre, stride, first_row, rows, unit, width);
  } else if (left > width / 2 || rows == 1) {
    forward_epilogue<false, S, E>(step, pre, stride, first_row, rows, unit, static_cast<int>(left));
  } else {
    narrow_epilogue<S, E, PlainCell>(step, pre, stride, first_row, rows, unit,
                                     static_cast<int>(left));
  }
}

// The sums start from the pre-activations that were made ahead, or from the bias.
template <typename A>
LSTM_INLINE void start_gates(const ForwardStep& step, const Tile& tile, Vec<A>* sums) {
  const int slots = tile.slots;
  for (int r = 0; r < tile.rows; ++r) {
    const A* from = step.preactivations.base
                        ? row_pointer<A>(step.preactivations, tile.row + r) +
                              (tile.panel - step.panel_begin) * kNR<A>
                        : static_cast<const A*>(step.bias) + tile.panel * kNR<A>;
    for (int s = 0; s < slots; ++s) {
      sums[r * slots + s] = load_unaligned<Vec<A>>(from + s * kWidth<A>);
    }
  }
}

template <typename S, typename E>
void forward_step(const ForwardStep& step) {
  using A = AccumulatorOf<E>;
  const PanelRange panels = gate_panels(step.panel_begin, step.panel_end, step.descending);
  const auto start = [&](const Tile& tile, Vec<A>* sums) { start_gates<A>(step, tile, sums); };
  const auto epilogue = [&](const Tile& tile, Vec<A>* sums) {
    for (int p = 0; p * kPanelSlots < tile.slots; ++p) {
      panel_epilogue<S, E>(step, sums + p * kPanelSlots, tile.slots, tile.row, tile.rows,
                           tile.panel + p);
    }
  };
  for_each_tile<E>(step.rows, panels, step.input, step.recurrent, start, epilogue);
}

template <bool kFull, typename S, typename A>
LSTM_INLINE void cell_output_lanes(const S* output_gate, const A* cells, S* out, int count) {
  const Vec<A> o = load_lanes<kFull, Vec<A>>(output_gate, count);
  const Vec<A> c = load_lanes<kFull, Vec<A>>(cells, count);
  store_lanes<kFull>(out, o * VectorMath::tanh(c), count);
}

template <typename S, typename A>
void cell_output(const void* gates, const void* cells, int64_t rows, int64_t hidden_size,
                 void* out) {
  for (int64_t j = 0; j < rows; ++j) {
    const S* o = static_cast<const S*>(gates) + (j * kGates + kOutputGate) * hidden_size;
    const A* c = static_cast<const A*>(cells) + j * hidden_size;
    S* h = static_cast<S*>(out) + j * hidden_size;
    for (int64_t unit = 0; unit < hidden_size; unit += kWidth<A>) {
      const int64_t left = hidden_size - unit;
      if (left >= kWidth<A>) {
        cell_output_lanes<true>(o + unit, c + unit, h + unit, kWidth<A>);
      } else {
        cell_output_lanes<false>(o + unit, c + unit, h + unit, static_cast<int>(left));
      }
    }
  }
}
