// SPDX-License-Identifier: BSD-3-Clause
// backward_step: the gradient of h in registers, the cell's backward in its epilogue.

template <bool kFull, typename S, typename E>
LSTM_INLINE void backward_epilogue(const BackwardStep& step, Vec<AccumulatorOf<E>> dh, int64_t row,
                                   int64_t unit, int count) {
  using A = AccumulatorOf<E>;
  using V = Vec<A>;
  const int64_t hidden = step.hidden_size;

  // Complete the gradients of h and c that arrive at this step.
  for (const Rows& addend : step.addends) {
    if (addend.base) dh += load_lanes<kFull, V>(row_pointer<S>(addend, row) + unit, count);
  }
  A* dc_row = static_cast<A*>(step.dc) + row * hidden + unit;
  V dc = load_lanes<kFull, V>(dc_row, count);
  if (step.grad_cell_states.base) {
    dc += load_lanes<kFull, V>(row_pointer<S>(step.grad_cell_states, row) + unit, count);
  }

  // Apply the cell's backward.
  const S* gate_row = row_pointer<S>(step.gates, row) + unit;
  const Gates<V> gates = {load_lanes<kFull, V>(gate_row + kInputGate * hidden, count),
                          load_lanes<kFull, V>(gate_row + kForgetGate * hidden, count),
                          load_lanes<kFull, V>(gate_row + kCellGate * hidden, count),
                          load_lanes<kFull, V>(gate_row + kOutputGate * hidden, count)};
  const bool reset = is_reset(step.reset, row);
  const V c = load_lanes<kFull, V>(row_pointer<A>(step.cells, row) + unit, count);
  const V c_prev =
      reset ? V{} : load_lanes<kFull, V>(row_pointer<A>(step.c_prev, row) + unit, count);
  const CellGradient<V> grad = lstm_cell_backward<VectorMath>(gates, c, c_prev, dh, dc);

  // A reset cuts the gradient between this step and the one before it.
  store_lanes<kFull>(dc_row, reset ? V{} : grad.c_prev, count);
  S* grad_row = row_pointer<S>(step.grad_gates, row) + unit;
  E* operand_row = row_pointer<E>(step.operand_out, row) + unit;
  const V all[kGates] = {grad.gates.i, grad.gates.f, grad.gates.g, grad.gates.o};
#pragma GCC unroll 4
  for (int g = 0; g < kGates; ++g) {
    store_lanes<kFull>(grad_row + g * hidden, all[g], count);
    store_lanes<kFull>(operand_row + g * hidden, reset ? V{} : all[g], count);
  }
}

template <bool kUnpacked, typename S, typename E>
LSTM_INLINE void run_backward_step(const BackwardStep& step) {
  using A = AccumulatorOf<E>;
  constexpr int64_t width = kWidth<A>;
  const PanelRange panels =
      column_panels<A>(step.panel_begin, step.panel_end, step.hidden_size, step.descending);
  const auto start = [](const Tile& tile, Vec<A>* dh) {
    for (int i = 0; i < tile.rows * tile.slots; ++i) dh[i] = Vec<A>{};
  };
  const auto epilogue = [&](const Tile& tile, const Vec<A>* dh) {
    const int slots = tile.slots;
    for (int r = 0; r < tile.rows; ++r) {
      for (int s = 0; s < slots; ++s) {
        const int64_t unit = (tile.panel * kPanelSlots + s) * width;
        const int64_t left = step.hidden_size - unit;
        const int64_t row = tile.row + r;
        if (left >= width) {
          backward_epilogue<true, S, E>(step, dh[r * slots + s], row, unit, width);
        } else if (left > 0) {
          backward_epilogue<false, S, E>(step, dh[r * slots + s], row, unit,
                                         static_cast<int>(left));
        }
      }
    }
  };
  if constexpr (kUnpacked) {
    for_each_unpacked_tile<S, E>(step.rows, panels, step.product, {}, start, epilogue);
  } else {
    for_each_tile<E>(step.rows, panels, step.product, {}, start, epilogue);
  }
}

template <typename S, typename E>
void backward_step(const BackwardStep& step) {
  return step.product.matrix ? run_backward_step<true, S, E>(step)
                             : run_backward_step<false, S, E>(step);
}
