// SPDX-License-Identifier: BSD-3-Clause
// The kernels of options_backward: backpropagation through time, from a row's last step to its
// first one. A later step's gradient goes back through its recurrent GEMM, `product`, and through
// the mask; what zoneout kept of h goes back as it is, `carry`. Where that step was reset, both go
// to the state that the reset put in.
#pragma once

#include "cuda/options/values.cuh"

namespace lstm_fused::cuda {

// One direction's arrays at its step; (N, …) rows each. `options` are whole arrays. What is null
// below is not wanted, or zero.
struct OptionBackwardDirection {
  int64_t step = 0;   // t
  int64_t later = 0;  // the step after t in this direction; outside [0, T) at the sequence's end
  CellOptionInputs options;
  // The gradient of h.
  const void* product = nullptr;  // (N, P) accumulator: the later step's, by W_hh
  void* carry = nullptr;          // (N, H) accumulator, in from the later step, and out
  void* grad_reset_h = nullptr;   // in/out (N, P) accumulator
  const void* grad_y = nullptr;   // in rows of L·P storage
  const void* grad_h_n = nullptr;
  void* grad_h_0 = nullptr;
  void* grad_output = nullptr;  // out (N, P) storage: the whole gradient of h, with projection
  const void* dh = nullptr;     // (N, H) accumulator: grad_output·W_hr, with projection
  // What the cell's backward reads and writes.
  const void* gates = nullptr;
  const void* cells = nullptr;
  const void* c_prev = nullptr;  // cells of the step before; not read by rows at their first step
  const void* c_0 = nullptr;
  const void* grad_c_n = nullptr;
  const void* grad_cell_states = nullptr;  // in rows of L·H storage
  void* dc = nullptr;                      // (N, H) accumulator, in from the later step, and out
  void* grad_gates = nullptr;              // out (N, 4H) storage
  void* grad_c_0 = nullptr;
  void* cell_output = nullptr;    // out (N, H) storage: what W_hr multiplied
  void* grad_peephole = nullptr;  // in/out (N, 3H) accumulator
  void* grad_reset_c = nullptr;   // in/out (N, H) accumulator
  // With norms; grad_gates are then of x·W_ih.
  SavedNorms norms;                // of the step, from the forward
  void* grad_recurrent = nullptr;  // out (N, 4H) storage: of h_prev·W_hh
  void* scratch = nullptr;         // (N, kNormScratch·H) accumulator
  void* grad_gains = nullptr;      // in/out (N, 2·4H) accumulator
  void* grad_cell_norm = nullptr;  // in/out (N, 2H) accumulator
  void* grad_bias = nullptr;       // in/out (N, 4H) accumulator
};

struct OptionBackwardArgs : OptionStepArgs {
  OptionBackwardDirection direction[kMaxDirections];
};

// Element p of what step `later` sends back to the h that entered it; zero where that was a
// reset's, whose gradient takes it.
template <typename Storage>
__device__ __forceinline__ Accumulator<Storage> returned_gradient(const OptionBackwardArgs& args,
                                                                  const OptionBackwardDirection& d,
                                                                  int64_t n, int64_t p) {
  const int64_t unit = n * args.output_size + p;
  auto dh = accumulator<Storage>(d.product, unit);
  if (d.options.h_mask != nullptr) dh *= element<Storage>(d.options.h_mask, unit);
  if (d.carry != nullptr) dh += accumulator<Storage>(d.carry, unit);
  if (!is_reset(args.reset_mask, d.later, n, args.batch)) return dh;
  if (d.grad_reset_h != nullptr) accumulator<Storage>(d.grad_reset_h, unit) += dh;
  return 0;
}

// Element p of the whole gradient of h, of an active row.
template <typename Storage>
__device__ __forceinline__ Accumulator<Storage> state_gradient(const OptionBackwardArgs& args,
                                                               const OptionBackwardDirection& d,
                                                               const RowOfStep& row, int64_t p) {
  auto dh = row.last ? element_or_zero<Storage>(d.grad_h_n, row.n * args.output_size + p)
                     : returned_gradient<Storage>(args, d, row.n, p);
  if (d.grad_y != nullptr) {
    dh += element<Storage>(d.grad_y, row.n * args.directions * args.output_size + p);
  }
  return dh;
}

// Stores grad_h_0 of a row that takes no part in this step: where its first step was the later one
// and, at the first call, where it has no step.
template <typename Storage>
__device__ __forceinline__ void store_grad_h_0(const OptionBackwardArgs& args,
                                               const OptionBackwardDirection& d,
                                               const RowOfStep& row, int64_t p) {
  const int64_t unit = row.n * args.output_size + p;
  if (row.length == 0) {
    if (args.first_call) put<Storage>(d.grad_h_0, unit, element_or_zero<Storage>(d.grad_h_n, unit));
  } else if (row.reverse && row.t == row.length && !args.first_call) {
    put<Storage>(d.grad_h_0, unit, returned_gradient<Storage>(args, d, row.n, p));
  }
}

// What a row that takes no part has for unit j.
template <typename Storage>
__device__ __forceinline__ void store_no_gradient(const OptionBackwardArgs& args,
                                                  const OptionBackwardDirection& d,
                                                  const RowOfStep& row, int64_t j) {
  const int64_t hidden = args.hidden_size, unit = row.n * hidden + j;
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) {
    put<Storage>(d.grad_gates, (row.n * kGates + gate) * hidden + j, 0);
    if (d.grad_recurrent != nullptr) {
      put<Storage>(d.grad_recurrent, (row.n * kGates + gate) * hidden + j, 0);
    }
  }
  if (d.cell_output != nullptr) put<Storage>(d.cell_output, unit, 0);
  if (d.dh == nullptr) store_grad_h_0<Storage>(args, d, row, j);
  if (row.length == 0 && args.first_call) {
    put<Storage>(d.grad_c_0, unit, element_or_zero<Storage>(d.grad_c_n, unit));
  }
}

