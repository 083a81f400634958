// SPDX-License-Identifier: BSD-3-Clause
// The kernels of options_forward. After a step's recurrent GEMM comes the cell; what the next
// step's GEMM multiplies is written by the last kernel of a step, which knows what enters there: h,
// or the initial state of a row that begins, or what a reset puts in, and the mask is on it.
#pragma once

#include "cuda/options/values.cuh"

namespace lstm_fused::cuda {

// One direction's arrays at its step; (N, …) rows each. `options` are whole arrays.
struct OptionForwardDirection {
  int64_t step = 0;  // t
  int64_t next = 0;  // the step after t in this direction
  // (N, 4H) accumulator: the sums of the input GEMM and the recurrent GEMM; with norms the former's
  const void* preactivations = nullptr;
  const void* recurrent = nullptr;  // (N, 4H) accumulator: the recurrent GEMM's, with norms
  const void* b_ih = nullptr;       // storage; null without bias
  const void* b_hh = nullptr;
  const void* h_0 = nullptr;
  const void* c_0 = nullptr;
  const void* c_prev = nullptr;  // (N, H) accumulator; not read by rows at their first step
  void* c = nullptr;             // (N, H) accumulator; may be c_prev
  // y of the step before, in rows of L·P; read where h is kept, but not at a row's first step
  const void* y_prev = nullptr;
  void* y = nullptr;            // out, in rows of L·P
  void* cell_output = nullptr;  // out (N, H) storage: o·tanh(c̃), with projection alone
  const void* h = nullptr;      // (N, P) storage: W_hr·cell_output; see option_output_kernel
  void* entering = nullptr;     // out (N, P) storage, for the next step; null at the last one
  void* h_n = nullptr;
  void* c_n = nullptr;
  void* cell_states = nullptr;  // in rows of L·H
  void* gates = nullptr;
  CellOptionInputs options;
  SavedNorms norms;              // of the step
  void* output_parts = nullptr;  // scratch (N, 2H) accumulator, with norms
};

struct OptionForwardArgs : OptionStepArgs {
  OptionForwardDirection direction[kMaxDirections];
};

// Element p of what the recurrent GEMM of step `next` multiplies; h: this step's, as y shows it.
template <typename Storage>
__device__ __forceinline__ void store_entering(const OptionForwardArgs& args,
                                               const OptionForwardDirection& d,
                                               const RowOfStep& row, int64_t p,
                                               Accumulator<Storage> h) {
  if (d.entering == nullptr) return;
  const int64_t unit = row.n * args.output_size + p;
  Accumulator<Storage> value = 0;
  if (d.next < row.length) {
    if (is_reset(args.reset_mask, d.next, row.n, args.batch)) {
      value = element_or_zero<Storage>(d.options.reset_h, unit);
    } else {
      value = d.next == row.first_step() ? element<Storage>(d.h_0, unit) : h;
    }
    if (d.options.h_mask != nullptr) value *= element<Storage>(d.options.h_mask, unit);
  }
  put<Storage>(d.entering, unit, value);
}

// A row that takes no part has zero outputs; the final states of one without any step are its
// initial ones.
template <typename Storage>
__device__ __forceinline__ void store_no_step(const OptionForwardArgs& args,
                                              const OptionForwardDirection& d, const RowOfStep& row,
                                              int64_t j) {
  const int64_t unit = row.n * args.hidden_size + j;
  const int64_t output_unit = row.n * args.directions * args.hidden_size + j;
  const bool without_steps = args.first_call && row.length == 0;
  if (d.cell_states != nullptr) put<Storage>(d.cell_states, output_unit, 0);
  if (without_steps) put<Storage>(d.c_n, unit, element<Storage>(d.c_0, unit));
  if (d.cell_output != nullptr) return put<Storage>(d.cell_output, unit, 0);
  put<Storage>(d.y, output_unit, 0);
  if (without_steps) put<Storage>(d.h_n, unit, element<Storage>(d.h_0, unit));
  store_entering<Storage>(args, d, row, j, 0);
}

// The cell of unit j from its pre-activations: stores the gates and c.
// NOTE: `gates` may be `preactivations`: a thread has read its own elements.
template <typename Storage>
__device__ __forceinline__ OptionCellOutput<Accumulator<Storage>> run_cell(
    const OptionForwardArgs& args, const OptionForwardDirection& d, const RowOfStep& row, int64_t j,
    const Accumulator<Storage> (&a)[kGates], const OptionValues<Accumulator<Storage>>& values) {
  const int64_t hidden = args.hidden_size, unit = row.n * hidden + j;
  const auto c_prev = entering_c<Storage>(d.options, row, unit, d.c_0, d.c_prev);
  const auto out = option_cell_forward<DeviceMath>(a[kInputGate], a[kForgetGate], a[kCellGate],
                                                   a[kOutputGate], c_prev, values);
  accumulator<Storage>(d.c, unit) = out.c;
  if (d.cell_states != nullptr) {
    put<Storage>(d.cell_states, row.n * args.directions * hidden + j, out.c);
  }
  if (row.last) put<Storage>(d.c_n, unit, out.c);
  if (d.gates != nullptr) {
    const int64_t first = row.n * kGates * hidden + j;
    put<Storage>(d.gates, first + kInputGate * hidden, out.gates.i);
    put<Storage>(d.gates, first + kForgetGate * hidden, out.gates.f);
    put<Storage>(d.gates, first + kCellGate * hidden, out.gates.g);
    put<Storage>(d.gates, first + kOutputGate * hidden, out.gates.o);
  }
  return out;
}

// What follows from o·tanh(c̃) of unit j: without projection h, and what zoneout keeps of it.
template <typename Storage>
__device__ __forceinline__ void store_output(const OptionForwardArgs& args,
                                             const OptionForwardDirection& d, const RowOfStep& row,
                                             int64_t j, Accumulator<Storage> cell_output,
                                             const OptionValues<Accumulator<Storage>>& values) {
  const int64_t hidden = args.hidden_size, unit = row.n * hidden + j;
  if (d.cell_output != nullptr) return put<Storage>(d.cell_output, unit, cell_output);
  const int64_t output_unit = row.n * args.directions * hidden + j;
  Accumulator<Storage> h = cell_output;
  if (values.has_keep_h) {
    const auto h_prev = row.reset   ? element_or_zero<Storage>(d.options.reset_h, unit)
                        : row.first ? element<Storage>(d.h_0, unit)
                                    : element<Storage>(d.y_prev, output_unit);
    h = DeviceMath::multiply_add(values.keep_h, h_prev, (1 - values.keep_h) * h);
  }
  h = to_accumulator(to_storage<Storage>(h));
  put<Storage>(d.y, output_unit, h);
  if (row.last) put<Storage>(d.h_n, unit, h);
  store_entering<Storage>(args, d, row, j, h);
}

template <typename Storage>
__global__ void __launch_bounds__(kRowThreads)
    option_forward_kernel(const __grid_constant__ OptionForwardArgs args) {
  const int64_t n = grid_row(), j = grid_column<1>();
  const int64_t hidden = args.hidden_size;
  if (n >= args.batch || j >= hidden) return;
  const bool reverse = blockIdx.z == 1;
  const OptionForwardDirection d = reverse ? args.direction[1] : args.direction[0];
  const RowOfStep row(args, d.step, n, reverse);
  if (!row.active) return store_no_step<Storage>(args, d, row, j);

  // Complete the pre-activations.
  Accumulator<Storage> a[kGates];
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) {
    const int64_t column = gate * hidden + j;
    a[gate] = accumulator<Storage>(d.preactivations, n * kGates * hidden + column);
    if (d.b_ih != nullptr) {
      a[gate] += element<Storage>(d.b_ih, column) + element<Storage>(d.b_hh, column);
    }
  }

