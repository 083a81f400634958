// SPDX-License-Identifier: BSD-3-Clause
// The whole backward recurrence in one launch, one block for each tile of eight rows and direction.
//
// Each step turns the gradients of h and c into those of the gates, then multiplies these by W_hhᵀ
// for the gradient of the step's h_prev. A warp keeps its eight units' cells, two in each lane as
// in the forward, but mma.sync makes sixteen units of that gradient at once: so two neighbouring
// warps work on the same sixteen units, each on one half of K, the gates, and swap sums of eight
// units.
//
// NOTE: one warp for sixteen units and all of K would spare the swap and its barrier, but needs
// twice the registers of weights (192 of 32-bit weights at H = 96).
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/device/ptx.cuh"
#include "cuda/persistent/backward_cell.cuh"
#include "cuda/persistent/backward_full.cuh"
#include "cuda/persistent/launch.h"
#include "cuda/persistent/tile.cuh"

namespace lstm_fused::cuda {

template <typename Product, int kChunks>
struct BackwardShared {
  using Operand = typename Product::Operand;
  static constexpr int kThreads = cta_max_threads(kChunks, sizeof(Operand));
  // Chunks of weights that a thread keeps in shared memory. NOTE: with all of them in registers,
  // the larger instances spill.
  static constexpr int kSharedChunks = kChunks == kCtaChunks<Operand>[1] ? 2 : 0;
  static constexpr int kPlaces = kSharedChunks > 0 ? kSharedChunks : 1;

  alignas(kLaneBytes) char tile[tile_bytes(kChunks * kGates)];  // gradients of the gates
  uint4 weights[kPlaces * 2 * kThreads];
  float2 exchanged_sums[kThreads];
};

// Whether the code behind the loop of time steps finds anew which cells exist, where otherwise a
// register keeps it through the loop. NOTE: for float16 ptxas spills that register from sm_120 on,
// and another one for sm_90 if it is not kept.
template <typename Product>
__device__ constexpr bool finds_cells_anew() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
  return std::is_same_v<Product, F16Product>;
#else
  return false;
#endif
}

// One direction of one tile.
template <typename Product, int kChunks, bool kReverse>
__device__ __forceinline__ void backward_tile(const PersistentBackwardArgs& args,
                                              const BackwardRecurrence& d,
                                              BackwardShared<Product, kChunks>& shared) {
  using Storage = typename Product::Storage;
  using Operand = typename Product::Operand;
  constexpr int kHalfChunks = kChunks * kGates / 2;
  static_assert(kHalfChunks * 2 == kChunks * kGates, "two warps halve the chunks of the gates");
  constexpr int kSharedChunks = BackwardShared<Product, kChunks>::kSharedChunks;
  constexpr int kRegisterChunks = kHalfChunks - kSharedChunks;
  constexpr int kStride = tile_stride(2 * kHalfChunks);

  const Lane lane;
  const int hidden = args.hidden_size;
  const int warp = threadIdx.x / kWarpSize;
  const int half = warp % 2;
  const int unit = warp * kWarpUnits + lane.g;
  const bool real_unit = unit < hidden;

  // Load the weights of sixteen units' gradients and this warp's half of the gates.
  // NOTE: they go through the thread's own places in shared memory, in loops that stay loops: the
  // compiler would compute all addresses of one long unrolled load ahead, and run out of registers.
  constexpr int kPlaces = BackwardShared<Product, kChunks>::kPlaces;
  const SharedWeights shared_weights{&shared.weights[threadIdx.x], kSharedChunks,
                                     BackwardShared<Product, kChunks>::kThreads};
  static_assert(kRegisterChunks % kPlaces == 0, "every round of the staging fills all places");
  const auto stage = [&](int first_chunk, int chunks) {
    constexpr int kUnits = kChunkOperands<Operand> / kGates;
    static_assert(kLaneOperands<Operand> % kGates == 0, "a lane's vector holds whole units");
    const int output = (warp - half) * kWarpUnits + lane.g;
    const int first_unit =
        (half * kHalfChunks + first_chunk) * kUnits + lane.t * kLaneOperands<Operand> / kGates;
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const int chunk_unit = first_unit + chunk * kUnits;
      uint4 vectors[2];
      load_weight_columns<Product>(
          vectors, static_cast<const Storage*>(d.w_hh) + int64_t{chunk_unit} * hidden + output,
          chunk_unit, output, hidden);
      shared_weights.store(vectors, chunk);
    }
  };
  uint4 weights[kRegisterChunks][2];