template <typename Storage>
__device__ __forceinline__ Gates<Accumulator<Storage>> load_gates(const OptionBackwardArgs& args,
                                                                  const OptionBackwardDirection& d,
                                                                  int64_t n, int64_t j) {
  const int64_t hidden = args.hidden_size, first = n * kGates * hidden + j;
  return {element<Storage>(d.gates, first + kInputGate * hidden),
          element<Storage>(d.gates, first + kForgetGate * hidden),
          element<Storage>(d.gates, first + kCellGate * hidden),
          element<Storage>(d.gates, first + kOutputGate * hidden)};
}

// The cell's backward of unit j, but for the gates' gradients, which it gives. `dh`: the whole
// gradient of h.
template <typename Storage>
__device__ __forceinline__ Gates<Accumulator<Storage>> differentiate_cell(
    const OptionBackwardArgs& args, const OptionBackwardDirection& d, const RowOfStep& row,
    int64_t j, Accumulator<Storage> dh, const OptionValues<Accumulator<Storage>>& values,
    const OutputGradient<Accumulator<Storage>>& normed) {
  using A = Accumulator<Storage>;
  const int64_t hidden = args.hidden_size, unit = row.n * hidden + j;
  A dc = row.last ? element_or_zero<Storage>(d.grad_c_n, unit) : accumulator<Storage>(d.dc, unit);
  if (d.grad_cell_states != nullptr) {
    dc += element<Storage>(d.grad_cell_states, row.n * args.directions * hidden + j);
  }
  const A c_prev = entering_c<Storage>(d.options, row, unit, d.c_0, d.c_prev);
  const auto grad = option_cell_backward<DeviceMath>(load_gates<Storage>(args, d, row.n, j),
                                                     A{accumulator<Storage>(d.cells, unit)}, c_prev,
                                                     dh, dc, values, normed);

  // What goes to the step before, or to the state that a reset put in its place.
  if (row.reset && d.grad_reset_c != nullptr) {
    accumulator<Storage>(d.grad_reset_c, unit) += grad.c_prev;
  }
  const A dc_prev = row.reset ? A{0} : grad.c_prev;
  if (row.first) {
    put<Storage>(d.grad_c_0, unit, dc_prev);
  } else {
    accumulator<Storage>(d.dc, unit) = dc_prev;
  }
  if (d.carry != nullptr) accumulator<Storage>(d.carry, unit) = grad.h_kept;
  if (d.cell_output != nullptr && !values.has_norm) {
    put<Storage>(d.cell_output, unit, grad.cell_output);
  }
  if (d.grad_peephole != nullptr) {
    const int64_t first = row.n * kPeepholes * hidden + j;
    accumulator<Storage>(d.grad_peephole, first) += grad.w_ci;
    accumulator<Storage>(d.grad_peephole, first + hidden) += grad.w_cf;
    accumulator<Storage>(d.grad_peephole, first + 2 * hidden) += grad.w_co;
  }
  return grad.gates;
}

