// SPDX-License-Identifier: BSD-3-Clause
// The whole backward recurrence in one launch, a group of blocks for some tiles of rows and one
// direction.
//
// The blocks of a group split the hidden units. Each step a block differentiates its units' cells,
// multiplies its rows of W_hh, transposed, by the gradients of its gates, which gives a part of the
// gradient of h_prev of all units, and publishes each unit's part for the block that owns it. A
// block then adds up its units' parts: no atomics, one result (sum_exchange.cuh). A group of one
// tile has kernels of its own (group_backward_single.cuh).
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/device/ptx.cuh"
#include "cuda/persistent/backward_cell.cuh"
#include "cuda/persistent/group_backward_product.cuh"
#include "cuda/persistent/launch.h"
#include "cuda/persistent/sum_exchange.cuh"
#include "cuda/persistent/tile.cuh"

namespace lstm_fused::cuda {

template <typename Product, int kUnits>
__global__ void __launch_bounds__(kGroupThreads, 1)
    persistent_group_backward_kernel(const __grid_constant__ PersistentBackwardArgs args,
                                     const __grid_constant__ GroupArgs group) {
  using Storage = typename Product::Storage;
  using Operand = typename Product::Operand;
  using Weights = GroupBackwardProduct<Product, kUnits>;
  constexpr int kStride = Weights::kStride;
  // Vectors of partial sums that a lane has in flight.
  constexpr bool kIsFfma = std::is_same_v<Product, F32Product>;
  constexpr int kVectors =
      kUnits == kGroupUnits[0] ? (sizeof(Operand) == 2 ? 6 : 4) : (kIsFfma ? 3 : 4);
  constexpr int kSplits = kGroupWarps * kWarpUnits / kUnits;  // warps for eight units' cells
  static_assert(kSplits % kLaneRows == 0, "a lane's cells are whole tiles apart");
  static_assert(kSplits * kUnits == kGroupWarps * kWarpUnits, "every unit has as many warps");
  extern __shared__ __align__(16) char shared[];

  const Lane lane;
  const int hidden = args.hidden_size;
  const int block = static_cast<int>(blockIdx.x);
  const int warp = threadIdx.x / kWarpSize;
  const int local_unit = warp / kSplits * kWarpUnits + lane.g;
  const int unit = block * kUnits + local_unit;
  const bool reverse = blockIdx.z == 1;
  const BackwardRecurrence& d = args.direction[blockIdx.z];

  // Divide the memory.
  const int group_rows = group.tiles * kTileRows;
  int* const abandoned = reinterpret_cast<int*>(shared);
  const SourceSums sums{reinterpret_cast<float2*>(shared + kLaneBytes)};
  char* const tiles = shared + kLaneBytes + kGroupThreads * sizeof(float4);
  uint4* const shared_vectors = reinterpret_cast<uint4*>(tiles + group_rows * kStride);
  const int group_index = static_cast<int>(blockIdx.z * gridDim.y + blockIdx.y);
  const SumExchange<Product, kUnits, true> exchange(group, group_index, group.tiles, hidden);

  const Weights weights(d.w_hh, hidden, group.warp_output_tiles, shared_vectors, lane);

  // Load the gradients of the final states of this lane's cells.
  const int first_row = static_cast<int>(blockIdx.y) * group_rows;
  const auto row_in_group = [&](int cell) {
    const int column = warp % kSplits + cell * kSplits;
    return column / kLaneRows * kTileRows + lane.t * kLaneRows + column % kLaneRows;
  };
  const auto row_of = [&](int cell) { return first_row + row_in_group(cell); };
  const auto is_real_cell = [&](int cell) {
    return unit < hidden && row_in_group(cell) < group_rows && row_of(cell) < args.batch;
  };
  const int cells = (group.tiles * kLaneRows - warp % kSplits + kSplits - 1) / kSplits;
  LaneCells<Storage, kGroupCells, kSplits / kLaneRows * kTileRows> lane_cells(
      args, d, reverse, row_of(0), unit, cells);
  float dh[kGroupCells], dc[kGroupCells];
#pragma unroll
  for (int cell = 0; cell < kGroupCells; ++cell) {
    lane_cells.length[cell] = is_real_cell(cell) ? row_length(args, row_of(cell)) : 0;
    const int64_t offset = int64_t{row_of(cell)} * hidden + unit;
    dh[cell] = is_real_cell(cell) && d.grad_h_n != nullptr
                   ? to_accumulator(static_cast<const Storage*>(d.grad_h_n)[offset])
                   : 0.0f;
    dc[cell] = is_real_cell(cell) && d.grad_c_n != nullptr
                   ? to_accumulator(static_cast<const Storage*>(d.grad_c_n)[offset])
                   : 0.0f;
  }
  int group_steps = 0;  // steps of the longest row
  for (int row = threadIdx.x % kWarpSize; row < group_rows; row += kWarpSize) {
    group_steps = max(group_steps, row_length(args, first_row + row));
  }
  group_steps = __reduce_max_sync(0xffffffffu, group_steps);

  if (threadIdx.x == 0) *abandoned = 0;

  // Backpropagate through time, from the last step of the forward.
  const auto time_of = [&](int s) { return reverse ? s : group_steps - 1 - s; };
  BackwardStep<Storage, kGroupCells> step = {};
  if (group_steps > 0) {
    lane_cells.begin(step, time_of(0));
    lane_cells.load(step, time_of(0));
  }
  int s = 0;
  for (; s < group_steps; ++s) {
    const int t = time_of(s);

    // Differentiate the cells; write the gradients of the gates to the tiles and to memory.
    lane_cells.add_cell_gradients(dc, t);
    bool was_reset[kGroupCells];
#pragma unroll
    for (int cell = 0; cell < kGroupCells; ++cell) {
      was_reset[cell] = step.is_reset(cell);
      if (row_in_group(cell) >= group_rows) break;
      Storage grad[kGates];
      backward_cell(grad, step, cell, t < lane_cells.length[cell], dh[cell], dc[cell]);
      Pack<Operand, kGates> pack;
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        pack.value[gate] = Product::operand(grad[gate]);
      }
      char* row = tiles + (row_in_group(cell) / kTileRows * kTileRows +
                           tile_row(row_in_group(cell) % kTileRows)) *
                              kStride;
      reinterpret_cast<Pack<Operand, kGates>*>(row)[local_unit] = pack;
      lane_cells.store(cell, grad);
    }
    lane_cells.go_on();
    __syncthreads();

    // Multiply this block's rows of W_hh, transposed, and publish each unit's part to its owner.
    auto publisher = exchange.publisher(s);
    for (int tile = 0; tile < group.tiles; ++tile) {
      weights.multiply(tiles + tile * kTileRows * kStride, lane, publisher);
      publisher.place += exchange.kNextTile;
    }

    // Fetch the next step while the others publish.
    if (s + 1 < group_steps) lane_cells.load(step, time_of(s + 1));

    // Wait for the parts, and add them up.
    BoundedWait wait(group, group_index, s, abandoned);
    sums.store(exchange.template receive<kVectors>(s, wait));
    __syncthreads();
    if (*abandoned != 0) break;
#pragma unroll
    for (int cell = 0; cell < kGroupCells; ++cell) {
      const int row = row_in_group(cell);
      if (row >= group_rows) break;
      const float total =
          sum_apart(sums.of<kUnits>(row, local_unit), 2 * exchange.slot_vectors, exchange.sources);
      if (t < lane_cells.length[cell]) dh[cell] = was_reset[cell] ? 0.0f : total;
    }
  }

  // Write the gradients of the initial states, and zeros past the end of the group's longest row;
  // where a wait was given up, NaN for all that was not computed.
  const bool complete = s == group_steps;
  const Storage zero = to_storage<Storage>(0.0f);
  const Storage nan = to_storage<Storage>(__int_as_float(0x7fc00000));
#pragma unroll
  for (int cell = 0; cell < kGroupCells; ++cell) {
    if (!is_real_cell(cell)) continue;
    const int n = ptx::opaque(first_row) + row_in_group(cell);
    const int64_t offset = int64_t{n} * hidden + unit;
    static_cast<Storage*>(d.grad_h_0)[offset] = complete ? to_storage<Storage>(dh[cell]) : nan;
    static_cast<Storage*>(d.grad_c_0)[offset] = complete ? to_storage<Storage>(dc[cell]) : nan;
    for (int rest = s; rest < args.steps; ++rest) {
      const int t = rest < group_steps ? time_of(rest) : rest;
      const int64_t row = int64_t{t} * args.batch + n;
      Storage* out = static_cast<Storage*>(d.grad_gates) + row * kGates * hidden + unit;
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        out[gate * hidden] = rest < group_steps ? nan : zero;
      }
    }
  }
}

}  // namespace lstm_fused::cuda
