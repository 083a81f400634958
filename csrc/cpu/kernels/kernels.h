// SPDX-License-Identifier: BSD-3-Clause
// The kernels that exist once per instruction set and storage type, as a table of functions.
//
// Panels. A matrix B (K, columns) that is multiplied from the right is packed into panels of
// 4 vectors: panel p holds [K][4][W] elements of the operand type, W = vector_width, so that one
// pass over K feeds rows × 4 accumulators. Two orders of columns exist:
//   gate order    panel p, slot q, lane l = gate q of unit p·W + l     (forward: the cell's fused)
//   column order  panel p, slot q, lane l = column (4p + q)·W + l      (everything else)
// Columns past the end are zero. With the bfloat16 operand K goes in pairs, [K/2][4][W][2].
// A product in column order can also take B as it is, row-major and of the storage type. Its sums
// have the bits of those from panels.
//
// Each step function works on rows [0, rows) of its arguments and on panels
// [panel_begin, panel_end); it is thread-safe, allocates nothing and throws nothing.
#pragma once

#include <cstdint>

#include "common/types.h"

namespace lstm_fused::cpu {

// Slots of a panel: the four gates.
constexpr int64_t kPanelSlots = 4;

// What the register blocks (kMR rows) and the vectors of all instruction sets divide.
constexpr int64_t kMaxMR = 6;
constexpr int64_t kMaxVectorWidth = 16;

// Row j is at base + (order ? order[j] : j) · stride elements. Null base: absent.
struct Rows {
  const void* base = nullptr;
  int64_t stride = 0;
  const int64_t* order = nullptr;
};
struct MutableRows {
  void* base = nullptr;
  int64_t stride = 0;
  const int64_t* order = nullptr;
};

// Rows whose state is replaced by zero. Row j < limit is one where flags[order ? order[j] : j].
struct Resets {
  const uint8_t* flags = nullptr;
  const int64_t* order = nullptr;
  int64_t limit = 0;
};

// One product operand·panels, K = size. Absent when operand.base is null or size is 0.
struct Product {
  Rows operand;                  // operand type
  int64_t size = 0;              // K
  const void* panels = nullptr;  // see above
  // Instead of panels: B (K, matrix_columns) storage. In linear_step, with columns, and in
  // backward_step; where a step has two products, in both or in none.
  const void* matrix = nullptr;
  int64_t matrix_columns = 0;
};

// gates = bias + x·W_ihᵀ + h_prev·W_hhᵀ (input and recurrent GEMM), then the cell.
struct ForwardStep {
  int64_t rows = 0;
  int64_t hidden_size = 0;
  int64_t panel_begin = 0, panel_end = 0;
  bool descending = false;  // the last panel first: every other step of a serpentine sweep
  Product input, recurrent;
  const void* bias = nullptr;  // accumulator, gate order, all panels; or null
  // Instead of bias and input: rows of (panel_end - panel_begin)·4·W accumulators, gate order.
  Rows preactivations;
  void* c = nullptr;               // in/out (rows, H) accumulator: the state; null: gates only
  MutableRows h;                   // out, operand: the state for the next step
  MutableRows y;                   // out, storage; absent with output projection
  MutableRows gates, cell_states;  // out, storage; or absent
  MutableRows cells;               // out, accumulator; or absent
  Resets next_reset;               // zero c, and h, after this step
  bool h_is_state = true;          // false: h feeds an output projection; it is never zeroed
};

// A ForwardStep from nn.LSTM's own row-major weights, nothing packed: one dot product per gate and
// unit. For few rows in all, where packing would cost more than the steps.
struct DotStep {
  ForwardStep step;  // panels are null; operands are storage rows
  const void* w_ih = nullptr;
  const void* w_hh = nullptr;
};

// out = addends + operand·panels (+ a second product) in column order, `columns` of them; or in
// gate order, whole panels, where columns is 0.
struct LinearStep {
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t panel_begin = 0, panel_end = 0;
  Product product, second;
  const void* bias = nullptr;   // accumulator, in panel order; or null
  Rows addends[2];              // storage; or absent
  MutableRows out;              // storage; or absent
  MutableRows accumulator_out;  // accumulator, panel_begin's columns first; or absent
  bool accumulate = false;      // accumulator_out += the product
  MutableRows operand_out;      // operand; or absent
  Resets reset;                 // zero operand_out
};

// dh = addends + operand·panels in column order, then the cell's backward.
struct BackwardStep {
  int64_t rows = 0;
  int64_t hidden_size = 0;
  int64_t panel_begin = 0, panel_end = 0;
  bool descending = false;  // as in ForwardStep
  Product product;
  Rows addends[2];          // storage: gradients of y and of h_n; or absent
  Rows grad_cell_states;    // storage; or absent
  Rows gates;               // storage
  Rows cells, c_prev;       // accumulator
  void* dc = nullptr;       // in/out (rows, H) accumulator
  MutableRows grad_gates;   // out (4H) storage
  MutableRows operand_out;  // out (4H) operand: the next step's operand
  Resets reset;             // of this step: zero c_prev, dc and operand_out
};

// out = Σ_k grads[k][begin … end)ᵀ·operands[k], in rising k, nothing packed: the bits of a product
// of what pack_columns and pack_rows make.
struct OuterProducts {
  const void* const* grads = nullptr;     // (K) each points at a row of storage
  const void* const* operands = nullptr;  // (K) each points at a row of `columns` storage
  int64_t k_size = 0;                     // K, at most kMaxOuterRows
  int64_t begin = 0, end = 0;
  int64_t columns = 0;
  void* out = nullptr;  // out (end - begin, columns) storage; aliases no input
};
constexpr int64_t kMaxOuterRows = 32;

struct OptionKernels;  // option_kernels.h

struct KernelTable {
  int64_t vector_width;  // W, accumulators per vector
  int64_t mr;            // rows of the register block
  int64_t dot_rows;      // rows that share a pass of dot_step over the weights
  int64_t operand_size;  // bytes of an operand element
  int64_t k_multiple;    // K of a panel is padded to this