template <typename Storage>
__global__ void __launch_bounds__(kRowThreads)
    option_backward_kernel(const __grid_constant__ OptionBackwardArgs args) {
  const int64_t n = grid_row(), j = grid_column<1>();
  const int64_t hidden = args.hidden_size;
  if (n >= args.batch || j >= hidden) return;
  const bool reverse = blockIdx.z == 1;
  const OptionBackwardDirection d = reverse ? args.direction[1] : args.direction[0];
  const RowOfStep row(args, d.step, n, reverse);
  if (!row.active) return store_no_gradient<Storage>(args, d, row, j);

  const auto dh = d.dh != nullptr ? accumulator<Storage>(d.dh, n * hidden + j)
                                  : state_gradient<Storage>(args, d, row, j);
  const auto values = load_options<Storage>(args, d.options, row, j);
  const auto grad = differentiate_cell<Storage>(args, d, row, j, dh, values, {});
  const int64_t first = n * kGates * hidden + j;
  put<Storage>(d.grad_gates, first + kInputGate * hidden, grad.i);
  put<Storage>(d.grad_gates, first + kForgetGate * hidden, grad.f);
  put<Storage>(d.grad_gates, first + kCellGate * hidden, grad.g);
  put<Storage>(d.grad_gates, first + kOutputGate * hidden, grad.o);
}

// With projection, ahead of the product by W_hr: grad_output.
template <typename Storage>
__global__ void __launch_bounds__(kRowThreads)
    option_state_gradient_kernel(const __grid_constant__ OptionBackwardArgs args) {
  const int64_t n = grid_row(), p = grid_column<1>();
  if (n >= args.batch || p >= args.output_size) return;
  const bool reverse = blockIdx.z == 1;
  const OptionBackwardDirection d = reverse ? args.direction[1] : args.direction[0];
  const RowOfStep row(args, d.step, n, reverse);
  if (!row.active) store_grad_h_0<Storage>(args, d, row, p);
  put<Storage>(d.grad_output, n * args.output_size + p,
               row.active ? state_gradient<Storage>(args, d, row, p) : Accumulator<Storage>{0});
}

// After the last step, which now is `later`: grad_h_0 of the rows whose first step that is.
template <typename Storage>
__global__ void __launch_bounds__(kRowThreads)
    option_initial_gradient_kernel(const __grid_constant__ OptionBackwardArgs args) {
  const int64_t n = grid_row(), p = grid_column<1>();
  if (n >= args.batch || p >= args.output_size) return;
  const bool reverse = blockIdx.z == 1;
  const OptionBackwardDirection d = reverse ? args.direction[1] : args.direction[0];
  const RowOfStep row(args, d.later, n, reverse);
  if (!row.active || !row.first) return;
  put<Storage>(d.grad_h_0, n * args.output_size + p, returned_gradient<Storage>(args, d, n, p));
}

}  // namespace lstm_fused::cuda
