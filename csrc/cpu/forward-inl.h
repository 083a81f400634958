// SPDX-License-Identifier: BSD-3-Clause
// forward_step and dot_step: pre-activations in registers, the cell in their epilogue.

// Activates the pre-activations of W units of a row, in place.
template <bool kFull, typename S, typename A>
LSTM_INLINE void activate_units(const ForwardStep& step, Vec<A>* pre, int64_t row, int64_t unit,
                                int count) {
  const Gates<Vec<A>> gates = activate_gates<VectorMath>(pre[kInputGate], pre[kForgetGate],
                                                         pre[kCellGate], pre[kOutputGate]);
  pre[kInputGate] = gates.i;
  pre[kForgetGate] = gates.f;
  pre[kCellGate] = gates.g;
  pre[kOutputGate] = gates.o;
  if (!step.gates.base) return;
  S* gate_row = row_pointer<S>(step.gates, row) + unit;
#pragma GCC unroll 4
  for (int g = 0; g < kGates; ++g) {
    store_lanes<kFull>(gate_row + g * step.hidden_size, pre[g], count);
  }
}

// Takes W units of a row through the cell.
template <bool kFull, typename S, typename E>
LSTM_INLINE void step_units(const ForwardStep& step, const Vec<AccumulatorOf<E>>* activated,
                            int64_t row, int64_t unit, int count) {
  using A = AccumulatorOf<E>;
  using V = Vec<A>;
  const Gates<V> gates = {activated[kInputGate], activated[kForgetGate], activated[kCellGate],
                          activated[kOutputGate]};

  // Step the cell.
  A* c_row = static_cast<A*>(step.c) + row * step.hidden_size + unit;
  const CellOutput<V> out =
      lstm_cell_forward<VectorMath>(gates, load_lanes<kFull, V>(c_row, count));

  // Hand the state to the next step.
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

// Finishes some rows of a panel from their pre-activations, those of a row `stride` vectors after
// the row before. In two passes: each is a chain of dependent instructions, and the processor works
// on as many rows at once as it has room for in its window.
template <typename S, typename E>
LSTM_INLINE void finish_panel(const ForwardStep& step, Vec<AccumulatorOf<E>>* pre, int stride,
                              int64_t first_row, int rows, int64_t panel) {
  using A = AccumulatorOf<E>;
  constexpr int width = kWidth<A>;
  const int64_t unit = panel * width;
  const int64_t left = step.hidden_size - unit;
  const int count = static_cast<int>(left < width ? left : width);
  const auto finish = [&](auto full) {
    constexpr bool kFull = decltype(full)::value;
#pragma GCC unroll 1
    for (int r = 0; r < rows; ++r) {
      activate_units<kFull, S, A>(step, pre + r * stride, first_row + r, unit, count);
    }
    if (!step.c) return;
#pragma GCC unroll 1
    for (int r = 0; r < rows; ++r) {
      step_units<kFull, S, E>(step, pre + r * stride, first_row + r, unit, count);
    }
  };
  if (count == width) {
    finish(std::true_type{});
  } else {
    finish(std::false_type{});
  }
}

// The sums start from the pre-activations that were made ahead, or from the bias.
template <typename A>
LSTM_INLINE void start_gates(const ForwardStep& step, const Tile& tile, Vec<A>* sums) {
  constexpr int64_t panel_width = kPanelSlots * kWidth<A>;
  const int slots = tile.slots;
  for (int r = 0; r < tile.rows; ++r) {
    const A* from = step.preactivations.base
                        ? row_pointer<A>(step.preactivations, tile.row + r) +
                              (tile.panel - step.panel_begin) * panel_width
                        : static_cast<const A*>(step.bias) + tile.panel * panel_width;
    for (int s = 0; s < slots; ++s) {
      sums[r * slots + s] = load_unaligned<Vec<A>>(from + s * kWidth<A>);
    }
  }
}

template <typename S, typename E>
void forward_step(const ForwardStep& step) {
  using A = AccumulatorOf<E>;
  const PanelRange panels = gate_panels(step.panel_begin, step.panel_end, step.descending);
  for_each_tile(step.rows, panels, [&](const Tile& tile) {
    Vec<A> sums[kMaxTileVectors];
    start_gates<A>(step, tile, sums);
    multiply_tile<E>(sums, tile, step.input, step.recurrent);
    for (int p = 0; p * kPanelSlots < tile.slots; ++p) {
      finish_panel<S, E>(step, sums + p * kPanelSlots, tile.slots, tile.row, tile.rows,
                         tile.panel + p);
    }
  });
}

// Σ_k weight[g][k] · x_r[k] for four weight rows and kRows operand rows.
template <int kRows, typename S, typename A>
LSTM_INLINE void accumulate_dots(Vec<A> (&acc)[kRows][kGates], const S* const (&weight)[kGates],
                                 const S* const (&x)[kRows], int64_t k_size) {
  constexpr int width = kWidth<A>;
  int64_t k = 0;
  for (; k + width <= k_size; k += width) {
    Vec<A> w[kGates];
#pragma GCC unroll 4
    for (int g = 0; g < kGates; ++g) w[g] = load_lanes<true, Vec<A>>(weight[g] + k, width);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Vec<A> v = load_lanes<true, Vec<A>>(x[r] + k, width);
#pragma GCC unroll 4
      for (int g = 0; g < kGates; ++g) acc[r][g] = multiply_add(w[g], v, acc[r][g]);
    }
  }
  if (const int left = static_cast<int>(k_size - k)) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Vec<A> v = load_lanes<false, Vec<A>>(x[r] + k, left);
#pragma GCC unroll 4
      for (int g = 0; g < kGates; ++g) {
        const Vec<A> w = load_lanes<false, Vec<A>>(weight[g] + k, left);
        acc[r][g] = multiply_add(w, v, acc[r][g]);
      }
    }
  }
}