  int64_t nr() const { return kPanelSlots * vector_width; }  // columns of the register block

  // Packs panels [begin, end) of Bᵀ = source (columns, K), in gate order (columns = 4H) or plain.
  void (*pack_transposed)(const void* source, int64_t columns, int64_t k_size, bool gate_order,
                          int64_t begin, int64_t end, void* panels);
  // Packs panels [begin, end) of B = source (K, columns), column order.
  void (*pack_untransposed)(const void* source, int64_t columns, int64_t k_size, int64_t begin,
                            int64_t end, void* panels);
  // Packs all panels of B (K, columns), whose row k is at rows[k], column order; storage.
  void (*pack_rows)(const void* const* rows, int64_t k_size, int64_t columns, void* panels);
  // Columns [begin, end) of (K, columns) storage, whose row k is at rows[k], as rows of out,
  // `stride` operands apart; what is written of each row ends at K, rounded up to whole vectors.
  void (*pack_columns)(const void* const* rows, int64_t k_size, int64_t begin, int64_t end,
                       int64_t stride, void* out);
  // out (end - begin) accumulator = the sums over K of columns [begin, end), or out += them.
  void (*sum_rows)(const void* const* rows, int64_t k_size, int64_t begin, int64_t end,
                   bool accumulate, void* out);
  // bias (accumulator, gate order, all panels) = b_ih + b_hh; either may be null.
  void (*pack_bias)(const void* b_ih, const void* b_hh, int64_t hidden_size, void* bias);
  // Elementwise conversions of n elements.
  void (*storage_to_accumulator)(const void* source, int64_t n, void* out);
  void (*storage_to_operand)(const void* source, int64_t n, void* out);
  void (*accumulator_to_storage)(const void* source, int64_t n, void* out);
  void (*operand_to_storage)(const void* source, int64_t n, void* out);

  // out (rows, H) storage = o·tanh(c), from gates (rows, 4H) storage and cells (rows, H).
  void (*cell_output)(const void* gates, const void* cells, int64_t rows, int64_t hidden_size,
                      void* out);

  void (*forward_step)(const ForwardStep&);
  void (*dot_step)(const DotStep&);
  void (*linear_step)(const LinearStep&);
  void (*backward_step)(const BackwardStep&);
  void (*outer_products)(const OuterProducts&);
  const OptionKernels* options;
};

// Instruction sets in rising order.
enum class Isa { kBaseline, kAvx2, kAvx512, kAvx512Bf16 };

namespace baseline {
const KernelTable& kernels(DType dtype);
}
namespace avx2 {
const KernelTable& kernels(DType dtype);
}
namespace avx512 {
const KernelTable& kernels(DType dtype);
}
namespace avx512_bf16 {
const KernelTable& kernels(DType dtype);  // only bfloat16 differs from avx512
}

}  // namespace lstm_fused::cpu
