// SPDX-License-Identifier: BSD-3-Clause
// The whole backward recurrence in one launch, a group of blocks for some tiles of rows and one
// direction.
//
// The blocks of a group split the hidden units. Each step a block differentiates its units' cells,
// multiplies its rows of W_hh, transposed, by the gradients of its gates, which gives a part of the
// gradient of h of all units, and writes each unit's part to the slot of the block that owns it. A
// block then adds up its units' parts, in the order of the blocks: no atomics, one result.
//
// How blocks synchronise: as in persistent_group_forward.cuh. A block's flag counts the steps whose
// parts it has written; it is raised after __syncthreads, and seen by all lanes before __syncwarp.
// NOTE: two buffers of slots suffice. Step s writes buffer s % 2, which was read in step s - 2. A
// block writes it after it has seen all flags at s, and a block raises its flag to s in step s - 1,
// after its reads of step s - 2.
#pragma once

#include <cstdint>

#include "cuda/persistent/backward_cell.cuh"
#include "cuda/persistent/launch.h"
#include "cuda/persistent/tile.cuh"
#include "cuda/device/ptx.cuh"

namespace lstm_fused::cuda {

template <typename Product, int kUnits>
__global__ void __launch_bounds__(kGroupThreads, 1)
    persistent_group_backward_kernel(const PersistentBackwardArgs args, const GroupArgs group) {
  using Storage = typename Product::Storage;
  using Operand = typename Product::Operand;
  constexpr int kChunks = group_backward_chunks(kUnits, sizeof(Operand));
  constexpr int kRegisterTiles = kGroupBackwardVectors / kChunks;
  constexpr int kStride = tile_stride(kChunks);
  constexpr int kSplits = kGroupWarps * kWarpUnits / kUnits;  // warps that share eight units' cells
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
  uint4* const parked = reinterpret_cast<uint4*>(tiles + group_rows * kStride);
  const int64_t index = int64_t{blockIdx.z} * gridDim.y + blockIdx.y;  // of the group
  const int64_t slot_size = int64_t{group_rows} * kUnits;
  float* const slots =
      reinterpret_cast<float*>(group.exchange) + index * 2 * blocks * blocks * slot_size;
  const auto slot = [&](int buffer, int to, int from) {
    return slots + ((int64_t{buffer} * blocks + to) * blocks + from) * slot_size;
  };
  uint32_t* const flags = group.flags + index * group_flags(blocks);

  // Load the weights: lines of h in tiles of sixteen, every eighth of them this warp's.
  const int line_tiles = (hidden + 2 * kWarpUnits - 1) / (2 * kWarpUnits);
  const auto load_weights = [&](uint4(&lines)[2], int line_tile, int chunk) {
    const int output = line_tile * 2 * kWarpUnits + lane.g;
    const int first_unit =
        block * kUnits +
        (chunk * kChunkOperands<Operand> + lane.t * kLaneOperands<Operand>) / kGates;
    load_weight_columns<Product>(
        lines,
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
  const auto parked_place = [&](int tile, int chunk, int line) {
    return (((tile - kRegisterTiles) * kChunks + chunk) * 2 + line) * kGroupThreads + threadIdx.x;
  };
#pragma unroll 1
  for (int tile = kRegisterTiles; tile < group.line_tiles; ++tile) {
#pragma unroll 1
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      uint4 lines[2];
      load_weights(lines, tile * kGroupWarps + warp, chunk);
      parked[parked_place(tile, chunk, 0)] = lines[0];
      parked[parked_place(tile, chunk, 1)] = lines[1];
    }
  }

  // Load the gradients of the final states of this lane's cells.
  const int first_row = static_cast<int>(blockIdx.y) * group_rows;
  const auto row_in_group = [&](int cell) {
    const int column = warp % kSplits + cell * kSplits;
    return column / kLaneRows * kTileRows + lane.t * kLaneRows + column % kLaneRows;
  };
  const auto row_of = [&](int cell) { return first_row + row_in_group(cell); };
  const auto owns = [&](int cell) {
    return unit < hidden && row_in_group(cell) < group_rows && row_of(cell) < args.batch;
  };
  int length[kGroupCells];
  float dh[kGroupCells], dc[kGroupCells];
#pragma unroll
  for (int cell = 0; cell < kGroupCells; ++cell) {
    length[cell] = owns(cell) ? row_length(args, row_of(cell)) : 0;
    const int64_t offset = int64_t{row_of(cell)} * hidden + unit;
    dh[cell] = owns(cell) && d.grad_h_n != nullptr
                   ? to_accumulator(static_cast<const Storage*>(d.grad_h_n)[offset])
                   : 0.0f;
    dc[cell] = owns(cell) && d.grad_c_n != nullptr
                   ? to_accumulator(static_cast<const Storage*>(d.grad_c_n)[offset])
                   : 0.0f;
  }
  int group_steps = 0;  // the same in all blocks of the group
  for (int row = 0; row < group_rows; ++row) {
    group_steps = max(group_steps, row_length(args, first_row + row));
  }

  // Undo the forward's steps, from its last one.
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
      if (t < length[cell]) undo_cell(grad, step, cell, dh[cell], dc[cell]);
      if (owns(cell)) {
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

    // Multiply this block's rows of W_hh, transposed, and give every block its units' part.
    for (int tile = 0; tile < group.tiles; ++tile) {
      const char* tile_begin = tiles + tile * kTileRows * kStride;
      const auto give = [&](const float (&sums)[2][kLaneRows], int line_tile) {
#pragma unroll
        for (int line = 0; line < 2; ++line) {
          const int output = (line_tile * 2 + line) * kWarpUnits + lane.g;
          float* part = slot(s % 2, output / kUnits, block) +
                        (tile * kTileRows + lane.t * kLaneRows) * kUnits + output % kUnits;
#pragma unroll
          for (int j = 0; j < kLaneRows; ++j) part[j * kUnits] = sums[line][j];
        }
      };
#pragma unroll
      for (int i = 0; i < kRegisterTiles; ++i) {
        const int line_tile = i * kGroupWarps + ptx::opaque(warp);
        if (line_tile >= line_tiles) continue;
        float sums[2][kLaneRows];
        TileProduct<Product, 2>::template multiply<kChunks>(sums, weights[i], kChunks, {},
                                                            tile_begin, kStride, lane);
        give(sums, line_tile);
      }
#pragma unroll 1
      for (int i = kRegisterTiles; i < group.line_tiles; ++i) {
        const int line_tile = i * kGroupWarps + warp;
        if (line_tile >= line_tiles) continue;
        float sums[2][kLaneRows];
        const ParkedWeights of_tile{&parked[parked_place(i, 0, 0)], kChunks};
        TileProduct<Product, 2>::template multiply<0>(sums, nullptr, 0, of_tile, tile_begin,
                                                      kStride, lane);
        give(sums, line_tile);
      }
    }

    // Tell the group; fetch the next step while the others tell.
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
    if (!owns(cell)) continue;
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
