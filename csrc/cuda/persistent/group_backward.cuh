// SPDX-License-Identifier: BSD-3-Clause
// The whole backward recurrence in one launch, a group of blocks for some tiles of rows and one
// direction.
//
// The blocks of a group split the hidden units. Each step a block differentiates its units' cells,
// multiplies its rows of W_hh, transposed, by the gradients of its gates, which gives a part of the
// gradient of h_prev of all units, and publishes each unit's part, as exchange.cuh says, in the
// slot of the block that owns it. A block then adds up its units' parts: no atomics, one result.
// Its threads share the work out by vectors of four rows and by sources; each takes every S-th
// block's vector, in the blocks' order, and then the S sums of a row are added up through shared
// memory.
#pragma once

#include <cstdint>

#include "cuda/device/ptx.cuh"
#include "cuda/persistent/backward_cell.cuh"
#include "cuda/persistent/exchange.cuh"
#include "cuda/persistent/launch.h"
#include "cuda/persistent/tile.cuh"

namespace lstm_fused::cuda {

template <typename Product, int kUnits>
__global__ void __launch_bounds__(kGroupThreads, 1)
    persistent_group_backward_kernel(const __grid_constant__ PersistentBackwardArgs args,
                                     const __grid_constant__ GroupArgs group) {
  using Storage = typename Product::Storage;
  using Operand = typename Product::Operand;
  constexpr int kChunks = group_backward_chunks(kUnits, sizeof(Operand));
  constexpr int kRegisterTiles = kGroupBackwardVectors / kChunks;
  constexpr int kStride = tile_stride(kChunks);
  constexpr int kVectors = 6;  // of partial sums that a lane has in flight
  constexpr int kSplits = kGroupWarps * kWarpUnits / kUnits;  // warps for eight units' cells
  static_assert(kRegisterTiles * kChunks == kGroupBackwardVectors, "registers hold whole tiles");
  static_assert(kSplits % kLaneRows == 0, "a lane's cells are whole tiles apart");
  static_assert(kSplits * kUnits == kGroupWarps * kWarpUnits, "every unit has as many warps");
  static_assert(kLaneOperands<Operand> % kGates == 0, "a lane's vector holds whole units");
  extern __shared__ __align__(16) char shared[];

  const Lane lane;
  const int hidden = args.hidden_size;
  const int blocks = static_cast<int>(gridDim.x);
  const int block = static_cast<int>(blockIdx.x);
  const int warp = threadIdx.x / kWarpSize;
  const int local_unit = warp / kSplits * kWarpUnits + lane.g;
  const int unit = block * kUnits + local_unit;
  const bool reverse = blockIdx.z == 1;
  const BackwardRecurrence& d = args.direction[blockIdx.z];

  // Divide the memory. A slot holds one block's parts for another one: (tiles, units, 8 rows).
  const int group_rows = group.tiles * kTileRows;
  int* const abandoned = reinterpret_cast<int*>(shared);
  float4* const row_sums = reinterpret_cast<float4*>(shared + kLaneBytes);
  char* const tiles = shared + kLaneBytes + kGroupThreads * sizeof(float4);
  uint4* const shared_vectors = reinterpret_cast<uint4*>(tiles + group_rows * kStride);
  const int group_index = static_cast<int>(blockIdx.z * gridDim.y + blockIdx.y);
  const int slot_vectors = group_rows * kUnits / 4;
  uint4* const slots = reinterpret_cast<uint4*>(group.exchange) +
                       int64_t{group_index} * 2 * blocks * blocks * slot_vectors;
  const auto slot = [&](int buffer, int to, int from) {
    return slots + ((int64_t{buffer} * blocks + to) * blocks + from) * slot_vectors;
  };

  // Load the weights. The outputs, units of the gradient of h_prev, come in tiles of sixteen, of
  // which this warp has every eighth.
  const int output_tiles = (hidden + 2 * kWarpUnits - 1) / (2 * kWarpUnits);
  const auto load_weights = [&](uint4(&vectors)[2], int output_tile, int chunk) {
    const int output = output_tile * 2 * kWarpUnits + lane.g;
    const int first_unit =
        block * kUnits +
        (chunk * kChunkOperands<Operand> + lane.t * kLaneOperands<Operand>) / kGates;
    load_weight_columns<Product>(
        vectors,
        ptx::opaque(static_cast<const Storage*>(d.w_hh) + int64_t{first_unit} * hidden + output),
        first_unit, output, hidden);
  };
  uint4 weights[kRegisterTiles][kChunks][2];
#pragma unroll
  for (int tile = 0; tile < kRegisterTiles; ++tile) {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      load_weights(weights[tile][chunk], tile * kGroupWarps + warp, chunk);
    }
  }
  const auto shared_place = [&](int tile, int chunk, int m) {
    return (((tile - kRegisterTiles) * kChunks + chunk) * 2 + m) * kGroupThreads + threadIdx.x;
  };
#pragma unroll 1
  for (int tile = kRegisterTiles; tile < group.warp_output_tiles; ++tile) {
#pragma unroll 1
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      uint4 vectors[2];
      load_weights(vectors, tile * kGroupWarps + warp, chunk);
      shared_vectors[shared_place(tile, chunk, 0)] = vectors[0];
      shared_vectors[shared_place(tile, chunk, 1)] = vectors[1];
    }
  }

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
  LaneCells<kGroupCells, kSplits / kLaneRows * kTileRows> lane_cells;
  lane_cells.first_row = first_row;
  lane_cells.lane_row = row_in_group(0);
  lane_cells.unit = unit;
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

  // This thread's vector of sums, of four rows of a unit, and the sources that it adds up. NOTE:
  // units past the last output tile have no parts.
  const int sources = kGroupThreads / slot_vectors;
  const int source = static_cast<int>(threadIdx.x) / slot_vectors;
  const int vector = static_cast<int>(threadIdx.x) % slot_vectors;
  const bool has_parts = block * kUnits + vector / 2 % kUnits < output_tiles * 2 * kWarpUnits;
  const int source_blocks =
      source < sources && has_parts ? (blocks - source + sources - 1) / sources : 0;
  if (threadIdx.x == 0) *abandoned = 0;

  // Backpropagate through time, from the last step of the forward.
  const auto time_of = [&](int s) { return reverse ? s : group_steps - 1 - s; };
  BackwardStep<Storage, kGroupCells> step = {};
  if (group_steps > 0) {
    load_last_cells(step, args, d, lane_cells, time_of(0));
    load_step(step, args, d, lane_cells, reverse, time_of(0));
  }
  int s = 0;
  for (; s < group_steps; ++s) {
    const int t = time_of(s);

    // Differentiate the cells; write the gradients of the gates to the tiles and to memory.
    bool was_reset[kGroupCells];
#pragma unroll
    for (int cell = 0; cell < kGroupCells; ++cell) {
      was_reset[cell] = step.reset[cell] != 0;
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
      store_gradients(grad, args, d, lane_cells, cell, t);
    }
    __syncthreads();

    // Multiply this block's rows of W_hh, transposed, and publish each unit's part to its owner.
    const uint32_t tag = tag_of_step<kSumTag>(s);
    for (int tile = 0; tile < group.tiles; ++tile) {
      const char* tile_begin = tiles + tile * kTileRows * kStride;
      const auto publish_parts = [&](const float (&sums)[2][kLaneRows], int output_tile) {
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const int output = (output_tile * 2 + m) * kWarpUnits + lane.g;
          uint2* parts = reinterpret_cast<uint2*>(slot(s % 2, output / kUnits, block) +
                                                  (tile * kUnits + output % kUnits) * 2) +
                         lane.t;
          ptx::store_relaxed(parts, make_uint2(sum_word<Product>(sums[m][0]) | tag,
                                               sum_word<Product>(sums[m][1]) | tag));
        }
      };
#pragma unroll
      for (int i = 0; i < kRegisterTiles; ++i) {
        const int output_tile = i * kGroupWarps + ptx::opaque(warp);
        if (output_tile >= output_tiles) continue;
        float sums[2][kLaneRows];
        TileProduct<Product, 2>::template multiply<kChunks>(sums, weights[i], kChunks, {},
                                                            tile_begin, kStride, lane);
        publish_parts(sums, output_tile);
      }
#pragma unroll 1
      for (int i = kRegisterTiles; i < group.warp_output_tiles; ++i) {
        const int output_tile = i * kGroupWarps + warp;
        if (output_tile >= output_tiles) continue;
        float sums[2][kLaneRows];
        const SharedWeights shared_weights{&shared_vectors[shared_place(i, 0, 0)], kChunks};
        TileProduct<Product, 2>::template multiply<0>(sums, nullptr, 0, shared_weights, tile_begin,
                                                      kStride, lane);
        publish_parts(sums, output_tile);
      }
    }

    // Fetch the next step while the others publish.
    if (s + 1 < group_steps) load_step(step, args, d, lane_cells, reverse, time_of(s + 1));

    // Wait for the parts, and add them up.
    BoundedWait wait(group, group_index, s, abandoned);
    row_sums[threadIdx.x] =
        receive_sum<kVectors>(slot(s % 2, block, source) + vector, int64_t{sources} * slot_vectors,
                              source_blocks, tag, wait);
    __syncthreads();
    if (*abandoned != 0) break;
#pragma unroll
    for (int cell = 0; cell < kGroupCells; ++cell) {
      const int row = row_in_group(cell);
      if (row >= group_rows) break;
      const float* sum = reinterpret_cast<const float*>(row_sums) +
                         (row / kTileRows * kUnits + local_unit) * kTileRows + row % kTileRows;
      float total = sum[0];
      for (int i = 1; i < sources; ++i) total += sum[i * slot_vectors * 4];
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
