// SPDX-License-Identifier: BSD-3-Clause
// The whole sequence in one launch, one block for each tile of eight rows and direction.
//
// A warp owns eight hidden units, all four gates of them, and keeps these 32 rows of W_hh in
// registers for all T, or most of them, and the rest in shared memory. Lane 4g + t ends each step
// with the gates of unit g for the rows 2t and 2t + 1, hence the cell needs neither a shuffle nor
// shared memory; only h goes through shared memory, in two buffers, with one barrier a step.
//
// NOTE: the warps split M, the units, and each takes all of K. Splitting K would spare reading the
// tile in every warp (H = 128, bf16: 16 warps x 2 KB = 256 cycles at 128 bytes a cycle, hidden
// behind 512 cycles of mma.sync on sm_80), but then 4H x 8 partial sums of each warp would go
// through shared memory (128 KB, 1024 cycles, and a second barrier).
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/lstm_cell.h"
#include "cuda/device/math.cuh"
#include "cuda/device/ptx.cuh"
#include "cuda/persistent/launch.h"
#include "cuda/persistent/tile.cuh"

namespace lstm_fused::cuda {

template <typename Product, int kChunks>
struct ForwardShared {
  using Operand = typename Product::Operand;
  static constexpr int kThreads = cta_max_threads(kChunks, sizeof(Operand));
  // Chunks of weights that a thread keeps in shared memory. NOTE: 512 threads leave it 128
  // registers, and with all four chunks in them it spills.
  static constexpr int kSharedChunks = kThreads > 384 ? 1 : 0;
  static constexpr int kPlaces = kSharedChunks > 0 ? kSharedChunks * kGates * kThreads : 1;

