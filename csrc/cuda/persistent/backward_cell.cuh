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
  uint8_t
      reset[kCells];  // not 0: the step is reset. NOTE: a byte, not looked at where it is loaded
};

// A lane's cells. The rows' addresses are those of `first_row`, which all lanes share and the
// uniform registers hold, and 32-bit offsets of a lane.
template <int kCells, int kRowStep>
struct LaneCells {
  int first_row;       // of the batch
  int lane_row;        // of cell 0, counted from first_row; the others are kRowStep apart
  int length[kCells];  // steps in which the cell takes part; 0 where it does not exist
  int unit;

  __device__ __forceinline__ int row(int j) const { return lane_row + j * kRowStep; }
  __device__ __forceinline__ uint32_t offset(int j, int row_elements) const {
    return static_cast<uint32_t>(row(j) * row_elements + unit);
  }
};

// Loads the cell states after the step at time t, where the backward begins, to c_prev, from which
// load_step takes them.
template <typename Storage, int kCells, int kRowStep>
__device__ __forceinline__ void load_last_cells(BackwardStep<Storage, kCells>& step,
                                                const PersistentBackwardArgs& args,
                                                const BackwardRecurrence& d,
                                                const LaneCells<kCells, kRowStep>& lane_cells,
                                                int t) {
  const int hidden = args.hidden_size;
  const float* cells = static_cast<const float*>(d.cells) +
                       (int64_t{t} * args.batch + lane_cells.first_row) * hidden;
#pragma unroll
  for (int j = 0; j < kCells; ++j) {
    if (t < lane_cells.length[j]) step.c_prev[j] = cells[lane_cells.offset(j, hidden)];
  }
}

// Loads the step at time t into `step`, which held the one that the backward takes before it.
template <typename Storage, int kCells, int kRowStep>
__device__ __forceinline__ void load_step(BackwardStep<Storage, kCells>& step,
                                          const PersistentBackwardArgs& args,
                                          const BackwardRecurrence& d,
                                          const LaneCells<kCells, kRowStep>& lane_cells,
                                          bool reverse, int t) {
  const int hidden = args.hidden_size;
  const int previous = reverse ? t + 1 : t - 1;
  const int64_t first = int64_t{t} * args.batch + lane_cells.first_row;
  const int64_t first_of_previous = int64_t{previous} * args.batch + lane_cells.first_row;
  const Storage zero = to_storage<Storage>(0.0f);
#pragma unroll
  for (int j = 0; j < kCells; ++j) {
    const bool active = t < lane_cells.length[j];
    step.reset[j] = 0;
    step.c[j] = step.c_prev[j];
    if (previous >= 0 && previous < lane_cells.length[j]) {
      step.c_prev[j] = (static_cast<const float*>(d.cells) +
                        first_of_previous * hidden)[lane_cells.offset(j, hidden)];
    } else if (active) {
      step.c_prev[j] =
          to_accumulator((static_cast<const Storage*>(d.c_0) +
                          int64_t{lane_cells.first_row} * hidden)[lane_cells.offset(j, hidden)]);
    }
    if (!active) continue;

    const Storage* gates = static_cast<const Storage*>(d.gates) + first * kGates * hidden;
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      step.gates[gate][j] = (gates + gate * hidden)[lane_cells.offset(j, kGates * hidden)];
    }
    const int columns = args.directions * hidden;
    const uint32_t column = lane_cells.offset(j, columns);
    step.grad_y[j] = d.grad_y != nullptr
                         ? (static_cast<const Storage*>(d.grad_y) + first * columns)[column]
                         : zero;
    step.grad_cell[j] =
        d.grad_cell_states != nullptr
            ? (static_cast<const Storage*>(d.grad_cell_states) + first * columns)[column]
            : zero;
    if (args.reset_mask != nullptr) step.reset[j] = (args.reset_mask + first)[lane_cells.row(j)];
  }
}

// Writes the gradients of the gates of cell j at time t.
template <typename Storage, int kCells, int kRowStep>
__device__ __forceinline__ void store_gradients(const Storage (&grad)[kGates],
                                                const PersistentBackwardArgs& args,
                                                const BackwardRecurrence& d,
                                                const LaneCells<kCells, kRowStep>& lane_cells,
                                                int j, int t) {
  const int hidden = args.hidden_size;
  if (lane_cells.unit >= hidden || lane_cells.first_row + lane_cells.row(j) >= args.batch) return;
  Storage* first = static_cast<Storage*>(d.grad_gates) +
                   (int64_t{t} * args.batch + lane_cells.first_row) * kGates * hidden;
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) {
    (first + gate * hidden)[lane_cells.offset(j, kGates * hidden)] = grad[gate];
  }
}

// Differentiates cell j: writes the gradients of its gates to `grad`, zero where its row takes no
// part, and turns dc, the gradient of c after the step, into that of c before it. dh, dc: what
// comes from later steps. NOTE: all cells are computed and then chosen from: a branch costs more.
template <typename Storage, int kCells>
__device__ __forceinline__ void backward_cell(Storage (&grad)[kGates],
                                              const BackwardStep<Storage, kCells>& step, int j,
                                              bool active, float dh, float& dc) {
  const Gates<float> gates = {
      to_accumulator(step.gates[kInputGate][j]), to_accumulator(step.gates[kForgetGate][j]),
      to_accumulator(step.gates[kCellGate][j]), to_accumulator(step.gates[kOutputGate][j])};
  const CellGradient<float> gradient = lstm_cell_backward<DeviceMath>(
      gates, step.c[j], step.reset[j] != 0 ? 0.0f : step.c_prev[j],
      dh + to_accumulator(step.grad_y[j]), dc + to_accumulator(step.grad_cell[j]));
  const Storage zero = to_storage<Storage>(0.0f);
  grad[kInputGate] = active ? to_storage<Storage>(gradient.gates.i) : zero;
  grad[kForgetGate] = active ? to_storage<Storage>(gradient.gates.f) : zero;
  grad[kCellGate] = active ? to_storage<Storage>(gradient.gates.g) : zero;
  grad[kOutputGate] = active ? to_storage<Storage>(gradient.gates.o) : zero;
  if (active) dc = step.reset[j] != 0 ? 0.0f : gradient.c_prev;
}

}  // namespace lstm_fused::cuda
