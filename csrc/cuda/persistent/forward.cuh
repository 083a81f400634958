// SPDX-License-Identifier: BSD-3-Clause
// The whole sequence in one launch, one block for each tile of eight rows and direction.
//
// A warp owns eight hidden units, all four gates of them, and keeps these 32 rows of W_hh in
// registers for all T. Lane 4g + t ends each step with the gates of unit g for the rows 2t and
// 2t + 1, hence the cell needs neither a shuffle nor shared memory; only h goes through shared
// memory, in two buffers, with one barrier a step.
//
// NOTE: the warps split M, the units, and each takes all of K. Splitting K would spare reading the
// tile in every warp (H = 128, bf16: 16 warps x 2 KB = 256 cycles at 128 bytes a cycle, hidden
// behind 512 cycles of mma.sync on sm_80), but then 4H x 8 partial sums of each warp would go
// through shared memory (128 KB, 1024 cycles, and a second barrier).
#pragma once

#include <cstdint>

#include "common/lstm_cell.h"
#include "cuda/device/math.cuh"
#include "cuda/device/ptx.cuh"
#include "cuda/persistent/launch.h"
#include "cuda/persistent/tile.cuh"

namespace lstm_fused::cuda {

template <int kChunks, int kUnits>
struct ForwardShared {
  alignas(kLaneBytes) char tiles[2][tile_bytes(kChunks)];  // h_prev of even and odd steps
  float bias[kGates * kUnits];
};

// One direction of one tile.
template <typename Product, int kChunks, bool kReverse, typename Shared>
__device__ __forceinline__ void forward_tile(const PersistentForwardArgs& args,
                                             const ForwardRecurrence& d, Shared& shared) {
  using Storage = typename Product::Storage;
  using Operand = typename Product::Operand;
  constexpr int kStride = tile_stride(kChunks);
  const Lane lane;
  const int hidden = args.hidden_size;
  const int unit = threadIdx.x / kWarpSize * kWarpUnits + lane.g;
  const bool real_unit = unit < hidden;

  // Load the weights of this lane's unit, and the bias of all.
  uint4 weights[kChunks][kGates];
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) {
    const Storage* row =
        static_cast<const Storage*>(d.w_hh) + (int64_t{gate} * hidden + unit) * hidden;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int column = chunk * kChunkOperands<Operand> + lane.t * kLaneOperands<Operand>;
      weights[chunk][gate] = load_operands<Product>(row, real_unit ? column : hidden, hidden);
    }
  }
  for (int i = threadIdx.x; i < kGates * hidden; i += blockDim.x) {
    shared.bias[i] = d.bias != nullptr ? static_cast<const float*>(d.bias)[i] : 0.0f;
  }

  const int first_row = static_cast<int>(blockIdx.x) * kTileRows;
  const LaneRows rows(first_row, lane, args);
  const int tile_steps = rows.tile_steps();

  // Load the initial states of this lane's two cells.
  const auto is_real_cell = [&](int j) { return real_unit && rows.first + j < args.batch; };
  const Storage zero = to_storage<Storage>(0.0f);
  int length[kLaneRows];  // 0 where the cell does not exist
  float c[kLaneRows];
  Storage h[kLaneRows];
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    const int64_t cell = int64_t{rows.first + j} * hidden + unit;
    length[j] = real_unit ? rows.length[j] : 0;
    h[j] = is_real_cell(j) ? static_cast<const Storage*>(d.h_0)[cell] : zero;
    c[j] = is_real_cell(j) ? to_accumulator(static_cast<const Storage*>(d.c_0)[cell]) : 0.0f;
  }

  // Step s runs at the time that `time_of` gives; a tile begins and ends with its longest row.
  // NOTE: addresses are those of the tile's first row, which all lanes share and the uniform
  // registers hold, and 32-bit offsets of a lane.
  const auto time_of = [&](int s) { return kReverse ? tile_steps - 1 - s : s; };
  const auto first_row_at = [&](int t) { return int64_t{t} * args.batch + first_row; };
  const auto lane_offset = [&](int j, int row_elements) {
    return static_cast<uint32_t>((lane.t * kLaneRows + j) * row_elements + unit);
  };
  float preactivations[kGates][kLaneRows] = {};
  const auto load_preactivations = [&](int t) {
    const float* first =
        static_cast<const float*>(d.preactivations) + first_row_at(t) * kGates * hidden;
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      if (t >= length[j]) continue;
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        preactivations[gate][j] = (first + gate * hidden)[lane_offset(j, kGates * hidden)];
      }
    }
  };
  // Whether the next step is reset, where the row takes part in it. NOTE: bytes, which are not
  // looked at before the step's end.
  uint8_t reset[kLaneRows] = {};
  const auto load_reset = [&](int t) {
    if (args.reset_mask == nullptr) return;
    const uint8_t* first = args.reset_mask + first_row_at(t);
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      reset[j] = t < length[j] ? first[lane.t * kLaneRows + j] : uint8_t{0};
    }
  };
  // Writes h to a tile as the next step's h_prev, zero where that step is reset.
  const auto store_h_prev = [&](char* tile) {
    if (!real_unit) return;
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      char* row = tile + tile_row(lane.t * kLaneRows + j) * kStride;
      reinterpret_cast<Operand*>(row)[unit] = Product::operand(reset[j] == 0 ? h[j] : zero);
    }
  };

  // Write zeros past the end of the tile's longest row.
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    if (!is_real_cell(j)) continue;
    for (int t = tile_steps; t < args.steps; ++t) {
      const int64_t column =
          (first_row_at(t) + lane.t * kLaneRows + j) * args.directions * hidden + unit;
      static_cast<Storage*>(d.y)[column] = zero;
      if (d.cell_states != nullptr) static_cast<Storage*>(d.cell_states)[column] = zero;
    }
  }

  // Clear the tiles, for their padding must be finite, and write the first step's h_prev.
  for (int i = threadIdx.x * kLaneBytes; i < 2 * tile_bytes(kChunks);
       i += blockDim.x * kLaneBytes) {
    *reinterpret_cast<uint4*>(&shared.tiles[0][0] + i) = make_uint4(0, 0, 0, 0);
  }
  if (tile_steps > 0) {
    load_preactivations(time_of(0));
    load_reset(time_of(0));
  }
  __syncthreads();
  store_h_prev(shared.tiles[0]);
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    if (reset[j] != 0) c[j] = 0.0f;
    reset[j] = 0;
  }
  __syncthreads();

  for (int s = 0; s < tile_steps; ++s) {
    const int t = time_of(s);
    const bool last = s + 1 == tile_steps;
    if (!last) load_reset(time_of(s + 1));

    // The recurrent GEMM: multiply W_hh by h_prev.
    float a[kGates][kLaneRows];
    TileProduct<Product, kGates>::template multiply<kChunks>(a, weights, kChunks, SharedWeights{},
                                                             shared.tiles[s % 2], kStride, lane);

    // Add the input GEMM's sums and the bias, and fetch the next step's sums, which have a step's
    // time to arrive.
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      const float bias = real_unit ? shared.bias[gate * hidden + unit] : 0.0f;
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j) a[gate][j] += preactivations[gate][j] + bias;
    }
    if (!last) load_preactivations(time_of(s + 1));

    // The epilogue: apply the cell, and store the next h_prev. NOTE: one barrier suffices: a warp
    // writes the buffer that was read a step before, and all warps have passed a barrier since.
    Gates<float> gates[kLaneRows];
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      gates[j] = DeviceMath::activate(a[kInputGate][j], a[kForgetGate][j], a[kCellGate][j],
                                      a[kOutputGate][j]);
      const CellOutput<float> cell = lstm_cell_forward<DeviceMath>(gates[j], c[j]);
      if (t < length[j]) {
        c[j] = cell.c;
        h[j] = to_storage<Storage>(cell.h);
      }
    }
    store_h_prev(shared.tiles[(s + 1) % 2]);

    // Write the outputs and what the backward needs.
    const int64_t first = first_row_at(t);
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      const bool active = t < length[j];
      if (active && d.gates != nullptr) {
        Storage* out = static_cast<Storage*>(d.gates) + first * kGates * hidden;
        const uint32_t offset = lane_offset(j, kGates * hidden);
        (out + kInputGate * hidden)[offset] = to_storage<Storage>(gates[j].i);
        (out + kForgetGate * hidden)[offset] = to_storage<Storage>(gates[j].f);
        (out + kCellGate * hidden)[offset] = to_storage<Storage>(gates[j].g);
        (out + kOutputGate * hidden)[offset] = to_storage<Storage>(gates[j].o);
      }
      if (active && d.cells != nullptr) {
        (static_cast<float*>(d.cells) + first * hidden)[lane_offset(j, hidden)] = c[j];
      }
      if (is_real_cell(j)) {
        const int64_t columns = int64_t{args.directions} * hidden;
        const uint32_t offset = lane_offset(j, static_cast<int>(columns));
        (static_cast<Storage*>(d.y) + first * columns)[offset] = active ? h[j] : zero;
        if (d.cell_states != nullptr) {
          (static_cast<Storage*>(d.cell_states) + first * columns)[offset] =
              active ? to_storage<Storage>(c[j]) : zero;
        }
      }
      if (reset[j] != 0) c[j] = 0.0f;
      reset[j] = 0;
    }
    __syncthreads();
  }

  // Write the final states.
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    if (!is_real_cell(j)) continue;
    const int64_t cell = int64_t{ptx::opaque(rows.first) + j} * hidden + unit;
    static_cast<Storage*>(d.h_n)[cell] = h[j];
    static_cast<Storage*>(d.c_n)[cell] = to_storage<Storage>(c[j]);
  }
}

// NOTE: each direction has code of its own, for then its pointers are constants of the launch,
// which instructions take from the constant bank; code for both would hold them in registers.
template <typename Product, int kChunks>
__global__ void __launch_bounds__(cta_max_threads(kChunks, sizeof(typename Product::Operand)), 1)
    persistent_forward_kernel(const PersistentForwardArgs args) {
  __shared__ ForwardShared<kChunks, chunk_units(kChunks, sizeof(typename Product::Operand))> shared;
  if (blockIdx.y == 0) {
    forward_tile<Product, kChunks, false>(args, args.direction[0], shared);
  } else {
    forward_tile<Product, kChunks, true>(args, args.direction[1], shared);
  }
}

}  // namespace lstm_fused::cuda
