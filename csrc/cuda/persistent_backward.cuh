// SPDX-License-Identifier: BSD-3-Clause
// The whole backward recurrence in one launch, one block for each tile of eight rows and direction.
//
// Each step turns the gradients of h and c into those of the gates, then multiplies these by W_hhᵀ
// for the gradient of the h that entered the step. A warp keeps its eight units' cells, two in each
// lane as in the forward, but the product gives sixteen lines of h at once: so two neighbouring
// warps share sixteen units and halve K, the gates, and swap eight lines of sums.
//
// NOTE: one warp for sixteen lines and all of K would spare the swap and its barrier, but needs
// twice the registers of weights (192 of 32-bit weights at H = 96).
//
// In the tile the gates of a unit lie together: K = 4·unit + gate.
#pragma once

#include <cstdint>

#include "common/lstm_cell.h"
#include "cuda/math.cuh"
#include "cuda/persistent_launch.h"
#include "cuda/persistent_tile.cuh"
#include "cuda/ptx.cuh"

namespace lstm_fused::cuda {

// A lane's weights of a chunk, of the outputs `output` and 8 more; zero outside of W_hh. `column`:
// W_hh from the row of gate 0 of `unit`, the lane's first in the chunk, and from `output` on.
template <typename Product>
__device__ __forceinline__ void load_weight_columns(uint4 (&weights)[2],
                                                    const typename Product::Storage* column,
                                                    int unit, int output, int hidden_size) {
#pragma unroll
  for (int line = 0; line < 2; ++line) {
    LaneOperands<typename Product::Operand> lane;
    lane.bits = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < kLaneOperands<typename Product::Operand>; ++i) {
      const int offset = (i % kGates * hidden_size + i / kGates) * hidden_size + line * kWarpUnits;
      if (unit + i / kGates < hidden_size && output + line * kWarpUnits < hidden_size) {
        lane.element[i] = Product::operand(column[offset]);
      }
    }
    weights[line] = lane.bits;
  }
}

// What one step of a lane's two cells reads, where the row takes part in it.
template <typename Storage>
struct BackwardStep {
  Storage gates[kGates][kLaneRows];
  Storage grad_y[kLaneRows];
  Storage grad_cell[kLaneRows];
  float c[kLaneRows];       // after the step
  float c_prev[kLaneRows];  // before it; of a row that takes part in the next one only, likewise
  bool reset[kLaneRows];
};

