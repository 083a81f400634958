// SPDX-License-Identifier: BSD-3-Clause
// Loops over panels and rows, and what becomes of the sums.

// Rows of a panel, or panels of a few rows, whose sums one epilogue takes.
struct Batch {
  int64_t row, panel;  // the first ones
  int rows, panels;    // kMR at most, multiplied
};

// The sums of a batch, (panels, rows, kAllSlots).
template <WeightType kType>
LSTM_INLINE void multiply_batch(VecF* sums, const Operand& operand, const PackedMatrix& matrix,
                                const Batch& batch, bool descending) {
  constexpr int most = max_rows<kType>();
  static_assert(kMR <= 2 * most, "a batch's rows are one block or two");
  const int first = batch.rows > most ? (batch.rows + 1) / 2 : batch.rows;
  for (int i = 0; i < batch.panels; ++i) {
    const int panel = descending ? batch.panels - 1 - i : i;
    VecF* out = sums + panel * batch.rows * kAllSlots;
    multiply_block<kType>(out, operand, matrix, batch.row, first, batch.panel + panel);
    if (first == batch.rows) continue;
    multiply_block<kType>(out + first * kAllSlots, operand, matrix, batch.row + first,
                          batch.rows - first, batch.panel + panel);
  }
}

// For each batch: sums, and epilogue(sums, batch). Panels outside, rows inside: a panel stays in
// the first caches for all rows. Blocks of rows differ by at most one.
// NOTE: the epilogue of one vector is a chain of some 150 cycles, which those of others hide.
template <WeightType kType, typename Epilogue>
LSTM_INLINE void for_each_batch(int64_t rows, int64_t panel_begin, int64_t panel_end,
                                bool descending, const Operand& operand, const PackedMatrix& matrix,
                                const Epilogue& epilogue) {
  if (rows <= 0) return;
  VecF sums[kMR * kAllSlots];
  const int64_t panels = panel_end - panel_begin;
  const int64_t most_panels = rows < kMR ? kMR / rows : 1;
  const int64_t panel_batches = (panels + most_panels - 1) / most_panels;
  // NOTE: one division for all batches. Those of a batch took a tenth of an input GEMM of K = 64.
  const int64_t row_batches = (rows + kMR - 1) / kMR;
  const int64_t least_rows = rows / row_batches, with_one_more = rows % row_batches;
  for (int64_t i = 0; i < panel_batches; ++i) {
    const int64_t first = (descending ? panel_batches - 1 - i : i) * most_panels;
    const int64_t left = panels - first;
    Batch batch;
    batch.panel = panel_begin + first;
    batch.panels = static_cast<int>(left < most_panels ? left : most_panels);
    batch.row = 0;
    for (int64_t j = 0; j < row_batches; ++j, batch.row += batch.rows) {
      batch.rows = static_cast<int>(least_rows + (j < with_one_more));
      multiply_batch<kType>(sums, operand, matrix, batch, descending);
      epilogue(sums, batch);
    }
  }
}

// int8's results have the same bits on all instruction sets; 16-bit weights' are sums of products
// that have not.
template <WeightType kType>
using MultiplyAddOf =
    std::conditional_t<kType == WeightType::kInt8, ExactMultiplyAdd, OwnMultiplyAdd>;

// base + the scaled sums of a slot.
template <WeightType kType>
LSTM_INLINE VecF scaled(VecF base, VecF sum, const Operand& operand, const PackedMatrix& matrix,
                        int64_t row, int64_t panel, int slot) {
  if constexpr (kType == WeightType::kInt8) {
    const float* scales = matrix.scales + panel * kPanelColumns + slot * kWidth<float>;
    return ExactMultiplyAdd::of(sum, load_unaligned<VecF>(scales) * operand.scales[row], base);
  } else {
    return base + sum;
  }
}

// function(vector, row) for all of them. A single row has a loop of its own, 2 % of a step of N
// = 1.
template <typename Function>
LSTM_INLINE void for_each_vector(int vectors, int rows, const Function& function) {
  if (rows == 1) {
#pragma GCC unroll 1
    for (int v = 0; v < vectors; ++v) function(v, 0);
    return;
  }
#pragma GCC unroll 1
  for (int v = 0; v < vectors; ++v) {
#pragma GCC unroll 1
    for (int r = 0; r < rows; ++r) function(v, r);
  }
}

