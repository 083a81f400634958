// SPDX-License-Identifier: BSD-3-Clause
// The kernels of stepwise_backward: backpropagation through time, from a row's last step to its
// first one. The cell output o·tanh(c) is h without projection.
#pragma once

#include "cuda/device/math.cuh"
#include "cuda/device/row_grid.cuh"
#include "cuda/device/storage.cuh"
#include "cuda/recurrence.h"

namespace lstm_fused::cuda {

// One direction's arrays at its step; (N, …) rows each.
struct BackwardStepDirection {
  int64_t step = 0;   // t
  int64_t later = 0;  // the step after t in this direction; outside [0, T) at the sequence's end
  const void* gates = nullptr;
  const void* cells = nullptr;
  const void* c_prev = nullptr;  // cells of the step before; not read by rows at their first step
  const void* c_0 = nullptr;
  // grad_y and grad_h_n (N, H) storage; with projection their products with W_hr. Null: zero
  const void* grad_cell_output = nullptr;
  const void* grad_last_cell_output = nullptr;
  const void* grad_c_n = nullptr;
  const void* grad_cell_states = nullptr;
  // (N, H) accumulator: the gradient of the cell output by the later step's recurrent GEMM
  const void* recurrent = nullptr;
  void* dc = nullptr;  // (N, H) accumulator, in from the later step, and out
  void* grad_gates = nullptr;
  void* grad_h_0 = nullptr;  // null with projection
  void* grad_c_0 = nullptr;
};

struct BackwardStepArgs {
  int64_t steps = 0, batch = 0, hidden_size = 0;
  int64_t cell_output_stride = 0;  // between rows of `grad_cell_output` and `grad_cell_states`
  bool first_call = false;         // no step of this sequence has run yet: there is no `recurrent`
  const int64_t* lengths = nullptr;
  const uint8_t* reset_mask = nullptr;
  BackwardStepDirection direction[kMaxDirections];
};

// A row's place in its own sequence.
struct StepOfRow {
  int64_t n, length;
  bool reverse;
  bool active, first, last;

  __device__ __forceinline__ StepOfRow(const BackwardStepArgs& args, const BackwardStepDirection& d,
                                       int64_t n, bool reverse)
      : n(n), length(row_length(args.lengths, n, args.steps)), reverse(reverse) {
    active = d.step < length;
    first = d.step == (reverse ? length - 1 : 0);
    last = d.step == (reverse ? 0 : length - 1);
  }
};

// Elements [j, j + kWidth) of the whole gradient of the cell output.
template <typename Storage, int kWidth>
__device__ __forceinline__ Values<Storage, kWidth> cell_output_gradient(
    const BackwardStepArgs& args, const BackwardStepDirection& d, const StepOfRow& row, int64_t j) {
  const int64_t unit = row.n * args.hidden_size + j;
  Values<Storage, kWidth> dh;
  if (row.last) {
    if (d.grad_last_cell_output != nullptr)
      dh = load<Storage, kWidth>(d.grad_last_cell_output, unit);
  } else if (!is_reset(args.reset_mask, d.later, row.n, args.batch)) {
    dh = load_accumulators<Storage, kWidth>(d.recurrent, unit);
  }
  if (d.grad_cell_output != nullptr) {
    const auto dy = load<Storage, kWidth>(d.grad_cell_output, row.n * args.cell_output_stride + j);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) dh[i] += dy[i];
  }
  return dh;
}

// Without projection: stores grad_h_0 of the rows whose first step was the later one, to which
// `recurrent` belongs, and, at the first call, of rows without any step.
template <typename Storage, int kWidth>
__device__ __forceinline__ void store_grad_h_0(const BackwardStepArgs& args,
                                               const BackwardStepDirection& d, const StepOfRow& row,
                                               int64_t j) {
  const bool was_first = row.reverse && d.step == row.length && !args.first_call;
  const bool without_steps = row.length == 0 && args.first_call;
  if (!was_first && !without_steps) return;
  const int64_t unit = row.n * args.hidden_size + j;
  Values<Storage, kWidth> grad;
  if (without_steps) {
    if (d.grad_last_cell_output != nullptr)
      grad = load<Storage, kWidth>(d.grad_last_cell_output, unit);
  } else if (!is_reset(args.reset_mask, d.later, row.n, args.batch)) {
    grad = load_accumulators<Storage, kWidth>(d.recurrent, unit);
  }
  store<Storage>(d.grad_h_0, unit, grad);
}