// Loads step t, after that which the backward undoes before it.
template <bool kReverse, typename Storage>
__device__ __forceinline__ void load_step(BackwardStep<Storage>& step,
                                          const PersistentBackwardArgs& args,
                                          const BackwardRecurrence& d, const LaneRows& rows,
                                          int unit, int t) {
  const int hidden = args.hidden_size;
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    step.reset[j] = false;
    step.c[j] = step.c_prev[j];
    if (unit >= hidden) continue;
    const int64_t row = int64_t{t} * args.batch + rows.first + j;
    const int previous = kReverse ? t + 1 : t - 1;
    if (previous >= 0 && previous < rows.length[j]) {
      const int64_t previous_row = kReverse ? row + args.batch : row - args.batch;
      step.c_prev[j] = static_cast<const float*>(d.cells)[previous_row * hidden + unit];
    } else if (t < rows.length[j]) {
      const int64_t cell = int64_t{rows.first + j} * hidden + unit;
      step.c_prev[j] = to_accumulator(static_cast<const Storage*>(d.c_0)[cell]);
    }
    if (t >= rows.length[j]) continue;

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

template <typename Product, int kChunks>
struct BackwardShared {
  using Operand = typename Product::Operand;
  static constexpr int kThreads = cta_max_threads(kChunks, sizeof(Operand));
  // Chunks of weights that a thread keeps here. NOTE: with all of them in registers, the larger
  // instances spill.
  static constexpr int kParkedChunks = kChunks == kCtaChunks<Operand>[1] ? 2 : 0;
  static constexpr int kPlaces = kParkedChunks > 0 ? kParkedChunks : 1;

  alignas(kLaneBytes) char tile[tile_bytes(kChunks * kGates)];  // gradients of the gates
  uint4 weights[kPlaces * 2 * kThreads];
  float2 swapped[kThreads];
};

// One direction of one tile.
template <typename Product, int kChunks, bool kReverse>
__device__ __forceinline__ void backward_tile(const PersistentBackwardArgs& args, const BackwardRecurrence& d,
                                              BackwardShared<Product, kChunks>& shared) {
  using Storage = typename Product::Storage;
  using Operand = typename Product::Operand;
  constexpr int kHalfChunks = kChunks * kGates / 2;
  constexpr int kParkedChunks = BackwardShared<Product, kChunks>::kParkedChunks;
  constexpr int kRegisterChunks = kHalfChunks - kParkedChunks;
  constexpr int kStride = tile_stride(2 * kHalfChunks);

  const Lane lane;
  const int hidden = args.hidden_size;
  const int warp = threadIdx.x / kWarpSize;
  const int half = warp % 2;
  const int unit = warp * kWarpUnits + lane.g;
  const bool real_unit = unit < hidden;
  const LaneRows rows(static_cast<int>(blockIdx.x) * kTileRows, lane, args.steps, args.batch, args.lengths);
  const int tile_steps = rows.tile_steps();

  // Load the weights of sixteen lines of h and this warp's half of the gates.
  // NOTE: through the thread's own places in shared memory, in loops that stay loops: of one long
  // unrolled load the compiler computes all addresses ahead, and runs out of registers.
  constexpr int kPlaces = BackwardShared<Product, kChunks>::kPlaces;
  const auto stage = [&](int first_chunk, int chunks) {
    constexpr int kUnits = kChunkOperands<Operand> / kGates;
    const int output = (warp - half) * kWarpUnits + lane.g;
    const int first_unit = (half * kHalfChunks + first_chunk) * kUnits +
                           lane.t * kLaneOperands<Operand> / kGates;
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const int chunk_unit = first_unit + chunk * kUnits;
      uint4 lines[2];
      load_weight_columns<Product>(
          lines, static_cast<const Storage*>(d.w_hh) + int64_t{chunk_unit} * hidden + output,
          chunk_unit, output, hidden);
      shared.weights[chunk * 2 * blockDim.x + threadIdx.x] = lines[0];
      shared.weights[(chunk * 2 + 1) * blockDim.x + threadIdx.x] = lines[1];
    }
  };
  uint4 weights[kRegisterChunks][2];
#pragma unroll
  for (int first = 0; first < kRegisterChunks; first += kPlaces) {
    static_assert(kRegisterChunks % kPlaces == 0, "whole rounds");
    stage(first, kPlaces);
#pragma unroll
    for (int i = 0; i < kPlaces; ++i) {
      weights[first + i][0] = shared.weights[i * 2 * blockDim.x + threadIdx.x];
      weights[first + i][1] = shared.weights[(i * 2 + 1) * blockDim.x + threadIdx.x];
    }
  }
  stage(kRegisterChunks, kParkedChunks);

  // Load the gradients of the final states.
  const auto owns = [&](int j) { return real_unit && rows.first + j < args.batch; };
  float dh[kLaneRows], dc[kLaneRows];
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    const int64_t cell = int64_t{rows.first + j} * hidden + unit;
    dh[j] = owns(j) && d.grad_h_n != nullptr
                ? to_accumulator(static_cast<const Storage*>(d.grad_h_n)[cell])
                : 0.0f;
    dc[j] = owns(j) && d.grad_c_n != nullptr
                ? to_accumulator(static_cast<const Storage*>(d.grad_c_n)[cell])
                : 0.0f;
  }

  // Write zeros past the end of the tile's longest row.
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    if (!owns(j)) continue;
    for (int64_t t = tile_steps; t < args.steps; ++t) {
      const int64_t row = t * args.batch + rows.first + j;
      Storage* out = static_cast<Storage*>(d.grad_gates) + row * kGates * hidden + unit;
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) out[gate * hidden] = to_storage<Storage>(0.0f);
    }
  }

  // Clear the tile, for its padding must be finite.
  for (int i = threadIdx.x * kLaneBytes; i < kTileRows * kStride; i += blockDim.x * kLaneBytes) {
    *reinterpret_cast<uint4*>(shared.tile + i) = make_uint4(0, 0, 0, 0);
  }
  __syncthreads();

  // Undo the forward's steps, from its last one.
  const int first_t = kReverse ? 0 : tile_steps - 1;
  constexpr int kNext = kReverse ? 1 : -1;
  const auto in_range = [&](int t) { return kReverse ? t < tile_steps : t >= 0; };
  BackwardStep<Storage> step;
  if (in_range(first_t)) {
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      if (!real_unit || first_t >= rows.length[j]) continue;
      const int64_t row = int64_t{first_t} * args.batch + rows.first + j;
      step.c_prev[j] = static_cast<const float*>(d.cells)[row * hidden + unit];
    }
    load_step<kReverse>(step, args, d, rows, unit, first_t);
  }

  for (int t = first_t; in_range(t); t += kNext) {
    const bool was_reset[kLaneRows] = {step.reset[0], step.reset[1]};

    // Differentiate the cell; write the gradients of the gates to memory and to the tile.
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      Storage grad[kGates] = {};
      if (real_unit && t < rows.length[j]) {
        const Gates<float> gates = {to_accumulator(step.gates[kInputGate][j]),
                                    to_accumulator(step.gates[kForgetGate][j]),
                                    to_accumulator(step.gates[kCellGate][j]),
                                    to_accumulator(step.gates[kOutputGate][j])};
        const CellGradient<float> gradient = lstm_cell_backward<DeviceMath>(
            gates, step.c[j], was_reset[j] ? 0.0f : step.c_prev[j],
            dh[j] + to_accumulator(step.grad_y[j]), dc[j] + to_accumulator(step.grad_cell[j]));
        grad[kInputGate] = to_storage<Storage>(gradient.gates.i);
        grad[kForgetGate] = to_storage<Storage>(gradient.gates.f);
        grad[kCellGate] = to_storage<Storage>(gradient.gates.g);
        grad[kOutputGate] = to_storage<Storage>(gradient.gates.o);
        dc[j] = was_reset[j] ? 0.0f : gradient.c_prev;
      }
      if (owns(j)) {
        const int64_t row = int64_t{t} * args.batch + rows.first + j;
        Storage* out = static_cast<Storage*>(d.grad_gates) + row * kGates * hidden + unit;
#pragma unroll
        for (int gate = 0; gate < kGates; ++gate) out[gate * hidden] = grad[gate];
      }
      if (real_unit) {
        Pack<Operand, kGates> pack;
#pragma unroll
        for (int gate = 0; gate < kGates; ++gate) pack.value[gate] = Product::operand(grad[gate]);
        char* row = shared.tile + tile_row(lane.t * kLaneRows + j) * kStride;
        reinterpret_cast<Pack<Operand, kGates>*>(row)[unit] = pack;
      }
    }
    if (in_range(t + kNext)) load_step<kReverse>(step, args, d, rows, unit, t + kNext);
    __syncthreads();

    // Multiply W_hhᵀ by the gradients of half of the gates.
    float lines[2][kLaneRows];
    TileProduct<Product, 2>::multiply(
        lines, weights, ParkedWeights{&shared.weights[threadIdx.x], kParkedChunks},
        shared.tile + half * kHalfChunks * kChunkBytes, kStride, lane);

    // Swap: keep the eight lines of this warp's units, give the others. NOTE: the tile is free for
    // the next step after this barrier, and `swapped` after that step's first one.
    shared.swapped[threadIdx.x] = half == 0 ? make_float2(lines[1][0], lines[1][1])
                                     : make_float2(lines[0][0], lines[0][1]);
    __syncthreads();
    const float2 other = shared.swapped[threadIdx.x ^ kWarpSize];
    const float others[kLaneRows] = {other.x, other.y};
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      if (t >= rows.length[j]) continue;
      const float own = half == 0 ? lines[0][j] : lines[1][j];
      dh[j] = was_reset[j] ? 0.0f : own + others[j];
    }
  }

  // Write the gradients of the initial states.
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    if (!owns(j)) continue;
    const int64_t cell = int64_t{ptx::opaque(rows.first) + j} * hidden + unit;
    static_cast<Storage*>(d.grad_h_0)[cell] = to_storage<Storage>(dh[j]);
    static_cast<Storage*>(d.grad_c_0)[cell] = to_storage<Storage>(dc[j]);
  }
}

// NOTE: each direction has code of its own, for then its pointers are constants of the launch, which
// instructions take from the constant bank; one code for both would hold them in registers.
template <typename Product, int kChunks>
__global__ void __launch_bounds__(cta_max_threads(kChunks, sizeof(typename Product::Operand)), 1)
    persistent_backward_kernel(const PersistentBackwardArgs args) {
  __shared__ BackwardShared<Product, kChunks> shared;
  if (blockIdx.y == 0) {
    backward_tile<Product, kChunks, false>(args, args.direction[0], shared);
  } else {
    backward_tile<Product, kChunks, true>(args, args.direction[1], shared);
  }
}

}  // namespace lstm_fused::cuda
