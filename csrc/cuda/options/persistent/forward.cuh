// SPDX-License-Identifier: BSD-3-Clause
// The whole sequence in one launch where the cell has options, one block for each tile of eight
// rows and direction: persistent/forward.cuh with another cell. What a tile holds is what the
// recurrent GEMM multiplies: h with the mask on it, or what a reset puts in.
//
// NOTE: a kernel of its own, with one code for all options and both directions. An option costs a
// uniform branch where it is not there, which the plain cell, at two directions' code, is spared;
// and as many instances as sets of options would multiply the module.
#pragma once

#include <cstdint>

#include "cuda/device/ptx.cuh"
#include "cuda/options/persistent/cell.cuh"
#include "cuda/persistent/tile.cuh"

namespace lstm_fused::cuda {

template <typename Product, int kChunks>
struct OptionForwardShared {
  using Operand = typename Product::Operand;
  static constexpr int kThreads = cta_max_threads(kChunks, sizeof(Operand));
  static constexpr int kUnits = chunk_units(kChunks, sizeof(Operand));
  // Chunks of weights that a thread keeps in shared memory: with all of them in registers, the
  // larger instances spill.
  static constexpr int kSharedChunks = kThreads >= 384 ? 1 : 0;
  static constexpr int kPlaces = kSharedChunks > 0 ? kSharedChunks * kGates * kThreads : 1;

  alignas(kLaneBytes) char tiles[2][tile_bytes(kChunks)];  // of even and odd steps
  uint4 weights[kPlaces];
  float4 bias[kUnits], peephole[kUnits];
  // What each thread keeps of its cells, in its own column.
  float h_mask[kLaneRows][kThreads];
  typename Product::Storage h[kLaneRows][kThreads];
};

template <typename Product, int kChunks>
__global__ void __launch_bounds__(cta_max_threads(kChunks, sizeof(typename Product::Operand)), 1)
    persistent_option_forward_kernel(const __grid_constant__ PersistentForwardArgs args,
                                     const __grid_constant__ PersistentOptions options) {
  using Storage = typename Product::Storage;
  using Operand = typename Product::Operand;
  using Shared = OptionForwardShared<Product, kChunks>;
  constexpr int kStride = tile_stride(kChunks);
  constexpr int kRegisterChunks = kChunks - Shared::kSharedChunks;
  // Whether the input GEMM's sums of the next step have the time of a recurrent GEMM to arrive, and
  // not that of a step. NOTE: registers hold them so long where that GEMM is short; where it is
  // long, TF32 spills them.
  constexpr bool kLoadsLate = Shared::kThreads == 384;
  __shared__ Shared shared;

  const Lane lane;
  const int hidden = args.hidden_size;
  const bool reverse = blockIdx.y == 1;
  const ForwardRecurrence& d = args.direction[blockIdx.y];
  const CellOptionInputs& inputs = options.direction[blockIdx.y].inputs;
  const int unit = threadIdx.x / kWarpSize * kWarpUnits + lane.g;
  const bool real_unit = unit < hidden;

  // Load the weights of this lane's unit, and what a unit or a cell reads in every step.
  uint4 weights[kRegisterChunks][kGates];
  const SharedWeights shared_weights{&shared.weights[Shared::kSharedChunks > 0 ? threadIdx.x : 0],
                                     Shared::kSharedChunks, Shared::kThreads};
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
  for (int chunk = 0; chunk < Shared::kSharedChunks; ++chunk) {
    uint4 chunk_weights[kGates];
    load_weights(chunk_weights, kRegisterChunks + chunk);
    shared_weights.store(chunk_weights, chunk);
  }
  for (int u = threadIdx.x; u < Shared::kUnits; u += blockDim.x) {
    shared.bias[u] = unit_bias<Storage>(options.direction[blockIdx.y], u, hidden);
    shared.peephole[u] = unit_peephole<Storage>(inputs, u, hidden);
  }

  // Load the initial states of this lane's two cells.
  const int first_row = static_cast<int>(blockIdx.x) * kTileRows;
  const LaneRows rows(first_row, lane, args);
  const int tile_steps = rows.tile_steps();
  const auto is_real_cell = [&](int j) { return real_unit && rows.first + j < args.batch; };
  const Storage zero = to_storage<Storage>(0.0f);
  int length[kLaneRows];  // 0 where the cell does not exist
  float c[kLaneRows];
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    const int64_t cell = int64_t{rows.first + j} * hidden + unit;
    const bool exists = is_real_cell(j);
    length[j] = real_unit ? rows.length[j] : 0;
    shared.h[j][threadIdx.x] = exists ? static_cast<const Storage*>(d.h_0)[cell] : zero;
    c[j] = exists ? to_accumulator(static_cast<const Storage*>(d.c_0)[cell]) : 0.0f;
    shared.h_mask[j][threadIdx.x] = exists ? element_or<Storage>(inputs.h_mask, cell, 1.0f) : 1.0f;
  }