// Backward of the cell: gradients of the gates and of c_prev.
template <typename Storage, int kWidth>
__global__ void __launch_bounds__(kRowThreads)
    backward_step_kernel(const __grid_constant__ BackwardStepArgs args) {
  const int64_t n = grid_row(), j = grid_column<kWidth>();
  const int64_t hidden = args.hidden_size;
  if (n >= args.batch || j >= hidden) return;
  const bool reverse = blockIdx.z == 1;
  const BackwardStepDirection d = reverse ? args.direction[1] : args.direction[0];
  const StepOfRow row(args, d, n, reverse);
  const int64_t unit = n * hidden + j;
  const int64_t gate_unit = n * kGates * hidden + j;

  // A row that takes no part has no gradient; the gradients of the final states of one without any
  // step are those of its initial ones.
  if (!row.active) {
    const Values<Storage, kWidth> zero;
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      store<Storage>(d.grad_gates, gate_unit + gate * hidden, zero);
    }
    if (d.grad_h_0 != nullptr) store_grad_h_0<Storage, kWidth>(args, d, row, j);
    if (row.length == 0 && args.first_call) {
      store<Storage>(d.grad_c_0, unit,
                     d.grad_c_n == nullptr ? zero : load<Storage, kWidth>(d.grad_c_n, unit));
    }
    return;
  }

  // Gather the gradients of h and of c.
  const auto dh = cell_output_gradient<Storage, kWidth>(args, d, row, j);
  Values<Storage, kWidth> dc;
  if (!row.last) {
    dc = load_accumulators<Storage, kWidth>(d.dc, unit);
  } else if (d.grad_c_n != nullptr) {
    dc = load<Storage, kWidth>(d.grad_c_n, unit);
  }
  if (d.grad_cell_states != nullptr) {
    const auto more = load<Storage, kWidth>(d.grad_cell_states, n * args.cell_output_stride + j);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) dc[i] += more[i];
  }

  // Differentiate the cell.
  const bool reset = is_reset(args.reset_mask, d.step, n, args.batch);
  Values<Storage, kWidth> g[kGates], c_prev;
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) {
    g[gate] = load<Storage, kWidth>(d.gates, gate_unit + gate * hidden);
  }
  const auto c = load_accumulators<Storage, kWidth>(d.cells, unit);
  if (!reset) {
    c_prev = row.first ? load<Storage, kWidth>(d.c_0, unit)
                       : load_accumulators<Storage, kWidth>(d.c_prev, unit);
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const Gates<Accumulator<Storage>> gates = {g[kInputGate][i], g[kForgetGate][i], g[kCellGate][i],
                                               g[kOutputGate][i]};
    const auto grad = lstm_cell_backward<DeviceMath>(gates, c[i], c_prev[i], dh[i], dc[i]);
    g[kInputGate][i] = grad.gates.i;
    g[kForgetGate][i] = grad.gates.f;
    g[kCellGate][i] = grad.gates.g;
    g[kOutputGate][i] = grad.gates.o;
    dc[i] = reset ? 0 : grad.c_prev;
  }

  // Store the gradients of the gates, and of c for the step before.
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) {
    store<Storage>(d.grad_gates, gate_unit + gate * hidden, g[gate]);
  }
  if (row.first) {
    store<Storage>(d.grad_c_0, unit, dc);
  } else {
    store_accumulators<Storage>(d.dc, unit, dc);
  }
}

// Without projection, after the last step, which now is `later`: stores grad_h_0 of the rows whose
// first step that is.
template <typename Storage, int kWidth>
__global__ void __launch_bounds__(kRowThreads)
    initial_gradient_kernel(const __grid_constant__ BackwardStepArgs args) {
  const int64_t n = grid_row(), j = grid_column<kWidth>();
  if (n >= args.batch || j >= args.hidden_size) return;
  const bool reverse = blockIdx.z == 1;
  const BackwardStepDirection d = reverse ? args.direction[1] : args.direction[0];
  const int64_t length = row_length(args.lengths, n, args.steps);
  if (length == 0 || d.later != (reverse ? length - 1 : 0)) return;
  const int64_t unit = n * args.hidden_size + j;
  Values<Storage, kWidth> grad;
  if (!is_reset(args.reset_mask, d.later, n, args.batch)) {
    grad = load_accumulators<Storage, kWidth>(d.recurrent, unit);
  }
  store<Storage>(d.grad_h_0, unit, grad);
}

}  // namespace lstm_fused::cuda
