// SPDX-License-Identifier: BSD-3-Clause
// The whole backward recurrence in one launch, a group of blocks for some tiles of rows and one
// direction.
//
// The blocks of a group split the hidden units. Each step a block differentiates its units' cells,
// multiplies its rows of W_hh, transposed, by the gradients of its gates, which gives a part of the
// gradient of h_prev of all units, and publishes each unit's part in the slot of the block that
// owns it. A block then adds up its units' parts, in the order of the blocks: no atomics, one
// result.
//
// How blocks synchronise: as in group_forward.cuh. A block's flag counts the steps whose parts it
// has published; it is raised after __syncthreads, and seen by all lanes before __syncwarp.
//
// NOTE: two buffers of slots suffice. Step s writes buffer s % 2, which was read in step s - 2. A
// block writes it after it has seen all flags at s, and a block raises its flag to s in step s - 1,
// after its reads of step s - 2.
#pragma once

#include <cstdint>

#include "cuda/device/ptx.cuh"
#include "cuda/persistent/backward_cell.cuh"
#include "cuda/persistent/launch.h"
#include "cuda/persistent/tile.cuh"

namespace lstm_fused::cuda {

template <typename Product, int kUnits>
__global__ void __launch_bounds__(kGroupThreads, 1)
    persistent_group_backward_kernel(const PersistentBackwardArgs args, const GroupArgs group) {
  using Storage = typename Product::Storage;
  using Operand = typename Product::Operand;
  constexpr int kChunks = group_backward_chunks(kUnits, sizeof(Operand));
  constexpr int kRegisterTiles = kGroupBackwardVectors / kChunks;
  constexpr int kStride = tile_stride(kChunks);
  constexpr int kSplits = kGroupWarps * kWarpUnits / kUnits;  // warps for eight units' cells
  static_assert(kRegisterTiles * kChunks == kGroupBackwardVectors, "registers hold whole tiles");
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
  const BackwardRecurrence d = reverse ? args.direction[1] : args.direction[0];

  // Divide the memory.
  const int group_rows = group.tiles * kTileRows;
  char* const tiles = shared;
  uint4* const shared_vectors = reinterpret_cast<uint4*>(tiles + group_rows * kStride);
  const int64_t index = int64_t{blockIdx.z} * gridDim.y + blockIdx.y;  // the group's
  const int64_t slot_size = int64_t{group_rows} * kUnits;
  float* const slots =
      reinterpret_cast<float*>(group.exchange) + index * 2 * blocks * blocks * slot_size;
  const auto slot = [&](int buffer, int to, int from) {
    return slots + ((int64_t{buffer} * blocks + to) * blocks + from) * slot_size;
  };
  uint32_t* const flags = group.flags + index * group_flags(blocks);

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
  int length[kGroupCells];
  float dh[kGroupCells], dc[kGroupCells];
#pragma unroll
  for (int cell = 0; cell < kGroupCells; ++cell) {
    length[cell] = is_real_cell(cell) ? row_length(args, row_of(cell)) : 0;
    const int64_t offset = int64_t{row_of(cell)} * hidden + unit;
    dh[cell] = is_real_cell(cell) && d.grad_h_n != nullptr
                   ? to_accumulator(static_cast<const Storage*>(d.grad_h_n)[offset])
                   : 0.0f;
    dc[cell] = is_real_cell(cell) && d.grad_c_n != nullptr
                   ? to_accumulator(static_cast<const Storage*>(d.grad_c_n)[offset])
                   : 0.0f;
  }
  int group_steps = 0;  // steps of the longest row: all blocks of the group get the same number
  for (int row = 0; row < group_rows; ++row) {
    group_steps = max(group_steps, row_length(args, first_row + row));
  }

  // Backpropagate through time, from the last step of the forward.
  const auto time_of = [&](int s) { return reverse ? s : group_steps - 1 - s; };
  BackwardStep<Storage, kGroupCells> step;
  if (group_steps > 0) {
    load_last_cells(step, args, d, row_of, length, unit, time_of(0));
    load_step(step, args, d, row_of, length, unit, reverse, time_of(0));
  }
  for (int s = 0; s < group_steps; ++s) {
    const int t = time_of(s);

    // Differentiate the cells; write the gradients of the gates to memory and to the tiles.
    bool was_reset[kGroupCells];
#pragma unroll
    for (int cell = 0; cell < kGroupCells; ++cell) {
      was_reset[cell] = step.reset[cell];
      if (row_in_group(cell) >= group_rows) continue;
      Storage grad[kGates] = {};
      if (t < length[cell]) backward_cell(grad, step, cell, dh[cell], dc[cell]);
      if (is_real_cell(cell)) {
        const int64_t row = int64_t{t} * args.batch + row_of(cell);
        Storage* out = static_cast<Storage*>(d.grad_gates) + row * kGates * hidden + unit;
#pragma unroll
        for (int gate = 0; gate < kGates; ++gate) out[gate * hidden] = grad[gate];
      }
      Pack<Operand, kGates> pack;
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) pack.value[gate] = Product::operand(grad[gate]);
      char* row = tiles + (row_in_group(cell) / kTileRows * kTileRows +
                           tile_row(row_in_group(cell) % kTileRows)) *
                              kStride;
      reinterpret_cast<Pack<Operand, kGates>*>(row)[local_unit] = pack;
    }
    __syncthreads();

    // Multiply this block's rows of W_hh, transposed, and write each unit's part to its owner's
    // slot.
    for (int tile = 0; tile < group.tiles; ++tile) {
      const char* tile_begin = tiles + tile * kTileRows * kStride;
      const auto store_parts = [&](const float (&sums)[2][kLaneRows], int output_tile) {
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const int output = (output_tile * 2 + m) * kWarpUnits + lane.g;
          float* part = slot(s % 2, output / kUnits, block) +
                        (tile * kTileRows + lane.t * kLaneRows) * kUnits + output % kUnits;
#pragma unroll
          for (int j = 0; j < kLaneRows; ++j) part[j * kUnits] = sums[m][j];
        }
      };
#pragma unroll
      for (int i = 0; i < kRegisterTiles; ++i) {
        const int output_tile = i * kGroupWarps + ptx::opaque(warp);
        if (output_tile >= output_tiles) continue;
        float sums[2][kLaneRows];
        TileProduct<Product, 2>::template multiply<kChunks>(sums, weights[i], kChunks, {},
                                                            tile_begin, kStride, lane);
        store_parts(sums, output_tile);
      }
#pragma unroll 1
      for (int i = kRegisterTiles; i < group.warp_output_tiles; ++i) {
        const int output_tile = i * kGroupWarps + warp;
        if (output_tile >= output_tiles) continue;
        float sums[2][kLaneRows];
        const SharedWeights shared_weights{&shared_vectors[shared_place(i, 0, 0)], kChunks};
        TileProduct<Product, 2>::template multiply<0>(sums, nullptr, 0, shared_weights, tile_begin,
                                                      kStride, lane);
        store_parts(sums, output_tile);
      }
    }

