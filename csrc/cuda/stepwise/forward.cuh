// SPDX-License-Identifier: BSD-3-Clause
// The kernel of stepwise_forward: the epilogue of a step's recurrent GEMM. The cell output
// o·tanh(c) is h without projection.
#pragma once

#include "cuda/device/math.cuh"
#include "cuda/device/row_grid.cuh"
#include "cuda/device/storage.cuh"
#include "cuda/recurrence.h"

namespace lstm_fused::cuda {

// One direction's arrays at its step; (N, …) rows each.
struct ForwardStepDirection {
  int64_t step = 0;  // t
  int64_t next = 0;  // the step after t in this direction; outside [0, T) at the sequence's end
  const void* preactivations = nullptr;  // the sums of the input GEMM and the recurrent GEMM
  const void* bias = nullptr;
  const void* first_recurrent = nullptr;  // (N, 4H) accumulator: h_0·W_hhᵀ
  const void* h_0 = nullptr;              // null with projection
  const void* c_0 = nullptr;
  const void* c_prev = nullptr;  // (N, H) accumulator; not read by rows at their first step
  void* c = nullptr;             // (N, H) accumulator; may be c_prev
  void* cell_output = nullptr;   // out, in rows of `cell_output_stride` storage
  // out (N, H) storage: cell_output for the next step's recurrent GEMM, zero where that step is
  // reset; null at the last step
  void* prev_cell_output = nullptr;
  void* h_n = nullptr;  // null with projection
  void* c_n = nullptr;
  void* cell_states = nullptr;
  void* gates = nullptr;
};

struct ForwardStepArgs {
  int64_t steps = 0, batch = 0, hidden_size = 0;
  int64_t cell_output_stride = 0;  // between rows of `cell_output` and `cell_states`
  bool first_step = false;
  const int64_t* lengths = nullptr;
  const uint8_t* reset_mask = nullptr;
  ForwardStepDirection direction[kMaxDirections];
};

// Blocks that an SM must have registers for; 0: as many as ptxas thinks best. NOTE: from sm_120 on
// it thinks ten best, and spills vectors of 16-bit types for them.
template <typename Storage, int kWidth>
__host__ __device__ constexpr int forward_step_min_blocks() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
  return sizeof(Storage) == 2 && kWidth > 1 ? 9 : 0;
#else
  return 0;
#endif
}

// NOTE: `gates` may be `preactivations`: each thread reads its own elements before it writes them.
template <typename Storage, int kWidth>
__global__ void __launch_bounds__(kRowThreads, (forward_step_min_blocks<Storage, kWidth>()))
    forward_step_kernel(const __grid_constant__ ForwardStepArgs args) {
  const int64_t n = grid_row(), j = grid_column<kWidth>();
  const int64_t hidden = args.hidden_size;
  if (n >= args.batch || j >= hidden) return;
  const bool reverse = blockIdx.z == 1;
  const ForwardStepDirection d = reverse ? args.direction[1] : args.direction[0];
  const int64_t length = row_length(args.lengths, n, args.steps);
  const int64_t unit = n * hidden + j;
  const int64_t gate_unit = n * kGates * hidden + j;
  const int64_t output_unit = n * args.cell_output_stride + j;

  // A row that takes no part has zero outputs; the final states of one without any step are its
  // initial ones.
  if (d.step >= length) {
    const Values<Storage, kWidth> zero;
    store<Storage>(d.cell_output, output_unit, zero);
    if (d.prev_cell_output != nullptr) store<Storage>(d.prev_cell_output, unit, zero);
    if (d.cell_states != nullptr) store<Storage>(d.cell_states, output_unit, zero);
    if (args.first_step && length == 0) {
      store<Storage>(d.c_n, unit, load<Storage, kWidth>(d.c_0, unit));
      if (d.h_n != nullptr) store<Storage>(d.h_n, unit, load<Storage, kWidth>(d.h_0, unit));
    }
    return;
  }
  const bool first = d.step == (reverse ? length - 1 : 0);
  const bool last = d.step == (reverse ? 0 : length - 1);
  const bool reset = is_reset(args.reset_mask, d.step, n, args.batch);

  // Complete the pre-activations, which hold the sums of both GEMMs: add the bias and, at a row's
  // first step, h_0·W_hhᵀ.
  Values<Storage, kWidth> a[kGates];
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) {
    a[gate] = load_accumulators<Storage, kWidth>(d.preactivations, gate_unit + gate * hidden);
    if (d.bias != nullptr) {
      const auto bias = load_accumulators<Storage, kWidth>(d.bias, gate * hidden + j);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) a[gate][i] += bias[i];
    }
    if (first && !reset) {
      const auto h =
          load_accumulators<Storage, kWidth>(d.first_recurrent, gate_unit + gate * hidden);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) a[gate][i] += h[i];
    }
  }
  Values<Storage, kWidth> c;
  if (!reset) {
    c = first ? load<Storage, kWidth>(d.c_0, unit)
              : load_accumulators<Storage, kWidth>(d.c_prev, unit);
  }

  // Apply the cell.
  Values<Storage, kWidth> h;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const auto gates = activate_gates<DeviceMath>(a[kInputGate][i], a[kForgetGate][i],
                                                  a[kCellGate][i], a[kOutputGate][i]);
    const auto out = lstm_cell_forward<DeviceMath>(gates, c[i]);
    a[kInputGate][i] = gates.i;
    a[kForgetGate][i] = gates.f;
    a[kCellGate][i] = gates.g;
    a[kOutputGate][i] = gates.o;
    c[i] = out.c;
    h[i] = out.h;
  }

  // Store what the next step, the caller and the backward need.
  store_accumulators<Storage>(d.c, unit, c);
  store<Storage>(d.cell_output, output_unit, h);
  if (d.prev_cell_output != nullptr) {
    const bool reset_next = is_reset(args.reset_mask, d.next, n, args.batch);
    Values<Storage, kWidth> next;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) next[i] = reset_next ? 0 : h[i];
    store<Storage>(d.prev_cell_output, unit, next);
  }
  if (d.cell_states != nullptr) store<Storage>(d.cell_states, output_unit, c);
  if (d.gates != nullptr) {
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      store<Storage>(d.gates, gate_unit + gate * hidden, a[gate]);
    }
  }
  if (last) {
    store<Storage>(d.c_n, unit, c);
    if (d.h_n != nullptr) store<Storage>(d.h_n, unit, h);
  }
}

}  // namespace lstm_fused::cuda
