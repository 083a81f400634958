// SPDX-License-Identifier: BSD-3-Clause
// dot_step: a step on nn.LSTM's own row-major weights, each pre-activation a dot product.

// Dot products that are summed at once, a vector of partial sums for each: rows × units × gates.
// With 4 rows, the weights of 4 gates and 4 operands: 24 registers of 32, or 14 of 16 with 2 rows.
// Measured, N=1 H=128: a step reads its weights at 91 GB/s, and at 50 where each dot product's
// vector is added up by itself.
constexpr int kDotSums = kRegisters / 2;
constexpr int kDotRows = kDotSums / kGates;
static_assert(kDotRows <= kMR, "the epilogue has room for kMR rows");

// What one instruction takes of a row, and what it makes of two.
template <typename S>
struct DotOperand {
  using A = AccumulatorOf<S>;
  static constexpr int kWidth = LSTM_ISA::kWidth<A>;
  template <bool kFull>
  LSTM_INLINE Vec<A> load(const S* row, int count) {
    return load_lanes<kFull, Vec<A>>(row, count);
  }
  LSTM_INLINE Vec<A> multiply_add(Vec<A> a, Vec<A> b, Vec<A> c) {
    return LSTM_ISA::multiply_add(a, b, c);
  }
};
#if defined(__AVX512BF16__)
template <>
struct DotOperand<BFloat16> {
  static constexpr int kWidth = 2 * LSTM_ISA::kWidth<float>;
  template <bool kFull>
  LSTM_INLINE __m512bh load(const BFloat16* row, int count) {
    if (kFull) return load_unaligned<__m512bh>(row);
    return bit_cast<__m512bh>(_mm512_maskz_loadu_epi16((1u << count) - 1, row));
  }
  LSTM_INLINE VecF multiply_add(__m512bh a, __m512bh b, VecF c) {
    return bit_cast<VecF>(_mm512_dpbf16_ps(bit_cast<__m512>(c), a, b));
  }
};
#endif

// sums[(u·kRows + r)·4 + g] += Σ_k weight[g][unit[u] + k] · x_r[k], lane by lane.
template <int kRows, int kUnits, typename S, typename A>
LSTM_INLINE void accumulate_dots(Vec<A> (&sums)[kDotSums], const S* const (&weight)[kGates],
                                 const int64_t (&unit)[kUnits], const S* const (&x)[kRows],
                                 int64_t k_size) {
  using Operand = DotOperand<S>;
  const auto add = [&](auto full, int64_t k, int count) __attribute__((always_inline)) {
    constexpr bool kFull = decltype(full)::value;
    decltype(Operand::template load<kFull>(x[0], count)) operand[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) operand[r] = Operand::template load<kFull>(x[r] + k, count);
#pragma GCC unroll 4
    for (int u = 0; u < kUnits; ++u) {
#pragma GCC unroll 4
      for (int g = 0; g < kGates; ++g) {
        const auto w = Operand::template load<kFull>(weight[g] + unit[u] + k, count);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          Vec<A>& sum = sums[(u * kRows + r) * kGates + g];
          sum = Operand::multiply_add(w, operand[r], sum);
        }
      }
    }
  };
  constexpr int width = Operand::kWidth;
  int64_t k = 0;
  for (; k + width <= k_size; k += width) add(std::true_type{}, k, width);
  if (k < k_size) add(std::false_type{}, k, static_cast<int>(k_size - k));
}

// accumulate_dots on a product's operand rows from `row` on, and rows of a (4H, K) weight from the
// unit `first` on; units past the end repeat the last one.
template <int kRows, typename S, typename A>
LSTM_INLINE void add_product(Vec<A> (&sums)[kDotSums], const Product& product, const void* weights,
                             int64_t hidden_size, int64_t row, int64_t first) {
  constexpr int kUnits = kDotRows / kRows;
  const S* x[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) x[r] = row_pointer<S>(product.operand, row + r);
  const S* weight[kGates];
#pragma GCC unroll 4
  for (int g = 0; g < kGates; ++g) {
    weight[g] = static_cast<const S*>(weights) + (g * hidden_size + first) * product.size;
  }
  int64_t unit[kUnits];
#pragma GCC unroll 4
  for (int u = 0; u < kUnits; ++u) {
    unit[u] = (first + u < hidden_size ? u : hidden_size - 1 - first) * product.size;
  }
  accumulate_dots<kRows, kUnits, S, A>(sums, weight, unit, x, product.size);
}

// NOTE: not inlined: one copy for each number of rows is enough.
template <int kRows, typename S, typename A>
__attribute__((noinline)) void dot_rows(const DotStep& dots, int64_t row, int64_t panel) {
  constexpr int width = kWidth<A>;
  constexpr int columns = kRows * kGates;
  static_assert(kDotSums % width == 0, "whole squares of sums");
  const ForwardStep& step = dots.step;
  const int64_t left = step.hidden_size - panel * width;
  const int64_t units = left < width ? left : width;

  // Compute the panel's pre-activations, (unit, row, gate). One vector more is read, not used.
  A rows[(width * columns) + width] = {};
  for (int64_t unit = 0; unit < units; unit += kDotRows / kRows) {
    Vec<A> sums[kDotSums] = {};
    const int64_t first = panel * width + unit;
    add_product<kRows, S, A>(sums, step.input, dots.w_ih, step.hidden_size, row, first);
    add_product<kRows, S, A>(sums, step.recurrent, dots.w_hh, step.hidden_size, row, first);
#pragma GCC unroll 8
    for (int v = 0; v < kDotSums; v += width) {
      store_unaligned(rows + unit * columns + v, sum_square<1>(sums + v));
    }
  }

  // Turn them into vectors of W units, (row, gate), and add the bias.
  Vec<A> pre[columns];
  const A* bias = static_cast<const A*>(step.bias) + panel * kNR<A>;
#pragma GCC unroll 8
  for (int first = 0; first < columns; first += width) {
    Vec<A> square[width];
#pragma GCC unroll 16
    for (int u = 0; u < width; ++u) {
      square[u] = load_unaligned<Vec<A>>(rows + u * columns + first);
    }
    transpose_square<width / 2>(square);
#pragma GCC unroll 16
    for (int i = 0; i < width; ++i) {
      if (first + i >= columns) continue;
      const int gate = (first + i) % kGates;
      pre[first + i] = square[i] + load_unaligned<Vec<A>>(bias + gate * width);
    }
  }
  panel_epilogue<S, S>(step, pre, kGates, row, kRows, panel);
}

// A step's blocks of rows differ by at most one row, as in for_each_tile.
template <typename S>
void dot_step(const DotStep& dots) {
  using A = AccumulatorOf<S>;
  const int64_t rows = dots.step.rows;
  for (int64_t panel = dots.step.panel_begin; panel < dots.step.panel_end; ++panel) {
    int64_t row = 0;
    for (int64_t block = (rows + kDotRows - 1) / kDotRows; block > 0; --block) {
      const int64_t block_rows = (rows - row + block - 1) / block;
      switch (block_rows) {
        case 1:
          dot_rows<1, S, A>(dots, row, panel);
          break;
        case 2:
          dot_rows<2, S, A>(dots, row, panel);
          break;
#if defined(__AVX512F__)
        case 3:
          dot_rows<3, S, A>(dots, row, panel);
          break;
        case 4:
          dot_rows<4, S, A>(dots, row, panel);
          break;
#endif
      }
      row += block_rows;
    }
  }
}
