// SPDX-License-Identifier: BSD-3-Clause
// The whole sequence in one launch, a group of blocks for some tiles of rows and one direction.
//
// The blocks of a group split the hidden units, and so hold all of W_hh together, in registers and,
// where these do not suffice, in shared memory. Each step a block needs h_prev of all units: blocks
// publish their units' h in an exchange area in global memory, by a flag.
//
// Within a block, `k_splits` warps work on the same eight units and split K; their partial sums are
// added up through shared memory. Then each of these warps applies the cell to a part of the tiles'
// columns: lane 4g + t of column i (tile i / 2, j = i % 2) has unit g and row 2t + j.
//
// How blocks synchronise. The flag of a block counts the steps whose h it has published:
//   publish  all threads write h, __syncthreads, thread 0 stores the flag with release semantics;
//   wait     every warp's lanes load the flags of all blocks of the group with acquire semantics
//            until each has reached the step, __syncwarp, then the warp reads h.
// NOTE: two buffers suffice. Step s writes buffer (s + 1) % 2, which was read in step s - 1. A
// block writes it after it has seen all flags at s, and a block raises its flag to s after its
// reads of step s - 1: they precede its __syncthreads, and so its release. NOTE: a group must be
// resident as a whole, or it would wait forever: the plan proves that all blocks are, and the
// launch is cooperative, so that the driver refuses what the plan got wrong.
#pragma once

#include <cstdint>

#include "common/lstm_cell.h"
#include "cuda/device/math.cuh"
#include "cuda/device/ptx.cuh"
#include "cuda/persistent/launch.h"
#include "cuda/persistent/tile.cuh"

namespace lstm_fused::cuda {

template <typename Product>
__global__ void __launch_bounds__(kGroupThreads, 1)
    persistent_group_forward_kernel(const PersistentForwardArgs args, const GroupArgs group) {
  using Storage = typename Product::Storage;
  using Operand = typename Product::Operand;
  extern __shared__ __align__(16) char shared[];

  const Lane lane;
  const int hidden = args.hidden_size;
  const int warp = threadIdx.x / kWarpSize;
  const int unit_warp = warp / group.k_splits;
  const int k_warp = warp % group.k_splits;
  const int block_units = kGroupWarps / group.k_splits * kWarpUnits;
  const int unit = static_cast<int>(blockIdx.x) * block_units + unit_warp * kWarpUnits + lane.g;
  const bool real_unit = unit < hidden;
  const bool reverse = blockIdx.z == 1;
  const ForwardRecurrence d = reverse ? args.direction[1] : args.direction[0];

  // Divide the memory.
  const int row_chunks = group.k_splits * group.warp_chunks;
  const int stride = tile_stride(row_chunks);
  const int group_rows = group.tiles * kTileRows;
  char* const tiles = shared;
  float4* const partials = reinterpret_cast<float4*>(tiles + group_rows * stride);
  float4* const biases = partials + group.tiles * kLaneRows * kGroupThreads;
  uint4* const shared_vectors = reinterpret_cast<uint4*>(biases + block_units);
  const int exchange_stride = row_chunks * kChunkBytes;
  const int64_t index = int64_t{blockIdx.z} * gridDim.y + blockIdx.y;  // the group's
  char* const exchange = group.exchange + index * 2 * group_rows * exchange_stride;
  uint32_t* const flags = group.flags + index * group_flags(static_cast<int>(gridDim.x));

  // Load the weights of this lane's unit and this warp's part of K.
  const int register_chunks = min(group.warp_chunks, kGroupChunks);
  uint4 weights[kGroupChunks][kGates];
  const auto load_weights = [&](uint4(&chunk_weights)[kGates], int chunk) {
    const int column = (k_warp * group.warp_chunks + chunk) * kChunkOperands<Operand> +
                       lane.t * kLaneOperands<Operand>;
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      const Storage* row =
          static_cast<const Storage*>(d.w_hh) + (int64_t{gate} * hidden + unit) * hidden;
      chunk_weights[gate] = load_operands<Product>(row, real_unit ? column : hidden, hidden);
    }
  };
#pragma unroll
  for (int chunk = 0; chunk < kGroupChunks; ++chunk) {
    if (chunk < register_chunks) load_weights(weights[chunk], chunk);
  }
#pragma unroll 1
  for (int chunk = kGroupChunks; chunk < group.warp_chunks; ++chunk) {
    uint4 chunk_weights[kGates];
    load_weights(chunk_weights, chunk);
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      const int place = ((chunk - kGroupChunks) * kGates + gate) * kGroupThreads + threadIdx.x;
      shared_vectors[place] = chunk_weights[gate];
    }
  }
  const SharedWeights shared_weights{shared_vectors + threadIdx.x,
                                     group.warp_chunks - register_chunks};
  if (threadIdx.x < block_units) {
    const int bias_unit = static_cast<int>(blockIdx.x) * block_units + threadIdx.x;
    float bias[kGates] = {};
    for (int gate = 0; gate < kGates; ++gate) {
      if (bias_unit < hidden && d.bias != nullptr) {
        bias[gate] = static_cast<const float*>(d.bias)[gate * hidden + bias_unit];
      }
    }
    biases[threadIdx.x] = make_float4(bias[0], bias[1], bias[2], bias[3]);
  }

  // Load the initial states of this lane's cells.
  const int first_row = static_cast<int>(blockIdx.y) * group_rows;
  const auto row_of = [&](int cell) {  // counted within the group
    const int column = k_warp + cell * group.k_splits;
    return column / kLaneRows * kTileRows + lane.t * kLaneRows + column % kLaneRows;
  };
  const Storage zero = to_storage<Storage>(0.0f);
  const auto is_real_cell = [&](int cell) {
    return real_unit && row_of(cell) < group_rows && first_row + row_of(cell) < args.batch;
  };
  int length[kGroupCells];
  float c[kGroupCells];
  Storage h[kGroupCells];