  const auto values = load_options<Storage>(args, d.options, row, j);
  const auto out = run_cell<Storage>(args, d, row, j, a, values);
  store_output<Storage>(args, d, row, j, out.cell_output, values);
}

// With projection, after the product that makes h; and ahead of the first step, without h, for what
// enters there.
template <typename Storage>
__global__ void __launch_bounds__(kRowThreads)
    option_output_kernel(const __grid_constant__ OptionForwardArgs args) {
  const int64_t n = grid_row(), p = grid_column<1>();
  if (n >= args.batch || p >= args.output_size) return;
  const bool reverse = blockIdx.z == 1;
  const OptionForwardDirection d = reverse ? args.direction[1] : args.direction[0];
  const RowOfStep row(args, d.step, n, reverse);
  const int64_t unit = n * args.output_size + p;
  Accumulator<Storage> h = 0;
  if (d.h != nullptr) {
    if (row.active) h = element<Storage>(d.h, unit);
    put<Storage>(d.y, n * args.directions * args.output_size + p, h);
    if (row.active && row.last) put<Storage>(d.h_n, unit, h);
    if (args.first_call && row.length == 0) {
      put<Storage>(d.h_n, unit, element<Storage>(d.h_0, unit));
    }
  }
  store_entering<Storage>(args, d, row, p, h);
}

}  // namespace lstm_fused::cuda
