// SPDX-License-Identifier: BSD-3-Clause
// The kernels on packed weights (packed_weights.h), once for each instruction set, as tables of
// functions of raw pointers. They are thread-safe, allocate nothing and throw nothing.
//
// An operand, a row of x, h or o·tanh(c), is prepared for the kernels of its table first: 8 bytes
// for each group of K, with zeros past the end, and a scale.
//   int8 weights     a value is scale · q, q a 16-bit integer, of which the largest of the row is
//                    32767. What a product makes of it is exact: sums of 4H rows are integers,
//                    which are brought to float32 by one rounding rule, so that all tables give the
//                    same bits. A row with NaN or infinity has scale NaN, and so its results are.
//   16-bit weights   the values themselves; products are summed in float32, even and odd k apart,
//                    each in rising k
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/cpu_features.h"
#include "cpu/kernels/kernels.h"
#include "cpu/quantized/packed_weights.h"

namespace lstm_fused::cpu::quantized {

constexpr int64_t kOperandGroupBytes = 8;
// Bytes of a prepared row, of which whole vectors are written.
constexpr int64_t operand_bytes(int64_t groups) {
  return (groups * kOperandGroupBytes + 63) / 64 * 64;
}

// Rows that were prepared by the kernels' table.
struct Operand {
  const uint8_t* rows = nullptr;
  int64_t stride = 0;             // bytes from row to row
  const float* scales = nullptr;  // one for each row; read with int8 weights
};

struct PrepareRows {
  Rows source;  // float32
  int64_t rows = 0;
  int64_t k_size = 0;
  uint8_t* out = nullptr;  // rows of operand_bytes(groups of the matrix), `stride` apart
  int64_t stride = 0;
  float* scales = nullptr;  // out (rows)
};

// Panels [cell.panel_begin, cell.panel_end), of kUnits units each, of one time step:
// pre-activations = ahead + h·W_hhᵀ, then the cell. `cell` gives rows, hidden_size, panels and the
// order that they are taken in, the state and the outputs; its products and bias are not read.
struct RecurrentStep {
  ForwardStep cell;
  Operand operand;
  PackedMatrix matrix;
  // x·W_ihᵀ + bias: rows of (panel_end - panel_begin)·64, `ahead_stride` floats apart.
  const float* ahead = nullptr;
  int64_t ahead_stride = 0;
};

// out = bias + operand·matrixᵀ, panels [panel_begin, panel_end) in panel order.
struct InputGemm {
  int64_t rows = 0;
  int64_t panel_begin = 0, panel_end = 0;
  Operand operand;
  PackedMatrix matrix;
  const float* bias = nullptr;  // (panels, 64)
  float* out = nullptr;         // rows of (panel_end - panel_begin)·64, `out_stride` floats apart
  int64_t out_stride = 0;
};

// h = W_hr·(o·tanh(c)), panels [panel_begin, panel_end).
struct OutputProjection {
  int64_t rows = 0;
  int64_t panel_begin = 0, panel_end = 0;
  Operand operand;
  PackedMatrix matrix;
  MutableRows y;  // out; or absent
  MutableRows h;  // out: the state for the next step
  Resets reset;   // zero h
};

struct QuantizedTable {
  void (*prepare_rows)(const PrepareRows&);
  void (*recurrent_step)(const RecurrentStep&);
  void (*input_gemm)(const InputGemm&);
  void (*output_projection)(const OutputProjection&);
};

// Instruction sets of these kernels, in rising order. The two with VNNI differ for int8 alone.
enum class QuantizedIsa { kBaseline, kAvx2, kAvxVnni, kAvx512, kAvx512Vnni };
const char* quantized_isa_name(QuantizedIsa isa);
// The instruction sets that this build holds and this processor runs.
std::vector<QuantizedIsa> available_quantized_isas();
// The best instruction set that may be used: LSTM_FUSED_MAX_ISA limits it to the set that it names,
// without VNNI up to "avx512".
QuantizedIsa quantized_isa(const CpuFacts& facts);

const QuantizedTable& quantized_table(QuantizedIsa isa, WeightType type);

namespace baseline {
const QuantizedTable& kernels(WeightType type);
}
namespace avx2 {
const QuantizedTable& kernels(WeightType type);
}
namespace avx_vnni {
const QuantizedTable& kernels(WeightType type);
}
namespace avx512 {
const QuantizedTable& kernels(WeightType type);
}
namespace avx512_vnni {
const QuantizedTable& kernels(WeightType type);
}

}  // namespace lstm_fused::cpu::quantized
