// SPDX-License-Identifier: BSD-3-Clause
// What the group forward does before its steps and after them.
#pragma once

#include <cstdint>

#include "cuda/device/ptx.cuh"
#include "cuda/device/storage.cuh"
#include "cuda/persistent/launch.h"
#include "cuda/persistent/tile.cuh"

namespace lstm_fused::cuda {

// 16-byte pieces of h that a lane has in flight: as many as leave no register spilt. FFMA's
// recurrent GEMM takes more registers than that of mma.sync, for which ptxas needs more from sm_100
// on.
template <bool kIsFfma>
__device__ constexpr int pieces_in_flight() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  return kIsFfma ? 4 : 5;
#else
  return kIsFfma ? 4 : 6;
#endif
}

// How a block divides its shared memory. A row of a tile, there and in the exchange area alike,
// lies beside the rows of its number in the group's other tiles.
struct GroupForwardMemory {
  int row_chunks, row_bytes;
  int slot_bytes;  // rows of one number
  int stride, group_rows;
  int* abandoned;
  int* row_lengths;        // (rows of the group)
  char* tiles;             // (8 rows, stride)
  float4* partials;        // (columns, threads): parts of the recurrent GEMM
  float4* preactivations;  // (cells, threads)
  float4* biases;          // (units)
  uint4* weights;          // those that are not in registers

  __device__ __forceinline__ GroupForwardMemory(const GroupArgs& group, int block_units,
                                                bool is_ffma, char* shared) {
    row_chunks = group.k_splits * group.warp_chunks;
    row_bytes = row_chunks * kChunkBytes;
    slot_bytes = group.tiles * row_bytes;
    stride = group_tile_stride(group.tiles * row_chunks, is_ffma);
    group_rows = group.tiles * kTileRows;
    abandoned = reinterpret_cast<int*>(shared);
    row_lengths = reinterpret_cast<int*>(shared + kLaneBytes);
    tiles = shared + kLaneBytes + group_rows * sizeof(int);
    partials = reinterpret_cast<float4*>(tiles + kTileRows * stride);
    preactivations = partials + group.tiles * kLaneRows * kGroupThreads;
    const int cells = (group.tiles * kLaneRows + group.k_splits - 1) / group.k_splits;
    biases = preactivations + cells * kGroupThreads;
    weights = reinterpret_cast<uint4*>(biases + block_units);
  }
};

// Loads the biases of a block's units; zero where there is none.
__device__ __forceinline__ void load_biases(float4* biases, const void* bias, int hidden,
                                            int block_units) {
  if (threadIdx.x >= block_units) return;
  const int unit = static_cast<int>(blockIdx.x) * block_units + threadIdx.x;
  float found[kGates] = {};
  for (int gate = 0; gate < kGates; ++gate) {
    if (unit < hidden && bias != nullptr) {
      found[gate] = static_cast<const float*>(bias)[gate * hidden + unit];
    }
  }
  biases[threadIdx.x] = make_float4(found[0], found[1], found[2], found[3]);
}

// Steps that were done, of those of the group's longest row.
struct RunOfSteps {
  int done, all;
  bool reverse;
};

// Writes a cell's final states, and zeros past the end of the group's longest row; where a wait was
// given up, NaN for all that was not computed. `n`, `length`: the cell's row, and its steps.
template <typename Storage>
__device__ __forceinline__ void write_end(const PersistentForwardArgs& args,
                                          const ForwardRecurrence& d, const RunOfSteps& run,
                                          int64_t n, int unit, int length, float c) {
  const int hidden = args.hidden_size;
  const bool complete = run.done == run.all;
  const Storage zero = to_storage<Storage>(0.0f);
  const Storage nan = to_storage<Storage>(__int_as_float(0x7fc00000));
  Storage h = nan;
  if (complete) {  // the row's last output, which this thread has written
    // NOTE: opaque, so that it is read after store_if has written it.
    const Storage* const y = ptx::opaque(static_cast<const Storage*>(d.y));
    const int64_t t = run.reverse ? 0 : length - 1;
    h = length > 0 ? y[(t * args.batch + n) * args.directions * hidden + unit]
                   : static_cast<const Storage*>(d.h_0)[n * hidden + unit];
  }
  static_cast<Storage*>(d.h_n)[n * hidden + unit] = h;
  static_cast<Storage*>(d.c_n)[n * hidden + unit] = complete ? to_storage<Storage>(c) : nan;
  for (int rest = run.done; rest < args.steps; ++rest) {
    const int t = rest >= run.all ? rest : run.reverse ? run.all - 1 - rest : rest;
    const int64_t output = (int64_t{t} * args.batch + n) * args.directions * hidden + unit;
    const Storage value = rest < run.all ? nan : zero;
    static_cast<Storage*>(d.y)[output] = value;
    if (d.cell_states != nullptr) static_cast<Storage*>(d.cell_states)[output] = value;
  }
}

}  // namespace lstm_fused::cuda