#pragma unroll
  for (int cell = 0; cell < kGroupCells; ++cell) {
    const int n = first_row + row_of(cell);
    const int64_t offset = int64_t{n} * hidden + unit;
    length[cell] = is_real_cell(cell) ? row_length(args, n) : 0;
    h[cell] = is_real_cell(cell) ? static_cast<const Storage*>(d.h_0)[offset] : zero;
    c[cell] =
        is_real_cell(cell) ? to_accumulator(static_cast<const Storage*>(d.c_0)[offset]) : 0.0f;
  }
  int group_steps = 0;  // steps of the longest row: all blocks of the group get the same number
  for (int row = 0; row < group_rows; ++row) {
    group_steps = max(group_steps, row_length(args, first_row + row));
  }

  for (int s = 0; s < group_steps; ++s) {
    const int t = reverse ? group_steps - 1 - s : s;

    // Fetch what does not depend on the other blocks.
    float preactivations[kGates][kGroupCells];
    bool reset[kGroupCells];
#pragma unroll
    for (int cell = 0; cell < kGroupCells; ++cell) {
      reset[cell] = false;
      if (t >= length[cell]) continue;
      const int64_t row = int64_t{t} * args.batch + first_row + row_of(cell);
      const float* source =
          static_cast<const float*>(d.preactivations) + row * kGates * hidden + unit;
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        preactivations[gate][cell] = source[gate * hidden];
      }
      reset[cell] = args.reset_mask != nullptr && args.reset_mask[row] != 0;
    }
    // Lane i of a warp loads the reset flag of the warp's i-th row of the tiles.
    const int lane_row = warp + static_cast<int>(threadIdx.x) % kWarpSize * kGroupWarps;
    const bool lane_reset = args.reset_mask != nullptr && lane_row < group_rows &&
                            first_row + lane_row < args.batch &&
                            args.reset_mask[int64_t{t} * args.batch + first_row + lane_row] != 0;

    // Wait until all blocks of the group have published h of the step before.
    if (s > 0) {
      for (int i = threadIdx.x % kWarpSize; i < static_cast<int>(gridDim.x); i += kWarpSize) {
        while (ptx::load_acquire(flags + i) < static_cast<uint32_t>(s)) {
        }
      }
    }
    __syncwarp();

    // Copy h_prev into the tiles, zero where the row is reset.
    for (int i = 0; warp + i * kGroupWarps < group_rows; ++i) {
      const int row = warp + i * kGroupWarps;
      const int n = first_row + row;
      const bool is_reset = __shfl_sync(0xffffffffu, lane_reset, i);
      const bool empty = is_reset || n >= args.batch;
      char* target =
          tiles + row / kTileRows * kTileRows * stride + tile_row(row % kTileRows) * stride;
      const char* source = exchange + (s % 2 * group_rows + row) * exchange_stride;
      for (int piece = threadIdx.x % kWarpSize; piece < row_chunks * 4; piece += kWarpSize) {
        LaneOperands<Operand> operands;
        operands.bits = make_uint4(0, 0, 0, 0);
        if (!empty && s > 0) {
          // NOTE: past L1, which does not see the other blocks' writes.
          operands.bits = __ldcg(reinterpret_cast<const uint4*>(source) + piece);
        } else if (!empty) {
          operands.bits =
              load_operands<Product>(static_cast<const Storage*>(d.h_0) + int64_t{n} * hidden,
                                     piece * kLaneOperands<Operand>, hidden);
        }
        reinterpret_cast<uint4*>(target)[piece] = operands.bits;
      }
    }
    __syncthreads();

    // The recurrent GEMM: multiply this warp's part of W_hh by h_prev.
    for (int tile = 0; tile < group.tiles; ++tile) {
      float sums[kGates][kLaneRows];
      TileProduct<Product, kGates>::template multiply<kGroupChunks>(
          sums, weights, register_chunks, shared_weights,
          tiles + tile * kTileRows * stride + k_warp * group.warp_chunks * kChunkBytes, stride,
          lane);
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j) {
        partials[(tile * kLaneRows + j) * kGroupThreads + threadIdx.x] =
            make_float4(sums[0][j], sums[1][j], sums[2][j], sums[3][j]);
      }
    }
    __syncthreads();

    // The epilogue: add up the parts of K, in their order, apply the cell, and write its outputs.
