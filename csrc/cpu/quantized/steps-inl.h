// SPDX-License-Identifier: BSD-3-Clause
// Loops over panels and rows, and what becomes of the sums.

// For each block of rows of each panel: sums, and epilogue(sums, row, rows, panel). Panels outside,
// rows inside: a panel stays in the first caches for all rows. Blocks differ by at most one row.
template <WeightType kType, typename Epilogue>
LSTM_INLINE void for_each_block(int64_t rows, int64_t panel_begin, int64_t panel_end,
                                bool descending, const Operand& operand, const PackedMatrix& matrix,
                                const Epilogue& epilogue) {
  constexpr int most = max_rows<kType>();
  VecF sums[most * kAllSlots];
  for (int64_t i = panel_begin; i < panel_end; ++i) {
    const int64_t panel = descending ? panel_begin + panel_end - 1 - i : i;
    int64_t row = 0;
    for (int64_t blocks = (rows + most - 1) / most; blocks > 0; --blocks) {
      const int block_rows = static_cast<int>((rows - row + blocks - 1) / blocks);
      multiply_block<kType>(sums, operand, matrix, row, block_rows, panel);
      epilogue(sums, row, block_rows, panel);
      row += block_rows;
    }
  }
}

// base + the scaled sums of a slot.
template <WeightType kType>
LSTM_INLINE VecF scaled(VecF base, VecF sum, const Operand& operand, const PackedMatrix& matrix,
                        int64_t row, int64_t panel, int slot) {
  if constexpr (kType == WeightType::kInt8) {
    const float* scales = matrix.scales + panel * kPanelColumns + slot * kWidth<float>;
    return base + sum * (load_unaligned<VecF>(scales) * operand.scales[row]);
  } else {
    return base + sum;
  }
}

template <WeightType kType>
void recurrent_step(const RecurrentStep& step) {
  const ForwardStep& cell = step.cell;
  const auto epilogue = [&](const VecF* sums, int64_t row, int rows,
                            int64_t panel) __attribute__((always_inline)) {
    for (int part = 0; part < kParts; ++part) {
      const int64_t vector = panel * kParts + part;
      if (vector * kWidth<float> >= cell.hidden_size) break;
      VecF pre[kMaxRows * kGates];
      for (int r = 0; r < rows; ++r) {
        const float* ahead =
            step.ahead + (row + r) * step.ahead_stride + (panel - cell.panel_begin) * kPanelColumns;
#pragma GCC unroll 4
        for (int g = 0; g < kGates; ++g) {
          const int slot = g * kParts + part;
          pre[r * kGates + g] = scaled<kType>(load_unaligned<VecF>(ahead + slot * kWidth<float>),
                                              sums[r * kAllSlots + slot], step.operand, step.matrix,
                                              row + r, panel, slot);
        }
      }
      if constexpr (kType == WeightType::kInt8) {
        panel_epilogue<float, float>(cell, pre, kGates, row, rows, vector);
      } else {
        fused::panel_epilogue<float, float>(cell, pre, kGates, row, rows, vector);
      }
    }
  };
  for_each_block<kType>(cell.rows, cell.panel_begin, cell.panel_end, cell.descending, step.operand,
                        step.matrix, epilogue);
}

template <WeightType kType>
void input_gemm(const InputGemm& gemm) {
  const auto epilogue = [&](const VecF* sums, int64_t row, int rows, int64_t panel) {
    const float* bias = gemm.bias + panel * kPanelColumns;
    for (int r = 0; r < rows; ++r) {
      float* out =
          gemm.out + (row + r) * gemm.out_stride + (panel - gemm.panel_begin) * kPanelColumns;
      for (int slot = 0; slot < kAllSlots; ++slot) {
        const VecF base = load_unaligned<VecF>(bias + slot * kWidth<float>);
        store_unaligned(out + slot * kWidth<float>,
                        scaled<kType>(base, sums[r * kAllSlots + slot], gemm.operand, gemm.matrix,
                                      row + r, panel, slot));
      }
    }
  };
  for_each_block<kType>(gemm.rows, gemm.panel_begin, gemm.panel_end, false, gemm.operand,
                        gemm.matrix, epilogue);
}

template <WeightType kType>
void output_projection(const OutputProjection& projection) {
  const auto epilogue = [&](const VecF* sums, int64_t row, int rows, int64_t panel) {
    for (int r = 0; r < rows; ++r) {
      const bool reset = is_reset(projection.reset, row + r);
      float* y = projection.y.base ? row_pointer<float>(projection.y, row + r) : nullptr;
      float* h = row_pointer<float>(projection.h, row + r);
      for (int slot = 0; slot < kAllSlots; ++slot) {
        const int64_t column = panel * kPanelColumns + slot * kWidth<float>;
        const int64_t left = projection.matrix.columns - column;
        if (left <= 0) break;
        const int count = static_cast<int>(left < kWidth<float> ? left : kWidth<float>);
        const VecF value = scaled<kType>(VecF{}, sums[r * kAllSlots + slot], projection.operand,
                                         projection.matrix, row + r, panel, slot);
        store_first(h + column, reset ? VecF{} : value, count);
        if (y) store_first(y + column, value, count);
      }
    }
  };
  for_each_block<kType>(projection.rows, projection.panel_begin, projection.panel_end, false,
                        projection.operand, projection.matrix, epilogue);
}
