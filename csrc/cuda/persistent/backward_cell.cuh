// SPDX-License-Identifier: BSD-3-Clause
// Parts of both persistent backward kernels: a lane's weights, and the gradient of its cells.
//
// In a tile of gradients of the gates, the gates of a unit lie together: K = 4·unit + gate.
#pragma once

#include <cstdint>

#include "common/lstm_cell.h"
#include "cuda/device/math.cuh"
#include "cuda/persistent/launch.h"
#include "cuda/persistent/tile.cuh"

namespace lstm_fused::cuda {

// A lane's weights of a chunk, for the outputs `output` and `output` + 8, that is, columns of W_hh;
// zero outside of it. `column`: W_hh from the row of gate 0 of `unit`, the lane's first in the
// chunk, and from column `output` on.
template <typename Product>
__device__ __forceinline__ void load_weight_columns(uint4 (&weights)[2],
                                                    const typename Product::Storage* column,
                                                    int unit, int output, int hidden_size) {
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    LaneOperands<typename Product::Operand> lane;
    lane.bits = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < kLaneOperands<typename Product::Operand>; ++i) {
      const int offset = (i % kGates * hidden_size + i / kGates) * hidden_size + m * kWarpUnits;
      if (unit + i / kGates < hidden_size && output + m * kWarpUnits < hidden_size) {
        lane.element[i] = Product::operand(column[offset]);
      }
    }
    weights[m] = lane.bits;
  }
}

// What backward_cell reads for one step of a lane's cells, where their rows take part in it.
template <typename Storage, int kCells>
struct BackwardStep {
  Storage gates[kGates][kCells];
  Storage grad_y[kCells];
  Storage grad_cell[kCells];
  float c[kCells];  // after the step
  // The cell state before the step. For a row that takes no part in this step but in the step
  // before it: the cell state after that one.
  float c_prev[kCells];
  bool reset[kCells];
};

// Loads the cell states after the step at time t, where the backward begins, to c_prev, from which
// load_step takes them.
template <typename Storage, int kCells, typename RowOf>
__device__ __forceinline__ void load_last_cells(BackwardStep<Storage, kCells>& step,
                                                const PersistentBackwardArgs& args,
                                                const BackwardRecurrence& d, const RowOf& row_of,
                                                const int (&length)[kCells], int unit, int t) {
#pragma unroll
  for (int j = 0; j < kCells; ++j) {
    if (unit >= args.hidden_size || t >= length[j]) continue;
    const int64_t row = int64_t{t} * args.batch + row_of(j);
    step.c_prev[j] = static_cast<const float*>(d.cells)[row * args.hidden_size + unit];
  }
}

// Loads the step at time t into `step`, which held the one that the backward takes before it.
// row_of(j): the row of the batch of cell j; length: steps in which these rows take part, 0 where
// they do not exist.
template <typename Storage, int kCells, typename RowOf>
__device__ __forceinline__ void load_step(BackwardStep<Storage, kCells>& step,
                                          const PersistentBackwardArgs& args,
                                          const BackwardRecurrence& d, const RowOf& row_of,
                                          const int (&length)[kCells], int unit, bool reverse,
                                          int t) {
  const int hidden = args.hidden_size;
#pragma unroll
  for (int j = 0; j < kCells; ++j) {
    step.reset[j] = false;
    step.c[j] = step.c_prev[j];
    if (unit >= hidden) continue;
    const int64_t row = int64_t{t} * args.batch + row_of(j);
    const int previous = reverse ? t + 1 : t - 1;
    if (previous >= 0 && previous < length[j]) {
      const int64_t previous_row = reverse ? row + args.batch : row - args.batch;
      step.c_prev[j] = static_cast<const float*>(d.cells)[previous_row * hidden + unit];
    } else if (t < length[j]) {
      const int64_t cell = int64_t{row_of(j)} * hidden + unit;
      step.c_prev[j] = to_accumulator(static_cast<const Storage*>(d.c_0)[cell]);
    }
    if (t >= length[j]) continue;

    const Storage* gates = static_cast<const Storage*>(d.gates) + row * kGates * hidden + unit;
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) step.gates[gate][j] = gates[gate * hidden];
    const int64_t column = row * args.directions * hidden + unit;
    const Storage zero = to_storage<Storage>(0.0f);
    step.grad_y[j] = d.grad_y != nullptr ? static_cast<const Storage*>(d.grad_y)[column] : zero;
    step.grad_cell[j] = d.grad_cell_states != nullptr
                            ? static_cast<const Storage*>(d.grad_cell_states)[column]
                            : zero;
    if (args.reset_mask != nullptr) step.reset[j] = args.reset_mask[row] != 0;
  }
}

// Differentiates cell j: writes the gradients of its gates to `grad`, and turns dc, the gradient of
// c after the step, into that of c before it. dh, dc: what comes from later steps.
template <typename Storage, int kCells>
__device__ __forceinline__ void backward_cell(Storage (&grad)[kGates],
                                              const BackwardStep<Storage, kCells>& step, int j,
                                              float dh, float& dc) {
  const Gates<float> gates = {
      to_accumulator(step.gates[kInputGate][j]), to_accumulator(step.gates[kForgetGate][j]),
      to_accumulator(step.gates[kCellGate][j]), to_accumulator(step.gates[kOutputGate][j])};
  const CellGradient<float> gradient = lstm_cell_backward<DeviceMath>(
      gates, step.c[j], step.reset[j] ? 0.0f : step.c_prev[j], dh + to_accumulator(step.grad_y[j]),
      dc + to_accumulator(step.grad_cell[j]));
  grad[kInputGate] = to_storage<Storage>(gradient.gates.i);
  grad[kForgetGate] = to_storage<Storage>(gradient.gates.f);
  grad[kCellGate] = to_storage<Storage>(gradient.gates.g);
  grad[kOutputGate] = to_storage<Storage>(gradient.gates.o);
  dc = step.reset[j] ? 0.0f : gradient.c_prev;
}

}  // namespace lstm_fused::cuda
