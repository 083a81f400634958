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
  float c[kCells];  // after the step
  // The cell state before the step. For a row that takes no part in this step but in the step
  // before it: the cell state after that one.
  float c_prev[kCells];
  // Whether the step is reset. NOTE: few cells have a word each, which is not looked at where it is
  // loaded. Many share one, a bit each, for they lack registers; and a group waits there anyway.
  static constexpr bool kIsPacked = kCells > kLaneRows;
  uint32_t reset[kIsPacked ? 1 : kCells];

  __device__ __forceinline__ bool is_reset(int j) const {
    return kIsPacked ? (reset[0] >> j & 1) != 0 : reset[j] != 0;
  }
};

// A lane's cells and their arrays, by pointers that run along with the steps; cells are kRowStep
// rows apart. NOTE: running pointers, and accesses that a condition switches off without a branch:
// ptx.cuh says why.
template <typename Storage, int kCells, int kRowStep>
class LaneCells {
 public:
  int length[kCells];  // steps in which a cell takes part; 0 where it does not exist

  // The cells of `unit` and of rows from `row` of the batch on, of which the warp has as many as
  // `cells`, existing or not.
  __device__ __forceinline__ LaneCells(const PersistentBackwardArgs& args,
                                       const BackwardRecurrence& d, bool reverse, int row, int unit,
                                       int cells)
      : args_(args), d_(d), next_(reverse ? 1 : -1), row_(row), unit_(unit), cells_(cells) {}

  // Whether cell j takes part in the step at time t, which may be one out of range.
  __device__ __forceinline__ bool is_active(int j, int t) const {
    return static_cast<unsigned>(t) < static_cast<unsigned>(length[j]);
  }
  __device__ __forceinline__ bool exists(int j) const {
    return unit_ < args_.hidden_size && row_ + j * kRowStep < args_.batch;
  }

  // To be called once, when the lengths are known: the backward begins with the step at time t.
  __device__ __forceinline__ void begin(BackwardStep<Storage, kCells>& step, int t) {
    const int hidden = args_.hidden_size;
    const int64_t row = int64_t{t} * args_.batch + row_;
    gates_ = static_cast<const Storage*>(d_.gates) + row * kGates * hidden + unit_;
    cells_before_ = static_cast<const float*>(d_.cells) + (row + step_rows()) * hidden + unit_;
    grad_y_ = static_cast<const Storage*>(d_.grad_y) + row * args_.directions * hidden + unit_;
    grad_gates_ = static_cast<Storage*>(d_.grad_gates) + row * kGates * hidden + unit_;
#pragma unroll
    for (int j = 0; j < kCells; ++j) {
      // The cell state after the step, from where `load` takes it.
      if (j < cells_ && is_active(j, t)) {
        step.c_prev[j] = (cells_before_ - step_rows() * hidden)[j * kRowStep * hidden];
      }
    }
  }

  // Loads the step at time t into `step`, which held the one that the backward takes before it.
  __device__ __forceinline__ void load(BackwardStep<Storage, kCells>& step, int t) {
    const int hidden = args_.hidden_size, columns = args_.directions * hidden;
    bool any_first = false;  // a row's first step
#pragma unroll
    for (int j = 0; j < kCells; ++j) {
      const bool active = is_active(j, t);
      step.c[j] = step.c_prev[j];
      load_if(is_active(j, t + next_), step.c_prev[j], cells_before_ + j * kRowStep * hidden);
      any_first = any_first || (active && !is_active(j, t + next_));
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        load_if(active, step.gates[gate][j], gates_ + (j * kRowStep * kGates + gate) * hidden);
      }
      load_if(active && d_.grad_y != nullptr, step.grad_y[j], grad_y_ + j * kRowStep * columns);
    }
    gates_ += step_rows() * kGates * hidden;
    cells_before_ += step_rows() * hidden;
    grad_y_ += step_rows() * columns;
    if (any_first) {
#pragma unroll
      for (int j = 0; j < kCells; ++j) {
        if (j >= cells_ || !is_active(j, t) || is_active(j, t + next_)) continue;
        const int64_t cell = int64_t{row_ + j * kRowStep} * hidden + unit_;
        step.c_prev[j] = to_accumulator(static_cast<const Storage*>(d_.c_0)[cell]);
      }
    }
    if (args_.reset_mask == nullptr) return;
    uint32_t packed = 0;
#pragma unroll
    for (int j = 0; j < kCells; ++j) {
      if (!is_active(j, t)) continue;
      const uint32_t byte = args_.reset_mask[int64_t{t} * args_.batch + row_ + j * kRowStep];
      if constexpr (BackwardStep<Storage, kCells>::kIsPacked) {
        packed |= (byte != 0 ? 1u : 0u) << j;
      } else {
        step.reset[j] = byte;
      }
    }
    if constexpr (BackwardStep<Storage, kCells>::kIsPacked) step.reset[0] = packed;
  }

  // Adds what the cell states' gradients outside of the recurrence are at time t. NOTE: loaded
  // where they are used, since few calls have them: registers for them would cost all calls.
  __device__ __forceinline__ void add_cell_gradients(float (&dc)[kCells], int t) const {
    if (d_.grad_cell_states == nullptr) return;
    const int columns = args_.directions * args_.hidden_size;
#pragma unroll
    for (int j = 0; j < kCells; ++j) {
      if (j >= cells_ || !is_active(j, t)) continue;
      const int64_t row = int64_t{t} * args_.batch + row_ + j * kRowStep;
      dc[j] +=
          to_accumulator(static_cast<const Storage*>(d_.grad_cell_states)[row * columns + unit_]);
    }
  }

  // Writes the gradients of the gates of cell j in the step at hand.
  __device__ __forceinline__ void store(int j, const Storage (&grad)[kGates]) const {
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      store_if(exists(j), grad_gates_ + (j * kRowStep * kGates + gate) * args_.hidden_size,
               grad[gate]);
    }
  }
  // Goes on to the next step, after `store` of all cells.
  __device__ __forceinline__ void go_on() {
    grad_gates_ += step_rows() * kGates * args_.hidden_size;
  }

 private:
  __device__ __forceinline__ int64_t step_rows() const { return int64_t{next_} * args_.batch; }

  const PersistentBackwardArgs& args_;
  const BackwardRecurrence& d_;
  const int next_;  // steps of time that the backward goes on by
  const int row_, unit_, cells_;
  const Storage* gates_;
  const float* cells_before_;
  const Storage* grad_y_;
  Storage* grad_gates_;
};

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
  const CellGradient<float> gradient =
      lstm_cell_backward<DeviceMath>(gates, step.c[j], step.is_reset(j) ? 0.0f : step.c_prev[j],
                                     dh + to_accumulator(step.grad_y[j]), dc);
  const Storage zero = to_storage<Storage>(0.0f);
  grad[kInputGate] = active ? to_storage<Storage>(gradient.gates.i) : zero;
  grad[kForgetGate] = active ? to_storage<Storage>(gradient.gates.f) : zero;
  grad[kCellGate] = active ? to_storage<Storage>(gradient.gates.g) : zero;
  grad[kOutputGate] = active ? to_storage<Storage>(gradient.gates.o) : zero;
  if (active) dc = step.is_reset(j) ? 0.0f : gradient.c_prev;
}

}  // namespace lstm_fused::cuda