#pragma unroll
  for (int first = 0; first < kRegisterChunks; first += kPlaces) {
    stage(first, kPlaces);
#pragma unroll
    for (int i = 0; i < kPlaces; ++i) {
      shared_weights.load(weights[first + i], i);
    }
  }
  stage(kRegisterChunks, kSharedChunks);

  const int first_row = static_cast<int>(blockIdx.x) * kTileRows;
  const LaneRows rows(first_row, lane, args);
  const int tile_steps = rows.tile_steps();

  // Load the gradients of the final states.
  LaneCells<Storage, kLaneRows, 1> lane_cells(args, d, kReverse, rows.first, unit, kLaneRows);
  const bool exists[kLaneRows] = {lane_cells.exists(0), lane_cells.exists(1)};
  float dh[kLaneRows], dc[kLaneRows];
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    lane_cells.length[j] = real_unit ? rows.length[j] : 0;
    const int64_t cell = int64_t{rows.first + j} * hidden + unit;
    dh[j] = exists[j] && d.grad_h_n != nullptr
                ? to_accumulator(static_cast<const Storage*>(d.grad_h_n)[cell])
                : 0.0f;
    dc[j] = exists[j] && d.grad_c_n != nullptr
                ? to_accumulator(static_cast<const Storage*>(d.grad_c_n)[cell])
                : 0.0f;
  }

  // Write zeros past the end of the tile's longest row.
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    if (!exists[j]) continue;
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

  // Backpropagate through time, from the last step of the forward.
  const int first_t = kReverse ? 0 : tile_steps - 1;
  constexpr int kNext = kReverse ? 1 : -1;
  const auto in_range = [&](int t) { return kReverse ? t < tile_steps : t >= 0; };
  BackwardStep<Storage, kLaneRows> step = {};
  if (in_range(first_t)) {
    lane_cells.begin(step, first_t);
    lane_cells.load(step, first_t);
  }

  // Where this lane's cells lie in the tile.
  int tile_offset[kLaneRows];
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    tile_offset[j] = ptx::opaque(tile_row(lane.t * kLaneRows + j) * kStride +
                                 unit * static_cast<int>(sizeof(Pack<Operand, kGates>)));
  }

  // NOTE: in 32 bits there are no registers to keep them.
  constexpr bool kIsDeferred = sizeof(Storage) == 2;
  for (int t = first_t; in_range(t); t += kNext) {
    const bool was_reset[kLaneRows] = {step.is_reset(0), step.is_reset(1)};

    // Differentiate the cells; write the gradients of the gates to the tile and, if they can be
    // kept until the products are under way, then to memory.
    lane_cells.add_cell_gradients(dc, t);
    Storage grad[kLaneRows][kGates];
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      backward_cell(grad[j], step, j, t < lane_cells.length[j], dh[j], dc[j]);
      if (real_unit) {
        Pack<Operand, kGates> pack;
#pragma unroll
        for (int gate = 0; gate < kGates; ++gate) {
          pack.value[gate] = Product::operand(grad[j][gate]);
        }
        *reinterpret_cast<Pack<Operand, kGates>*>(shared.tile + tile_offset[j]) = pack;
      }
    }
    const auto store_gradients = [&] {
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j) lane_cells.store(j, grad[j]);
      lane_cells.go_on();
    };
    if (!kIsDeferred) store_gradients();
    lane_cells.load(step, t + kNext);
    __syncthreads();

    // Multiply W_hhᵀ by the gradients of half of the gates.
    float sums[2][kLaneRows];
    TileProduct<Product, 2>::template multiply<kRegisterChunks, 1>(
        sums, weights, kRegisterChunks, shared_weights,
        shared.tile + half * kHalfChunks * kChunkBytes, kStride, lane);
    if (kIsDeferred) store_gradients();

    // Swap: keep the sums of this warp's eight units, pass the others to the other warp of the
    // pair. NOTE: the tile is free for the next step after this barrier, and `exchanged_sums` after
    // that step's first one.
    shared.exchanged_sums[threadIdx.x] =
        half == 0 ? make_float2(sums[1][0], sums[1][1]) : make_float2(sums[0][0], sums[0][1]);
    __syncthreads();
    const float2 other = shared.exchanged_sums[threadIdx.x ^ kWarpSize];
    const float others[kLaneRows] = {other.x, other.y};
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      if (t >= lane_cells.length[j]) continue;
      const float own = half == 0 ? sums[0][j] : sums[1][j];
      dh[j] = was_reset[j] ? 0.0f : own + others[j];
    }
  }

  // Write the gradients of the initial states.
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    if (!finds_cells_anew<Product>() && !exists[j]) continue;
    const int row = ptx::opaque(rows.first) + j;
    if (finds_cells_anew<Product>() && (!real_unit || row >= args.batch)) continue;
    const int64_t cell = int64_t{row} * hidden + unit;
    static_cast<Storage*>(d.grad_h_0)[cell] = to_storage<Storage>(dh[j]);
    static_cast<Storage*>(d.grad_c_0)[cell] = to_storage<Storage>(dc[j]);
  }
}

// NOTE: each direction has code of its own, for then its pointers are constants of the launch,
// which instructions take from the constant bank; code for both would hold them in registers.
template <typename Product, int kChunks, bool kIsFull, bool kMovesPairs>
__global__ void __launch_bounds__(cta_max_threads(kChunks, sizeof(typename Product::Operand)) /
                                      (kIsFull ? kFullUnits : 1),
                                  1) persistent_backward_kernel(const PersistentBackwardArgs args) {
  if constexpr (kIsFull) {
    __shared__ FullBackwardShared<kChunks> shared;
    if (blockIdx.y == 0) {
      full_backward_tile<Product, kChunks, kMovesPairs, false>(args, args.direction[0], shared);
    } else {
      full_backward_tile<Product, kChunks, kMovesPairs, true>(args, args.direction[1], shared);
    }
  } else {
    __shared__ BackwardShared<Product, kChunks> shared;
    if (blockIdx.y == 0) {
      backward_tile<Product, kChunks, false>(args, args.direction[0], shared);
    } else {
      backward_tile<Product, kChunks, true>(args, args.direction[1], shared);
    }
  }
}

}  // namespace lstm_fused::cuda
