// SPDX-License-Identifier: BSD-3-Clause
// linear_step: a plain product of operand rows and panels, with addends, to any of three types.

template <bool kFull, typename S, typename E>
LSTM_INLINE void linear_epilogue(const LinearStep& step, Vec<AccumulatorOf<E>> v, int64_t row,
                                 int64_t column, int count) {
  using A = AccumulatorOf<E>;
  using V = Vec<A>;
  for (const Rows& addend : step.addends) {
    if (addend.base) {
      v += load_lanes<kFull, V>(row_pointer<S>(addend, row) + column, count);
    }
  }
  if (step.out.base) store_lanes<kFull>(row_pointer<S>(step.out, row) + column, v, count);
  if (step.operand_out.base) {
    if constexpr (!std::is_same_v<S, E>) {  // NOTE: the operand is what the storage shows
      const VecH half = narrow<S>(v);
      v = std::is_same_v<S, BFloat16> ? widen_bf16(half) : widen_fp16(half);
    }
    store_lanes<kFull>(row_pointer<E>(step.operand_out, row) + column,
                       is_reset(step.reset, row) ? V{} : v, count);
  }
}

template <bool kUnpacked, typename S, typename E>
LSTM_INLINE void run_linear_step(const LinearStep& step) {
  using A = AccumulatorOf<E>;
  constexpr int64_t width = kWidth<A>;
  const PanelRange panels = step.columns == 0
                                ? gate_panels(step.panel_begin, step.panel_end)
                                : column_panels<A>(step.panel_begin, step.panel_end, step.columns);
  const auto start = [&](const Tile& tile, Vec<A>* sums) {
    const int slots = tile.slots;
    const A* bias = step.bias ? static_cast<const A*>(step.bias) + tile.panel * kNR<A> : nullptr;
    for (int r = 0; r < tile.rows; ++r) {
      for (int s = 0; s < slots; ++s) {
        sums[r * slots + s] = bias ? load_unaligned<Vec<A>>(bias + s * width) : Vec<A>{};
      }
    }
  };
  const auto epilogue = [&](const Tile& tile, const Vec<A>* sums) {
    const int slots = tile.slots;
    const int64_t tile_column = (tile.panel - step.panel_begin) * kNR<A>;
    for (int r = 0; r < tile.rows; ++r) {
      for (int s = 0; s < slots; ++s) {
        const Vec<A> sum = sums[r * slots + s];
        const int64_t column = (tile.panel * kPanelSlots + s) * width;
        const int64_t left = step.columns - column;
        if (step.accumulator_out.base) {
          A* to = row_pointer<A>(step.accumulator_out, tile.row + r) + tile_column + s * width;
          // NOTE: added at the end: sums of sums lose less than one long sum.
          store_unaligned(to, step.accumulate ? sum + load_unaligned<Vec<A>>(to) : sum);
        } else if (left >= width) {
          linear_epilogue<true, S, E>(step, sum, tile.row + r, column, width);
        } else if (left > 0) {
          linear_epilogue<false, S, E>(step, sum, tile.row + r, column, static_cast<int>(left));
        }
      }
    }
  };
  if constexpr (kUnpacked) {
    for_each_unpacked_tile<S, E>(step.rows, panels, step.product, step.second, start, epilogue);
  } else {
    for_each_tile<E>(step.rows, panels, step.product, step.second, start, epilogue);
  }
}

template <typename S, typename E>
void linear_step(const LinearStep& step) {
  return step.product.matrix || step.second.matrix ? run_linear_step<true, S, E>(step)
                                                   : run_linear_step<false, S, E>(step);
}