  // Step s runs at the time that `time_of` gives; a tile begins and ends with its longest row.
  const auto time_of = [&](int s) { return reverse ? tile_steps - 1 - s : s; };
  const int step_time = reverse ? -1 : 1;
  // Whether row j takes part at time t, which may be one past either end of the tile's steps.
  const auto is_active = [&](int j, int t) {
    return static_cast<unsigned>(t) < static_cast<unsigned>(length[j]);
  };
  // Where this lane's first cell lies in arrays (T, N, H), which runs along with the steps; in
  // (T, N, 4H), whose rows hold gates, and in (T, N, L·H) it is found from that.
  // NOTE: one number in the place of a pointer into each array, for which there are no registers.
  int64_t cell = (int64_t{time_of(0)} * args.batch + rows.first) * hidden + unit;
  const int step_rows = step_time * args.batch;
  const auto step_cells = [&] { return int64_t{ptx::opaque(step_rows)} * hidden; };
  const auto gates_of = [&](int64_t cell) { return cell + (kGates - 1) * (cell - unit); };
  const auto output_of = [&](int64_t cell) {
    return args.directions == 1 ? cell : cell + (cell - unit);
  };
  const int output_columns = args.directions * hidden;

  // What the step to come reads: the sums of the input GEMM, zoneout's masks, and whether its rows
  // are reset.
  float input[kGates][kLaneRows] = {};
  KeepFlags<kLaneRows> keep;
  uint8_t reset[kLaneRows] = {};
  const auto load_input = [&](int t, int64_t cell) {
    const float* preactivations = static_cast<const float*>(d.preactivations) + gates_of(cell);
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        load_if(is_active(j, t), input[gate][j], preactivations + (j * kGates + gate) * hidden);
      }
    }
  };
  const auto load_keep = [&](int t, int64_t cell) {
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      keep.load(inputs, j, is_active(j, t), cell + j * hidden);
    }
  };
  const auto load_reset = [&](int t) {
    if (args.reset_mask == nullptr) return;
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      const int64_t row = int64_t{t} * args.batch + rows.first + j;
      reset[j] = is_active(j, t) ? args.reset_mask[row] : uint8_t{0};
    }
  };
  // Puts in what a reset of the step to come does; writes what that step's recurrent GEMM
  // multiplies to a tile; and looks at the resets of time t. NOTE: columns past the units must be
  // finite; there h stays zero.
  const auto enter = [&](char* tile, int t) {
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      Storage& h = shared.h[j][threadIdx.x];
      if (ptx::opaque(static_cast<int>(reset[j])) != 0) {
        const int64_t state = int64_t{rows.first + j} * hidden + unit;
        h = to_storage<Storage>(element_or<Storage>(inputs.reset_h, state, 0.0f));
        c[j] = element_or<Storage>(inputs.reset_c, state, 0.0f);
      }
      const Storage value = to_storage<Storage>(to_accumulator(h) * shared.h_mask[j][threadIdx.x]);
      char* row = tile + tile_row(lane.t * kLaneRows + j) * kStride;
      reinterpret_cast<Operand*>(row)[unit] = Product::operand(value);
    }
    load_reset(t);
  };

  // Write zeros past the end of the tile's longest row.
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    if (!is_real_cell(j)) continue;
    for (int t = tile_steps; t < args.steps; ++t) {
      const int64_t column = (int64_t{t} * args.batch + rows.first + j) * output_columns + unit;
      static_cast<Storage*>(d.y)[column] = zero;
      if (d.cell_states != nullptr) static_cast<Storage*>(d.cell_states)[column] = zero;
    }
  }

  // Clear the tiles, for their padding must be finite, and write what enters the first step.
  for (int i = threadIdx.x * kLaneBytes; i < 2 * tile_bytes(kChunks);
       i += blockDim.x * kLaneBytes) {
    *reinterpret_cast<uint4*>(&shared.tiles[0][0] + i) = make_uint4(0, 0, 0, 0);
  }
  if (tile_steps > 0) {
    load_input(time_of(0), cell);
    load_keep(time_of(0), cell);
    load_reset(time_of(0));
  }
  __syncthreads();
  if (tile_steps > 0) enter(shared.tiles[0], time_of(1));
  __syncthreads();

  int t = time_of(0);
  for (int s = 0; s < tile_steps; ++s, t += step_time, cell += step_cells()) {
    // The recurrent GEMM: multiply W_hh by what enters, and add the input GEMM's sums.
    float a[kGates][kLaneRows];
    const auto multiply_add = [&](const float (&first)[kGates][kLaneRows]) {
      constexpr float kZeros[kGates][kLaneRows] = {};
      TileProduct<Product, kGates>::template multiply_add<kRegisterChunks>(
          a, first, kZeros, weights, kRegisterChunks, shared_weights, shared.tiles[s % 2], kStride,
          lane);
    };
    if constexpr (kLoadsLate) {
      multiply_add({});
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
#pragma unroll
        for (int j = 0; j < kLaneRows; ++j) a[gate][j] += input[gate][j];
      }
    } else {
      multiply_add(input);
      load_input(t + step_time, cell + step_cells());
    }
    const float4 bias = shared.bias[unit];
    // NOTE: or the compiler finds these arguments ahead of the loop, and runs out of registers.
    const int direction = ptx::opaque(static_cast<int>(blockIdx.y));
    const ForwardRecurrence& d = args.direction[direction];
    const CellOptionInputs& inputs = options.direction[direction].inputs;

    // The epilogue: apply the cell, write the outputs and what the backward needs, and then what
    // enters the next step. NOTE: one barrier suffices: a warp writes the buffer that was read a
    // step before, and all warps have passed a barrier since.
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      const OptionValues<float> values =
          option_values(options, inputs, shared.peephole[unit], keep.c[j] != 0, keep.h[j] != 0);
      const OptionCellOutput<float> out = option_cell_forward<DeviceMath>(
          a[kInputGate][j] + bias.x, a[kForgetGate][j] + bias.y, a[kCellGate][j] + bias.z,
          a[kOutputGate][j] + bias.w, c[j], values);
      Storage& h = shared.h[j][threadIdx.x];
      float h_next = out.cell_output;
      if (values.has_keep_h) {
        h_next = fmaf(values.keep_h, to_accumulator(h), (1 - values.keep_h) * h_next);
      }
      const bool active = t < length[j];
      const Storage y = active ? to_storage<Storage>(h_next) : zero;
      if (active) {
        c[j] = out.c;
        h = y;
      }
      Storage* gates_out = static_cast<Storage*>(d.gates) + gates_of(cell) + j * kGates * hidden;
      const bool saves_gates = active && d.gates != nullptr;
      store_if(saves_gates, gates_out, to_storage<Storage>(out.gates.i));
      store_if(saves_gates, gates_out + hidden, to_storage<Storage>(out.gates.f));
      store_if(saves_gates, gates_out + 2 * hidden, to_storage<Storage>(out.gates.g));
      store_if(saves_gates, gates_out + 3 * hidden, to_storage<Storage>(out.gates.o));
      store_if(active && d.cells != nullptr, static_cast<float*>(d.cells) + cell + j * hidden,
               c[j]);
      const int64_t output = output_of(cell) + j * output_columns;
      store_if(is_real_cell(j), static_cast<Storage*>(d.y) + output, y);
      store_if(is_real_cell(j) && d.cell_states != nullptr,
               static_cast<Storage*>(d.cell_states) + output,
               active ? to_storage<Storage>(c[j]) : zero);
    }
    // NOTE: not before the cells: both steps' masks would take registers at once.
    if (kLoadsLate) load_input(t + step_time, cell + step_cells());
    load_keep(t + step_time, cell + step_cells());
    enter(shared.tiles[(s + 1) % 2], t + 2 * step_time);
    __syncthreads();
  }

  // Write the final states.
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    if (!is_real_cell(j)) continue;
    const int64_t state = int64_t{ptx::opaque(rows.first) + j} * hidden + unit;
    static_cast<Storage*>(d.h_n)[state] = shared.h[j][threadIdx.x];
    static_cast<Storage*>(d.c_n)[state] = to_storage<Storage>(c[j]);
  }
}

}  // namespace lstm_fused::cuda
