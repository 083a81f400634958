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
#include "cuda/persistent/units.cuh"

namespace lstm_fused::cuda {

template <typename Product, int kChunks, bool kIsFull>
struct ForwardShared {
  using Operand = typename Product::Operand;
  static constexpr int kUnits = kIsFull ? full_lane_units(kChunks, false) : 1;
  static constexpr int kThreads = cta_max_threads(kChunks, sizeof(Operand)) / kUnits;
  // Chunks of weights that a thread keeps in shared memory. NOTE: 512 threads leave it 128
  // registers, and with all four chunks in them it spills.
  static constexpr int kSharedChunks = kThreads > 384 ? 1 : 0;
  static constexpr int kPlaces = kSharedChunks > 0 ? kSharedChunks * kGates * kThreads : 1;

  alignas(kLaneBytes) char tiles[2][tile_bytes(kChunks)];  // h_prev of even and odd steps
  uint4 weights[kPlaces];
};

// One direction of one tile.
template <typename Product, int kChunks, bool kIsFull, bool kMovesPairs, bool kReverse>
__device__ __forceinline__ void forward_tile(const PersistentForwardArgs& args,
                                             const ForwardRecurrence& d,
                                             ForwardShared<Product, kChunks, kIsFull>& shared) {
  using Storage = typename Product::Storage;
  using Operand = typename Product::Operand;
  constexpr int kUnits = ForwardShared<Product, kChunks, kIsFull>::kUnits;
  using Units = UnitPack<Storage, kUnits>;
  constexpr int kStride = tile_stride(kChunks);
  constexpr int kSharedChunks = ForwardShared<Product, kChunks, kIsFull>::kSharedChunks;
  constexpr int kRegisterChunks = kChunks - kSharedChunks;
  // Whether a step's outputs are written in the next step. NOTE: only few threads have registers
  // for that.
  constexpr bool kIsDeferred = kUnits == 2;
  // NOTE: the product by FFMA leaves no registers for the next step's sums of the input GEMM, which
  // are asked for behind the cells and arrive in time, nor for pointers to the tiles, which other
  // products take in place of s % 2.
  constexpr bool kIsFfma = std::is_same_v<Product, F32Product>;
  const Lane lane;
  const int hidden = kIsFull ? chunk_units(kChunks, sizeof(Operand)) : args.hidden_size;
  const int unit = (threadIdx.x / kWarpSize * kWarpUnits + lane.g) * kUnits;  // the first one
  const bool real_unit = unit < hidden;

  // Load the weights and the biases of this lane's unit.
  uint4 weights[kRegisterChunks][kUnits * kGates];
  const SharedWeights shared_weights{&shared.weights[kSharedChunks > 0 ? threadIdx.x : 0],
                                     kSharedChunks,
                                     ForwardShared<Product, kChunks, kIsFull>::kThreads};
  const auto load_weights = [&](uint4(&chunk_weights)[kUnits* kGates], int chunk) {
    const int column = chunk * kChunkOperands<Operand> + lane.t * kLaneOperands<Operand>;
#pragma unroll
    for (int m = 0; m < kUnits * kGates; ++m) {
      const Storage* row = static_cast<const Storage*>(d.w_hh) +
                           (int64_t{m % kGates} * hidden + unit + m / kGates) * hidden;
      chunk_weights[m] = load_operands<Product>(row, real_unit ? column : hidden, hidden);
    }
  };
#pragma unroll
  for (int chunk = 0; chunk < kRegisterChunks; ++chunk) load_weights(weights[chunk], chunk);
#pragma unroll 1
  for (int chunk = 0; chunk < kSharedChunks; ++chunk) {
    uint4 chunk_weights[kUnits * kGates];
    load_weights(chunk_weights, kRegisterChunks + chunk);
    shared_weights.store(chunk_weights, chunk);
  }
  BiasedGates<Storage> biased[kUnits];
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    float bias[kGates] = {};
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      if (!real_unit || d.bias == nullptr) continue;
      bias[gate] = static_cast<const float*>(d.bias)[gate * hidden + unit + u];
    }
    biased[u] = BiasedGates<Storage>(bias);
  }

  const int first_row = static_cast<int>(blockIdx.x) * kTileRows;
  const LaneRows rows(first_row, lane, args);
  const int tile_steps = rows.tile_steps();

  // Load the initial states of this lane's cells.
  const auto is_real_row = [&](int j) { return real_unit && rows.first + j < args.batch; };
  const Units zeros;
  int length[kLaneRows];  // 0 where the cells do not exist
  float c[kLaneRows][kUnits];
  Units h[kLaneRows];
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    const int64_t cell = int64_t{rows.first + j} * hidden + unit;
    length[j] = real_unit ? rows.length[j] : 0;
    float h_0[kUnits] = {};
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      c[j][u] = 0.0f;
      if (!is_real_row(j)) continue;
      h_0[u] = to_accumulator(static_cast<const Storage*>(d.h_0)[cell + u]);
      c[j][u] = to_accumulator(static_cast<const Storage*>(d.c_0)[cell + u]);
    }
    h[j] = Units(h_0);
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
  float input[kGates][kLaneRows][kUnits] = {};
  const auto load_input = [&](int t) {
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        load_units_if<kMovesPairs>(is_active(j, t), input[gate][j],
                                   preactivations + (j * kGates + gate) * hidden);
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
  const auto store_h_prev = [&](char* tile, int j, const Units& units) {
    units.template store_operands<Product>(tile + h_offset[j]);
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
      store_h_prev(tile, j, zeros);
#pragma unroll
      for (int u = 0; u < kUnits; ++u) c[j][u] = 0.0f;
    }
    load_reset(t);
  };

  // Writes what the step at time t leaves, while the next one is under way: `step_gates`,
  // `step_c` and h.
  Units step_gates[kGates][kLaneRows];
  float step_c[kLaneRows][kUnits] = {};
  const auto write_outputs = [&](int t) {
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      const bool active = is_active(j, t);
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        step_gates[gate][j].template store_if<kMovesPairs>(
            active && d.gates != nullptr, gates_out + (j * kGates + gate) * hidden);
      }
      store_units_if<kMovesPairs>(active && d.cells != nullptr, cells_out + j * hidden, step_c[j]);
      const Units y = active ? h[j] : zeros;
      y.template store_if<kMovesPairs>(has_outputs(j, t), y_out + j * y_columns);
    }
    gates_out += step_cells * kGates;
    cells_out += step_cells;
    y_out += step_columns;
  };

  // Write zeros past the end of the tile's longest row.
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    if (!is_real_row(j)) continue;
    for (int t = tile_steps; t < args.steps; ++t) {
      const int64_t column = (int64_t{t} * args.batch + rows.first + j) * y_columns + unit;
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        static_cast<Storage*>(d.y)[column + u] = zeros[u];
        if (d.cell_states == nullptr) continue;
        static_cast<Storage*>(d.cell_states)[column + u] = zeros[u];
      }
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
  char *tile = shared.tiles[0], *next_tile = shared.tiles[1];  // of this step's and the next h_prev
  for (int s = 0; s < tile_steps; ++s, t += kStep) {
    if (kIsFfma) {
      tile = shared.tiles[s % 2];
      next_tile = shared.tiles[(s + 1) % 2];
    }
    // The recurrent GEMM: multiply W_hh by h_prev, and add the input GEMM's sums. The next step's
    // sums have a step's time to arrive.
    float a[kUnits * kGates][kLaneRows];
    TileProduct<Product, kUnits * kGates>::template multiply<kRegisterChunks>(
        a, weights, kRegisterChunks, shared_weights, tile, kStride, lane);
#pragma unroll
    for (int m = 0; m < kUnits * kGates; ++m) {
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j) a[m][j] += input[m % kGates][j][m / kGates];
    }
    if (!kIsFfma) load_input(t + kStep);
    if (kIsDeferred) write_outputs(t - kStep);

    // The epilogue: apply the cell, and store the next h_prev. NOTE: one barrier suffices: a warp
    // writes the buffer that was read a step before, and all warps have passed a barrier since.
    float gates[kGates][kLaneRows][kUnits];
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j) {
#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
          gates[gate][j][u] = biased[u].exponential(gate, a[u * kGates + gate][j]);
        }
      }
    }
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j) {
#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
          float& value = gates[gate][j][u];
          value = biased[u].activate(gate, a[u * kGates + gate][j], value);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      float step_h[kUnits];
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const Gates<float> cell_gates = {gates[kInputGate][j][u], gates[kForgetGate][j][u],
                                         gates[kCellGate][j][u], gates[kOutputGate][j][u]};
        const CellOutput<float> cell = lstm_cell_forward<CellMath<Storage>>(cell_gates, c[j][u]);
        step_h[u] = cell.h;
        if (t < length[j]) c[j][u] = cell.c;
        step_c[j][u] = c[j][u];
      }
      if (t < length[j]) h[j] = Units(step_h);
      store_h_prev(next_tile, j, h[j]);
    }
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) step_gates[gate][j] = Units(gates[gate][j]);
    }
    if (kIsFfma) load_input(t + kStep);
    if (!kIsDeferred) write_outputs(t);
    if (has_rare_work) {
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j) {
        if (d.cell_states == nullptr || !is_real_row(j)) continue;
        const Storage* y = y_out - (kIsDeferred ? 0 : step_columns);  // of this step
        Storage* states = static_cast<Storage*>(d.cell_states) + (y - static_cast<Storage*>(d.y));
#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
          states[j * y_columns + u] = t < length[j] ? to_storage<Storage>(c[j][u]) : zeros[u];
        }
      }
      if (has_resets) apply_reset(next_tile, t + 2 * kStep);
    }
    if (!kIsFfma) {
      char* const read_tile = tile;
      tile = next_tile;
      next_tile = read_tile;
    }
    __syncthreads();
  }
  if (kIsDeferred) write_outputs(t - kStep);

  // Write the final states.
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    if (!is_real_row(j)) continue;
    const int64_t cell = int64_t{ptx::opaque(rows.first) + j} * hidden + unit;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      static_cast<Storage*>(d.h_n)[cell + u] = h[j][u];
      static_cast<Storage*>(d.c_n)[cell + u] = to_storage<Storage>(c[j][u]);
    }
  }
}

// NOTE: each direction has code of its own, for then its pointers are constants of the launch,
// which instructions take from the constant bank; code for both would hold them in registers.
template <typename Product, int kChunks, bool kIsFull, bool kMovesPairs>
__global__ void __launch_bounds__(ForwardShared<Product, kChunks, kIsFull>::kThreads, 1)
    persistent_forward_kernel(const PersistentForwardArgs args) {
  __shared__ ForwardShared<Product, kChunks, kIsFull> shared;
  if (blockIdx.y == 0) {
    forward_tile<Product, kChunks, kIsFull, kMovesPairs, false>(args, args.direction[0], shared);
  } else {
    forward_tile<Product, kChunks, kIsFull, kMovesPairs, true>(args, args.direction[1], shared);
  }
}

}  // namespace lstm_fused::cuda
