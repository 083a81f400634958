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
#include <type_traits>

#include "cuda/device/ptx.cuh"
#include "cuda/persistent/backward_cell.cuh"
#include "cuda/persistent/exchange.cuh"
#include "cuda/persistent/launch.h"
#include "cuda/persistent/tile.cuh"

namespace lstm_fused::cuda {

// The sum of `count` numbers, `distance` apart, in their order.
template <int kCount>
__device__ __forceinline__ float sum_apart(const float* first, int distance) {
  float number[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) number[i] = first[i * distance];
#pragma unroll
  for (int i = 1; i < kCount; ++i) number[0] += number[i];
  return number[0];
}
__device__ __forceinline__ float sum_apart(const float* first, int distance, int count) {
  // NOTE: a tile has 32 or 64 vectors of a block's 256: no other counts than these.
  if (count > 2) return count > 4 ? sum_apart<8>(first, distance) : sum_apart<4>(first, distance);
  return count > 1 ? sum_apart<2>(first, distance) : *first;
}

template <typename Product, int kUnits>
__global__ void __launch_bounds__(kGroupThreads, 1)
    persistent_group_backward_kernel(const __grid_constant__ PersistentBackwardArgs args,
                                     const __grid_constant__ GroupArgs group) {
  using Storage = typename Product::Storage;
  using Operand = typename Product::Operand;
  constexpr int kChunks = group_backward_chunks(kUnits, sizeof(Operand));
  constexpr int kRegisterTiles = group_backward_vectors(kChunks) / kChunks;
  constexpr int kStride = tile_stride(kChunks);
  // Vectors of partial sums that a lane has in flight.
  constexpr bool kIsFfma = std::is_same_v<Product, F32Product>;
  constexpr int kVectors =
      kUnits == kGroupUnits[0] ? (sizeof(Operand) == 2 ? 6 : 4) : (kIsFfma ? 3 : 4);
  constexpr int kSplits = kGroupWarps * kWarpUnits / kUnits;  // warps for eight units' cells
  static_assert(kRegisterTiles * kChunks == group_backward_vectors(kChunks),
                "registers hold whole tiles");
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
  // NOTE: with mma.sync two tiles go together, so that one load of the gates' gradients serves
  // both, and four sums are under way.
  constexpr int kTogether = kIsFfma ? 1 : 2;
  static_assert(kRegisterTiles % kTogether == 0, "registers hold all of what goes together");
  uint4 weights[kRegisterTiles / kTogether][kChunks][2 * kTogether];
#pragma unroll
  for (int tile = 0; tile < kRegisterTiles; ++tile) {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      uint4 vectors[2];
      load_weights(vectors, tile * kGroupWarps + warp, chunk);
      weights[tile / kTogether][chunk][tile % kTogether * 2] = vectors[0];
      weights[tile / kTogether][chunk][tile % kTogether * 2 + 1] = vectors[1];
    }
  }
  const auto shared_weights_of = [&](int tile) {
    return SharedWeights{
        shared_vectors + (tile - kRegisterTiles) * kChunks * 2 * kGroupThreads + threadIdx.x,
        kChunks, kGroupThreads};
  };
#pragma unroll 1
  for (int tile = kRegisterTiles; tile < group.warp_output_tiles; ++tile) {
#pragma unroll 1
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      uint4 vectors[2];
      load_weights(vectors, tile * kGroupWarps + warp, chunk);
      shared_weights_of(tile).store(vectors, chunk);
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

  // This thread's vector of sums, of four rows of a unit, and the sources that it adds up. NOTE:
  // units past the last output tile have no parts.
  const int sources = kGroupThreads / slot_vectors;
  const int source = static_cast<int>(threadIdx.x) / slot_vectors;
  const int vector = static_cast<int>(threadIdx.x) % slot_vectors;
  const bool has_parts = block * kUnits + vector / 2 % kUnits < output_tiles * 2 * kWarpUnits;
  const int source_blocks =
      source < sources && has_parts ? (blocks - source + sources - 1) / sources : 0;
  // Where this lane's parts of its warp's first output tile go, and how far the next tile's are.
  static_assert(2 * kWarpUnits <= kUnits, "an output tile's units belong to one block");
  static_assert(kGroupWarps * 2 * kWarpUnits % kUnits == 0, "a warp's tiles are whole slots apart");
  uint2* const own_parts =
      ptx::opaque(reinterpret_cast<uint2*>(slot(0, warp * 2 * kWarpUnits / kUnits, block) +
                                           (warp * 2 * kWarpUnits % kUnits + lane.g) * 2) +
                  lane.t);
  const uint4* const received_parts = ptx::opaque(slot(0, block, source) + vector);
  const int next_parts = kGroupWarps * 2 * kWarpUnits / kUnits * blocks * slot_vectors * 2;
  const int buffer_parts = blocks * blocks * slot_vectors * 2;
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
    const uint32_t tag = tag_of_step<kSumTag>(s);
    uint2* const step_parts = own_parts + (s % 2 == 0 ? 0 : buffer_parts);
    for (int tile = 0; tile < group.tiles; ++tile) {
      const char* tile_begin = tiles + tile * kTileRows * kStride;
      uint2* parts = step_parts + tile * kUnits * 4;
      const auto publish_parts = [&](const float (&first)[kLaneRows],
                                     const float (&second)[kLaneRows]) {
        ptx::store_relaxed(parts, make_uint2(sum_word<Product>(first[0]) | tag,
                                             sum_word<Product>(first[1]) | tag));
        ptx::store_relaxed(parts + kWarpUnits * 4, make_uint2(sum_word<Product>(second[0]) | tag,
                                                              sum_word<Product>(second[1]) | tag));
        parts += next_parts;
      };
#pragma unroll
      for (int i = 0; i < kRegisterTiles; i += kTogether) {
        const int output_tile = i * kGroupWarps + ptx::opaque(warp);
        if (output_tile >= output_tiles) break;
        float sums[2 * kTogether][kLaneRows];
        TileProduct<Product, 2 * kTogether>::template multiply<kChunks>(
            sums, weights[i / kTogether], kChunks, {}, tile_begin, kStride, lane);
        publish_parts(sums[0], sums[1]);
        if constexpr (kTogether == 2) {
          if (output_tile + kGroupWarps < output_tiles) publish_parts(sums[2], sums[3]);
        }
      }
#pragma unroll 1
      for (int i = kRegisterTiles; i < group.warp_output_tiles; ++i) {
        if (i * kGroupWarps + warp >= output_tiles) break;
        float sums[2][kLaneRows];
        TileProduct<Product, 2>::template multiply<0>(sums, nullptr, 0, shared_weights_of(i),
                                                      tile_begin, kStride, lane);
        publish_parts(sums[0], sums[1]);
      }
    }

    // Fetch the next step while the others publish.
    if (s + 1 < group_steps) lane_cells.load(step, time_of(s + 1));

    // Wait for the parts, and add them up.
    BoundedWait wait(group, group_index, s, abandoned);
    row_sums[threadIdx.x] =
        receive_sum<kVectors>(received_parts + (s % 2 == 0 ? 0 : buffer_parts / 2),
                              sources * slot_vectors, source_blocks, tag, wait);
    __syncthreads();
    if (*abandoned != 0) break;
#pragma unroll
    for (int cell = 0; cell < kGroupCells; ++cell) {
      const int row = row_in_group(cell);
      if (row >= group_rows) break;
      const float* sum = reinterpret_cast<const float*>(row_sums) +
                         (row / kTileRows * kUnits + local_unit) * kTileRows + row % kTileRows;
      const float total = sum_apart(sum, slot_vectors * 4, sources);
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