#pragma unroll
    for (int cell = 0; cell < kGroupCells; ++cell) {
      if (!is_real_cell(cell)) continue;
      const int row_in_group = row_of(cell);
      const int64_t row = int64_t{t} * args.batch + first_row + row_in_group;
      const bool active = t < length[cell];
      if (active) {
        const float4* part = partials + (k_warp + cell * group.k_splits) * kGroupThreads +
                             threadIdx.x - k_warp * kWarpSize;
        float4 a = part[0];
        for (int k = 1; k < group.k_splits; ++k) {
          const float4 b = part[k * kWarpSize];
          a = make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
        }
        const float4 bias = biases[unit_warp * kWarpUnits + lane.g];
        const Gates<float> gates =
            activate_gates<DeviceMath>(a.x + preactivations[kInputGate][cell] + bias.x,
                                       a.y + preactivations[kForgetGate][cell] + bias.y,
                                       a.z + preactivations[kCellGate][cell] + bias.z,
                                       a.w + preactivations[kOutputGate][cell] + bias.w);
        const CellOutput<float> output =
            lstm_cell_forward<DeviceMath>(gates, reset[cell] ? 0.0f : c[cell]);
        c[cell] = output.c;
        h[cell] = to_storage<Storage>(output.h);
        if (d.gates != nullptr) {
          Storage* out = static_cast<Storage*>(d.gates) + row * kGates * hidden + unit;
          out[kInputGate * hidden] = to_storage<Storage>(gates.i);
          out[kForgetGate * hidden] = to_storage<Storage>(gates.f);
          out[kCellGate * hidden] = to_storage<Storage>(gates.g);
          out[kOutputGate * hidden] = to_storage<Storage>(gates.o);
        }
        if (d.cells != nullptr) static_cast<float*>(d.cells)[row * hidden + unit] = c[cell];
      }
      char* target = exchange + ((s + 1) % 2 * group_rows + row_in_group) * exchange_stride;
      reinterpret_cast<Operand*>(target)[unit] = Product::operand(h[cell]);
      const int64_t column = row * args.directions * hidden + unit;
      static_cast<Storage*>(d.y)[column] = active ? h[cell] : zero;
      if (d.cell_states != nullptr) {
        static_cast<Storage*>(d.cell_states)[column] = active ? to_storage<Storage>(c[cell]) : zero;
      }
    }

    // Publish h to the group.
    __syncthreads();
    if (threadIdx.x == 0) ptx::store_release(flags + blockIdx.x, static_cast<uint32_t>(s + 1));
  }

  // Write the final states, and zeros past the end of the group's longest row.
#pragma unroll
  for (int cell = 0; cell < kGroupCells; ++cell) {
    if (!is_real_cell(cell)) continue;
    const int n = ptx::opaque(first_row) + row_of(cell);
    static_cast<Storage*>(d.h_n)[int64_t{n} * hidden + unit] = h[cell];
    static_cast<Storage*>(d.c_n)[int64_t{n} * hidden + unit] = to_storage<Storage>(c[cell]);
    for (int t = group_steps; t < args.steps; ++t) {
      const int64_t column = (int64_t{t} * args.batch + n) * args.directions * hidden + unit;
      static_cast<Storage*>(d.y)[column] = zero;
      if (d.cell_states != nullptr) static_cast<Storage*>(d.cell_states)[column] = zero;
    }
  }
}

}  // namespace lstm_fused::cuda