template <int kRows, typename S, typename A>
LSTM_INLINE void dot_rows(const DotStep& dots, int64_t row) {
  constexpr int width = kWidth<A>;
  const ForwardStep& step = dots.step;
  const int64_t hidden = step.hidden_size;
  const S* x[kRows];
  const S* h[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    x[r] = row_pointer<S>(step.input.operand, row + r);
    h[r] = row_pointer<S>(step.recurrent.operand, row + r);
  }
  for (int64_t panel = step.panel_begin; panel < step.panel_end; ++panel) {
    const int64_t left = hidden - panel * width;
    const int count = static_cast<int>(left < width ? left : width);
    // Lane by lane: four dot products for each row.
    Vec<A> pre[kRows * kGates] = {};
    for (int lane = 0; lane < count; ++lane) {
      const S* w_ih[kGates];
      const S* w_hh[kGates];
#pragma GCC unroll 4
      for (int g = 0; g < kGates; ++g) {
        const int64_t weight_row = g * hidden + panel * width + lane;
        w_ih[g] = static_cast<const S*>(dots.w_ih) + weight_row * step.input.size;
        w_hh[g] = static_cast<const S*>(dots.w_hh) + weight_row * step.recurrent.size;
      }
      Vec<A> acc[kRows][kGates] = {};
      accumulate_dots<kRows, S, A>(acc, w_ih, x, step.input.size);
      accumulate_dots<kRows, S, A>(acc, w_hh, h, step.recurrent.size);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int g = 0; g < kGates; ++g) {
          reinterpret_cast<A*>(&pre[r * kGates + g])[lane] = sum_lanes(acc[r][g]);
        }
      }
    }
    const A* bias = static_cast<const A*>(step.bias) + panel * kPanelSlots * width;
    for (int r = 0; r < kRows; ++r) {
      for (int g = 0; g < kGates; ++g) {
        pre[r * kGates + g] += load_unaligned<Vec<A>>(bias + g * width);
      }
    }
    finish_panel<S, S>(step, pre, kGates, row, kRows, panel);
  }
}

// Rows that share one pass over a weight row: 4 gates × kDotRows sums, 4 weights and an operand.
constexpr int kDotRows = kRegisters == 32 ? 4 : 2;
static_assert(kDotRows * kGates + kGates + 1 <= kRegisters, "must not spill");

template <typename S>
void dot_step(const DotStep& dots) {
  using A = AccumulatorOf<S>;
  int64_t row = 0;
  for (; row + kDotRows <= dots.step.rows; row += kDotRows) dot_rows<kDotRows, S, A>(dots, row);
  if constexpr (kDotRows > 2) {
    for (; row + 2 <= dots.step.rows; row += 2) dot_rows<2, S, A>(dots, row);
  }
  for (; row < dots.step.rows; ++row) dot_rows<1, S, A>(dots, row);
}

template <bool kFull, typename S, typename A>
LSTM_INLINE void output_lanes(const S* output_gate, const A* cells, S* out, int count) {
  const Vec<A> o = load_lanes<kFull, Vec<A>>(output_gate, count);
  const Vec<A> c = load_lanes<kFull, Vec<A>>(cells, count);
  store_lanes<kFull>(out, o * VectorMath::tanh(c), count);
}

template <typename S, typename A>
void unprojected_output(const void* gates, const void* cells, int64_t rows, int64_t hidden_size,
                        void* out) {
  for (int64_t j = 0; j < rows; ++j) {
    const S* o = static_cast<const S*>(gates) + (j * kGates + kOutputGate) * hidden_size;
    const A* c = static_cast<const A*>(cells) + j * hidden_size;
    S* h = static_cast<S*>(out) + j * hidden_size;
    for (int64_t unit = 0; unit < hidden_size; unit += kWidth<A>) {
      const int64_t left = hidden_size - unit;
      if (left >= kWidth<A>) {
        output_lanes<true>(o + unit, c + unit, h + unit, kWidth<A>);
      } else {
        output_lanes<false>(o + unit, c + unit, h + unit, static_cast<int>(left));
      }
    }
  }
}