    // Publish the parts to the group; fetch the next step while the others publish; wait for them.
    __syncthreads();
    if (threadIdx.x == 0) ptx::store_release(flags + block, static_cast<uint32_t>(s + 1));
    if (s + 1 < group_steps) {
      load_step(step, args, d, row_of, length, unit, reverse, time_of(s + 1));
    }
    for (int i = threadIdx.x % kWarpSize; i < blocks; i += kWarpSize) {
      while (ptx::load_acquire(flags + i) < static_cast<uint32_t>(s + 1)) {
      }
    }
    __syncwarp();

    // Add up the parts of this lane's cells.
#pragma unroll
    for (int cell = 0; cell < kGroupCells; ++cell) {
      if (t >= length[cell]) continue;
      float sum = 0.0f;
      if (!was_reset[cell]) {
        const float* part = slot(s % 2, block, 0) + row_in_group(cell) * kUnits + local_unit;
        // NOTE: past L1, which does not see the other blocks' writes. Eight loads in flight.
#pragma unroll 8
        for (int from = 0; from < blocks; ++from) sum += __ldcg(part + from * slot_size);
      }
      dh[cell] = sum;
    }
  }

  // Write the gradients of the initial states, and zeros past the end of the group's longest row.
#pragma unroll
  for (int cell = 0; cell < kGroupCells; ++cell) {
    if (!is_real_cell(cell)) continue;
    const int n = ptx::opaque(first_row) + row_in_group(cell);
    const int64_t offset = int64_t{n} * hidden + unit;
    static_cast<Storage*>(d.grad_h_0)[offset] = to_storage<Storage>(dh[cell]);
    static_cast<Storage*>(d.grad_c_0)[offset] = to_storage<Storage>(dc[cell]);
    for (int t = group_steps; t < args.steps; ++t) {
      const int64_t row = int64_t{t} * args.batch + n;
      Storage* out = static_cast<Storage*>(d.grad_gates) + row * kGates * hidden + unit;
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) out[gate * hidden] = to_storage<Storage>(0.0f);
    }
  }
}

}  // namespace lstm_fused::cuda