  alignas(kLaneBytes) char tiles[2][tile_bytes(kChunks)];  // h_prev of even and odd steps
  uint4 weights[kPlaces];
};

// One direction of one tile.
template <typename Product, int kChunks, bool kReverse>
__device__ __forceinline__ void forward_tile(const PersistentForwardArgs& args,
                                             const ForwardRecurrence& d,
                                             ForwardShared<Product, kChunks>& shared) {
  using Storage = typename Product::Storage;
  using Operand = typename Product::Operand;
  constexpr int kStride = tile_stride(kChunks);
  constexpr int kSharedChunks = ForwardShared<Product, kChunks>::kSharedChunks;
  constexpr int kRegisterChunks = kChunks - kSharedChunks;
  // Whether a step's outputs are written in the next step. NOTE: only few threads have registers
  // for that.
  constexpr bool kIsDeferred = ForwardShared<Product, kChunks>::kThreads <= kGroupThreads;
  const Lane lane;
  const int hidden = args.hidden_size;
  const int unit = threadIdx.x / kWarpSize * kWarpUnits + lane.g;
  const bool real_unit = unit < hidden;

  // Load the weights and the biases of this lane's unit.
  uint4 weights[kRegisterChunks][kGates];
  const SharedWeights shared_weights{&shared.weights[kSharedChunks > 0 ? threadIdx.x : 0],
                                     kSharedChunks, ForwardShared<Product, kChunks>::kThreads};
  const auto load_weights = [&](uint4(&chunk_weights)[kGates], int chunk) {
    const int column = chunk * kChunkOperands<Operand> + lane.t * kLaneOperands<Operand>;
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      const Storage* row =
          static_cast<const Storage*>(d.w_hh) + (int64_t{gate} * hidden + unit) * hidden;
      chunk_weights[gate] = load_operands<Product>(row, real_unit ? column : hidden, hidden);
    }
  };
#pragma unroll
  for (int chunk = 0; chunk < kRegisterChunks; ++chunk) load_weights(weights[chunk], chunk);
#pragma unroll 1
  for (int chunk = 0; chunk < kSharedChunks; ++chunk) {
    uint4 chunk_weights[kGates];
    load_weights(chunk_weights, kRegisterChunks + chunk);
    shared_weights.store(chunk_weights, chunk);
  }
  // NOTE: an mma.sync may begin with the bias, but wants it twice. Where registers are scarcest, it
  // is added last.
  constexpr bool kBiasLast = ForwardShared<Product, kChunks>::kThreads == 384;
  float bias[kGates] = {}, first_bias[kGates][kLaneRows] = {};
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) {
    if (real_unit && d.bias != nullptr) {
      bias[gate] = static_cast<const float*>(d.bias)[gate * hidden + unit];
    }
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) first_bias[gate][j] = kBiasLast ? 0.0f : bias[gate];
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
  const auto time_of = [&](int s) { return kReverse ? tile_steps - 1 - s : s; };
  // Whether row j takes part at time t, which may be one past either end of the tile's steps.
  const auto is_active = [&](int j, int t) {
    return static_cast<unsigned>(t) < static_cast<unsigned>(length[j]);
  };
  int real_rows = real_unit ? min(args.batch - rows.first, kLaneRows) : 0;
  if (sizeof(Storage) == 2)
    real_rows = ptx::opaque(real_rows);  // NOTE: else ptxas spills registers
  // Whether row j has outputs at time t, if only zeros.
  const auto has_outputs = [&](int j, int t) {
    const bool is_real = j < real_rows;
    if (!kIsDeferred) return is_real;
    return static_cast<unsigned>(t) < static_cast<unsigned>(is_real ? tile_steps : 0);
  };

  // Pointers to this lane's first cell, which run along with the steps. Outputs are a step behind.
  // NOTE: from a running pointer an access takes one more instruction, its distance, which is that
  // of j and gate; of an index the compiler makes products of 64 bits anew each time.
  constexpr int kStep = kReverse ? -1 : 1;
  const int y_columns = args.directions * hidden;
  const int64_t lane_row = int64_t{time_of(0)} * args.batch + rows.first;
  const int64_t output_row = lane_row - (kIsDeferred ? int64_t{kStep} * args.batch : 0);
  const int64_t step_cells = int64_t{kStep} * args.batch * hidden;
  const int64_t step_columns = int64_t{kStep} * args.batch * y_columns;
  const float* preactivations =
      static_cast<const float*>(d.preactivations) + lane_row * kGates * hidden + unit;
  Storage* gates_out = static_cast<Storage*>(d.gates) + output_row * kGates * hidden + unit;
  float* cells_out = static_cast<float*>(d.cells) + output_row * hidden + unit;
  Storage* y_out = static_cast<Storage*>(d.y) + output_row * y_columns + unit;
  const bool has_resets = args.reset_mask != nullptr;
  const bool has_rare_work = has_resets || d.cell_states != nullptr;

  // The sums of the input GEMM of the step to come.
  float input[kGates][kLaneRows] = {};
  const auto load_input = [&](int t) {
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        load_if(is_active(j, t), input[gate][j], preactivations + (j * kGates + gate) * hidden);
      }
    }
    preactivations += step_cells * kGates;
  };
  // Writes h to a tile as the next step's h_prev. NOTE: columns past the units must be finite;
  // there h stays zero.
  int h_offset[kLaneRows];
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    h_offset[j] = ptx::opaque(tile_row(lane.t * kLaneRows + j) * kStride +
                              unit * static_cast<int>(sizeof(Operand)));
  }
  const auto store_h_prev = [&](char* tile, int j, Storage value) {
    *reinterpret_cast<Operand*>(tile + h_offset[j]) = Product::operand(value);
  };
  // Zeroes the states of rows that are reset in the step to come, and looks at the one after it, at
  // time t. NOTE: bytes, and compared behind a branch that the compiler cannot undo: to look at
  // them is to wait for all loads.
  uint8_t reset[kLaneRows] = {};
  const auto load_reset = [&](int t) {
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      const int64_t row = int64_t{t} * args.batch + rows.first + j;
      reset[j] = is_active(j, t) ? args.reset_mask[row] : uint8_t{0};
    }
  };
  const auto apply_reset = [&](char* tile, int t) {
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      if (ptx::opaque(static_cast<int>(reset[j])) == 0) continue;
      store_h_prev(tile, j, zero);
      c[j] = 0.0f;
    }
    load_reset(t);
  };

  // Writes what the step at time t leaves, while the next one is under way: `step_gates`, `step_c`
  // and h.
  StoragePair<Storage> step_gates[kGates];
  float step_c[kLaneRows] = {};
  const auto write_outputs = [&](int t) {
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      const bool active = is_active(j, t);
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        store_if(active && d.gates != nullptr, gates_out + (j * kGates + gate) * hidden,
                 step_gates[gate][j]);
      }
      store_if(active && d.cells != nullptr, cells_out + j * hidden, step_c[j]);
      store_if(has_outputs(j, t), y_out + j * y_columns, active ? h[j] : zero);
    }
    gates_out += step_cells * kGates;
    cells_out += step_cells;
    y_out += step_columns;
  };

  // Write zeros past the end of the tile's longest row.
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    if (!is_real_cell(j)) continue;
    for (int t = tile_steps; t < args.steps; ++t) {
      const int64_t column = (int64_t{t} * args.batch + rows.first + j) * y_columns + unit;
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
    load_input(time_of(0));
    if (has_resets) load_reset(time_of(0));
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) store_h_prev(shared.tiles[0], j, h[j]);
  if (has_resets && tile_steps > 0) apply_reset(shared.tiles[0], time_of(1));
  __syncthreads();

  int t = time_of(0);
  for (int s = 0; s < tile_steps; ++s, t += kStep) {
    // The recurrent GEMM: multiply W_hh by h_prev, and add the input GEMM's sums and the bias. The
    // next step's sums have a step's time to arrive.
    float a[kGates][kLaneRows];
    TileProduct<Product, kGates>::template multiply_add<kRegisterChunks>(
        a, input, first_bias, weights, kRegisterChunks, shared_weights, shared.tiles[s % 2],
        kStride, lane);
    if (kBiasLast) {
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
#pragma unroll
        for (int j = 0; j < kLaneRows; ++j) a[gate][j] += bias[gate];
      }
    }
    load_input(t + kStep);
    if (kIsDeferred) write_outputs(t - kStep);

    // The epilogue: apply the cell, and store the next h_prev. NOTE: one barrier suffices: a warp
    // writes the buffer that was read a step before, and all warps have passed a barrier since.
    char* const next_tile = shared.tiles[(s + 1) % 2];
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
      store_h_prev(next_tile, j, h[j]);
      step_c[j] = c[j];
    }
    step_gates[kInputGate] = {gates[0].i, gates[1].i};
    step_gates[kForgetGate] = {gates[0].f, gates[1].f};
    step_gates[kCellGate] = {gates[0].g, gates[1].g};
    step_gates[kOutputGate] = {gates[0].o, gates[1].o};
    if (!kIsDeferred) write_outputs(t);
    if (has_rare_work) {
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j) {
        if (d.cell_states == nullptr || !is_real_cell(j)) continue;
        const Storage* y = y_out - (kIsDeferred ? 0 : step_columns);  // of this step
        static_cast<Storage*>(d.cell_states)[y - static_cast<Storage*>(d.y) + j * y_columns] =
            t < length[j] ? to_storage<Storage>(c[j]) : zero;
      }
      if (has_resets) apply_reset(next_tile, t + 2 * kStep);
    }
    __syncthreads();
  }
  if (kIsDeferred) write_outputs(t - kStep);

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
  __shared__ ForwardShared<Product, kChunks> shared;
  if (blockIdx.y == 0) {
    forward_tile<Product, kChunks, false>(args, args.direction[0], shared);
  } else {
    forward_tile<Product, kChunks, true>(args, args.direction[1], shared);
  }
}

}  // namespace lstm_fused::cuda