template <WeightType kType>
void recurrent_step(const RecurrentStep& step) {
  using Cell = PackedCell<MultiplyAddOf<kType>>;
  const ForwardStep& cell = step.cell;
  constexpr int width = kWidth<float>;
  const auto epilogue = [&](VecF* sums, const Batch& batch) __attribute__((always_inline)) {
    const int64_t first = batch.panel * kParts;
    const int64_t left = cell.hidden_size - first * width;
    const int64_t whole_panels = batch.panels * kUnits;
    const int units = static_cast<int>(left < whole_panels ? left : whole_panels);
    // Few units that are left over share vectors, those of several rows.
    const int over = units % width;
    const bool narrow = batch.rows > 1 && over > 0 && over <= width / 2;
    const int vectors = (units + width - 1) / width - narrow;

    // The sums of a vector of units in a row, gate g's kParts · g further on.
    const auto sums_of = [&](int v, int r) __attribute__((always_inline)) {
      return sums + (v / kParts * batch.rows + r) * kAllSlots + v % kParts;
    };
    const auto add_up = [&](VecF* pre, int v, int r) __attribute__((always_inline)) {
      const int64_t row = batch.row + r, panel = batch.panel + v / kParts;
      const float* ahead =
          step.ahead + row * step.ahead_stride + (panel - cell.panel_begin) * kPanelColumns;
      const VecF* from = sums_of(v, r);
#pragma GCC unroll 4
      for (int g = 0; g < kGates; ++g) {
        const int slot = g * kParts + v % kParts;
        pre[g] = scaled<kType>(load_unaligned<VecF>(ahead + slot * width), from[g * kParts],
                               step.operand, step.matrix, row, panel, slot);
      }
    };

    // In two passes, as forward_epilogue: the gates in the place of their sums, then the cells.
    for_each_vector(vectors, batch.rows, [&](int v, int r) __attribute__((always_inline)) {
      VecF gates[kGates];
      add_up(gates, v, r);
      Cell::activate(gates);
#pragma GCC unroll 4
      for (int g = 0; g < kGates; ++g) sums_of(v, r)[g * kParts] = gates[g];
    });
    for_each_vector(vectors, batch.rows, [&](int v, int r) __attribute__((always_inline)) {
      VecF gates[kGates];
#pragma GCC unroll 4
      for (int g = 0; g < kGates; ++g) gates[g] = sums_of(v, r)[g * kParts];
      const int64_t unit = (first + v) * width;
      const int count = units - v * width;
      if (count >= width) {
        finish_units<true, float, float, Cell>(cell, gates, batch.row + r, unit, width);
      } else {
        finish_units<false, float, float, Cell>(cell, gates, batch.row + r, unit, count);
      }
    });
    if (narrow) {
      VecF pre[kMR * kGates];
      for (int r = 0; r < batch.rows; ++r) add_up(pre + r * kGates, vectors, r);
      narrow_epilogue<float, float, Cell>(cell, pre, kGates, batch.row, batch.rows,
                                          (first + vectors) * width, over);
    }
  };
  for_each_batch<kType>(cell.rows, cell.panel_begin, cell.panel_end, cell.descending, step.operand,
                        step.matrix, epilogue);
}

template <WeightType kType>
void input_gemm(const InputGemm& gemm) {
  const auto epilogue = [&](const VecF* sums, const Batch& batch) {
    for (int p = 0; p < batch.panels; ++p) {
      const int64_t panel = batch.panel + p;
      const float* bias = gemm.bias + panel * kPanelColumns;
      for (int r = 0; r < batch.rows; ++r) {
        const int64_t row = batch.row + r;
        const VecF* from = sums + (p * batch.rows + r) * kAllSlots;
        float* out = gemm.out + row * gemm.out_stride + (panel - gemm.panel_begin) * kPanelColumns;
        for (int slot = 0; slot < kAllSlots; ++slot) {
          const VecF base = load_unaligned<VecF>(bias + slot * kWidth<float>);
          store_unaligned(out + slot * kWidth<float>, scaled<kType>(base, from[slot], gemm.operand,
                                                                    gemm.matrix, row, panel, slot));
        }
      }
    }
  };
  for_each_batch<kType>(gemm.rows, gemm.panel_begin, gemm.panel_end, false, gemm.operand,
                        gemm.matrix, epilogue);
}

template <WeightType kType>
void output_projection(const OutputProjection& projection) {
  const auto epilogue = [&](const VecF* sums, const Batch& batch) {
    for (int p = 0; p < batch.panels; ++p) {
      const int64_t panel = batch.panel + p;
      for (int r = 0; r < batch.rows; ++r) {
        const int64_t row = batch.row + r;
        const VecF* from = sums + (p * batch.rows + r) * kAllSlots;
        const bool reset = is_reset(projection.reset, row);
        float* y = projection.y.base ? row_pointer<float>(projection.y, row) : nullptr;
        float* h = row_pointer<float>(projection.h, row);
        for (int slot = 0; slot < kAllSlots; ++slot) {
          const int64_t column = panel * kPanelColumns + slot * kWidth<float>;
          const int64_t left = projection.matrix.columns - column;
          if (left <= 0) break;
          const int count = static_cast<int>(left < kWidth<float> ? left : kWidth<float>);
          const VecF value = scaled<kType>(VecF{}, from[slot], projection.operand,
                                           projection.matrix, row, panel, slot);
          store_first(h + column, reset ? VecF{} : value, count);
          if (y) store_first(y + column, value, count);
        }
      }
    }
  };
  for_each_batch<kType>(projection.rows, projection.panel_begin, projection.panel_end, false,
                        projection.operand, projection.matrix, epilogue);
}
