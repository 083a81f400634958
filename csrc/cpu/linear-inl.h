// SPDX-License-Identifier: BSD-3-Clause
// linear_step: a plain product of operand rows and panels, with addends, to any of three types.

template <bool kFull, typename S, typename E>
LSTM_INLINE void finish_columns(const LinearStep& step, Vec<AccumulatorOf<E>> v, int64_t row,
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

template <typename S, typename E>
struct LinearTile {
  const LinearStep& step;

  template <int kRows, int kPanels>
  inline __attribute__((always_inline)) void run(int64_t row, int64_t panel) const {
    using A = AccumulatorOf<E>;
    constexpr int64_t width = kWidth<A>;
    constexpr int kSlots = kPanels * kPanelSlots;
    Vec<A> acc[kRows][kSlots] = {};
    if (step.bias) {
#pragma GCC unroll 8
      for (int s = 0; s < kSlots; ++s) {
        acc[0][s] = load_unaligned<Vec<A>>(static_cast<const A*>(step.bias) +
                                           (panel * kPanelSlots + s) * width);
#pragma GCC unroll 8
        for (int r = 1; r < kRows; ++r) acc[r][s] = acc[0][s];
      }
    }
    multiply<E, kRows, kPanels>(acc, step.product, row, panel);

    // NOTE: a copy in memory, so that the loop below can index it and `acc` stays in registers.
    Vec<A> sums[kRows][kSlots];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int s = 0; s < kSlots; ++s) sums[r][s] = acc[r][s];
    }
#pragma GCC unroll 1
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 1
      for (int s = 0; s < kSlots; ++s) {
        if (step.accumulator_out.base) {
          const int64_t local = (panel - step.panel_begin) * kPanelSlots + s;
          store_unaligned(row_pointer<A>(step.accumulator_out, row + r) + local * width,
                          sums[r][s]);
          continue;
        }
        const int64_t column = (panel * kPanelSlots + s) * width;
        const int64_t left = step.columns - column;
        if (left >= width) {
          finish_columns<true, S, E>(step, sums[r][s], row + r, column, width);
        } else if (left > 0) {
          finish_columns<false, S, E>(step, sums[r][s], row + r, column, static_cast<int>(left));
        }
      }
    }
  }
};

template <typename S, typename E>
void linear_step(const LinearStep& step) {
  for_each_tile(step.rows, step.panel_begin, step.panel_end, LinearTile<S, E>{step});
}
