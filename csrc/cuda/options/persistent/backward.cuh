// SPDX-License-Identifier: BSD-3-Clause
// The whole backward recurrence in one launch where the cell has options, one block for each tile
// of eight rows and direction: persistent/backward.cuh with another cell. What goes back from a
// step to the h that entered it has passed the mask, and what zoneout kept of h goes beside it; all
// of it goes to the state that a reset put in, where there was one.
#pragma once

#include <cstdint>

#include "cuda/device/ptx.cuh"
#include "cuda/options/persistent/cell.cuh"
#include "cuda/options/persistent/layout.h"
#include "cuda/persistent/backward_cell.cuh"
#include "cuda/persistent/tile.cuh"

namespace lstm_fused::cuda {

template <typename Product, int kChunks>
struct OptionBackwardShared {
  using Operand = typename Product::Operand;
  static constexpr int kThreads = cta_max_threads(kChunks, sizeof(Operand));
  static constexpr int kUnits = chunk_units(kChunks, sizeof(Operand));
  static constexpr int kSharedChunks = cta_option_backward_shared_chunks(kChunks, sizeof(Operand));
  static constexpr int kPlaces = kSharedChunks > 0 ? kSharedChunks : 1;

  alignas(kLaneBytes) char tile[tile_bytes(kChunks * kGates)];  // gradients of the gates
  uint4 weights[kPlaces * 2 * kThreads];
  float2 exchanged_sums[kThreads];
  float4 peephole[kUnits];
  float h_mask[kLaneRows][kThreads];          // of each thread's cells
  float grad_peephole[kPeepholes][kThreads];  // the sums over its cells and all steps
};

template <typename Product, int kChunks>
__global__ void __launch_bounds__(cta_max_threads(kChunks, sizeof(typename Product::Operand)), 1)
    persistent_option_backward_kernel(const __grid_constant__ PersistentBackwardArgs args,
                                      const __grid_constant__ PersistentOptions options) {
  using Storage = typename Product::Storage;
  using Operand = typename Product::Operand;
  using Shared = OptionBackwardShared<Product, kChunks>;
  constexpr int kHalfChunks = kChunks * kGates / 2;
  constexpr int kRegisterChunks = kHalfChunks - Shared::kSharedChunks;
  constexpr int kStride = tile_stride(2 * kHalfChunks);
  extern __shared__ __align__(16) char memory[];
  static_assert(sizeof(Shared) == cta_option_backward_bytes(kChunks, sizeof(Operand)),
                "the bytes that plans ask for");
  Shared& shared = *reinterpret_cast<Shared*>(memory);

  const Lane lane;
  const int hidden = args.hidden_size;
  const bool reverse = blockIdx.y == 1;
  const BackwardRecurrence& d = args.direction[blockIdx.y];
  const PersistentOptionDirection& option = options.direction[blockIdx.y];
  const CellOptionInputs& inputs = option.inputs;
  const int warp = threadIdx.x / kWarpSize;
  const int half = warp % 2;
  const int unit = warp * kWarpUnits + lane.g;
  const bool real_unit = unit < hidden;

  // Load the weights of sixteen units' gradients and this warp's half of the gates.
  // NOTE: they go through the thread's own places in shared memory, in loops that stay loops: the
  // compiler would compute all addresses of one long unrolled load ahead, and run out of registers.
  const SharedWeights shared_weights{&shared.weights[threadIdx.x], Shared::kSharedChunks,
                                     Shared::kThreads};
  static_assert(kRegisterChunks % Shared::kPlaces == 0, "every round of staging fills all places");
  const auto stage = [&](int first_chunk, int chunks) {
    constexpr int kUnits = kChunkOperands<Operand> / kGates;
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
  for (int first = 0; first < kRegisterChunks; first += Shared::kPlaces) {
    stage(first, Shared::kPlaces);
#pragma unroll
    for (int i = 0; i < Shared::kPlaces; ++i) shared_weights.load(weights[first + i], i);
  }
  stage(kRegisterChunks, Shared::kSharedChunks);

  // Load the gradients of the final states of this lane's two cells, and what is read in all steps.
  const int first_row = static_cast<int>(blockIdx.x) * kTileRows;
  const LaneRows rows(first_row, lane, args);
  const int tile_steps = rows.tile_steps();
  const auto exists = [&](int j) { return real_unit && rows.first + j < args.batch; };
  const auto state_of = [&](int j) { return int64_t{rows.first + j} * hidden + unit; };
  const Storage zero = to_storage<Storage>(0.0f);
  int length[kLaneRows];  // 0 where the cell does not exist
  float dh[kLaneRows], dc[kLaneRows];
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    length[j] = real_unit ? rows.length[j] : 0;
    dh[j] = exists(j) ? element_or<Storage>(d.grad_h_n, state_of(j), 0.0f) : 0.0f;
    dc[j] = exists(j) ? element_or<Storage>(d.grad_c_n, state_of(j), 0.0f) : 0.0f;
    shared.h_mask[j][threadIdx.x] =
        exists(j) ? element_or<Storage>(inputs.h_mask, state_of(j), 1.0f) : 1.0f;
  }
#pragma unroll
  for (int i = 0; i < kPeepholes; ++i) shared.grad_peephole[i][threadIdx.x] = 0.0f;
  for (int u = threadIdx.x; u < Shared::kUnits; u += blockDim.x) {
    shared.peephole[u] = unit_peephole<Storage>(inputs, u, hidden);
  }

  // Write zeros past the end of the tile's longest row.
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    if (!exists(j)) continue;
    for (int64_t t = tile_steps; t < args.steps; ++t) {
      const int64_t row = t * args.batch + rows.first + j;
      Storage* out = static_cast<Storage*>(d.grad_gates) + row * kGates * hidden + unit;
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) out[gate * hidden] = zero;
    }
  }

  // Clear the tile, for its padding must be finite.
  for (int i = threadIdx.x * kLaneBytes; i < kTileRows * kStride; i += blockDim.x * kLaneBytes) {
    *reinterpret_cast<uint4*>(shared.tile + i) = make_uint4(0, 0, 0, 0);
  }
  __syncthreads();

  // Backpropagate through time, from the last step of the forward.
  const int next = reverse ? 1 : -1;
  const auto is_active = [&](int j, int t) {
    return static_cast<unsigned>(t) < static_cast<unsigned>(length[j]);
  };
  int t = reverse ? 0 : tile_steps - 1;
  // Where this lane's first cell lies in arrays (T, N, H), as in the forward.
  int64_t cell = (int64_t{t} * args.batch + rows.first) * hidden + unit;
  const int64_t step_cells = int64_t{next} * args.batch * hidden;
  const auto gates_of = [&](int64_t cell) { return cell + (kGates - 1) * (cell - unit); };
  const auto output_of = [&](int64_t cell, int j) {
    const int64_t row = cell - unit + j * hidden;
    return args.directions == 1 ? row + unit : 2 * row + unit;
  };

  // What the step to come reads. c_prev is, for a row that takes no part in this step but in the
  // step before it, the cell state after that one.
  Storage gates[kGates][kLaneRows] = {}, grad_y[kLaneRows] = {};
  float c[kLaneRows] = {}, c_prev[kLaneRows] = {};
  uint8_t reset[kLaneRows] = {};
  KeepFlags<kLaneRows> keep;
  const auto load_step = [&](int t, int64_t cell) {
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      const bool active = is_active(j, t), goes_on = is_active(j, t + next);
      c[j] = c_prev[j];
      load_if(goes_on, c_prev[j],
              static_cast<const float*>(d.cells) + cell + step_cells + j * hidden);
      const Storage* row = static_cast<const Storage*>(d.gates) + gates_of(cell);
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        load_if(active, gates[gate][j], row + (j * kGates + gate) * hidden);
      }
      load_if(active && d.grad_y != nullptr, grad_y[j],
              static_cast<const Storage*>(d.grad_y) + output_of(cell, j));
      keep.load(inputs, j, active, cell + j * hidden);
      if (active && !goes_on) c_prev[j] = element_or<Storage>(d.c_0, state_of(j), 0.0f);
      if (args.reset_mask != nullptr && active) {
        reset[j] = args.reset_mask[int64_t{t} * args.batch + rows.first + j];
      }
    }
  };
  if (tile_steps > 0) {
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      if (is_active(j, t)) c_prev[j] = static_cast<const float*>(d.cells)[cell + j * hidden];
    }
    load_step(t, cell);
  }

  for (int s = 0; s < tile_steps; ++s, t += next, cell += step_cells) {
    // Differentiate the cells; write the gradients of the gates to the tile and to memory.
    const bool was_reset[kLaneRows] = {reset[0] != 0, reset[1] != 0};
    float kept[kLaneRows];  // what goes back beside the product
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      const bool active = is_active(j, t);
      if (d.grad_cell_states != nullptr && active) {
        dc[j] += element_or<Storage>(d.grad_cell_states, output_of(cell, j), 0.0f);
      }
      const float entered =
          was_reset[j] ? element_or<Storage>(inputs.reset_c, state_of(j), 0.0f) : c_prev[j];
      const OptionCellGradient<float> grad = option_cell_backward<DeviceMath>(
          Gates<float>{to_accumulator(gates[kInputGate][j]), to_accumulator(gates[kForgetGate][j]),
                       to_accumulator(gates[kCellGate][j]), to_accumulator(gates[kOutputGate][j])},
          c[j], entered, dh[j] + to_accumulator(grad_y[j]), dc[j],
          option_values(options, inputs, shared.peephole[unit], keep.c[j] != 0, keep.h[j] != 0),
          {});
      kept[j] = grad.h_kept;
      const float step_grads[kGates] = {grad.gates.i, grad.gates.f, grad.gates.g, grad.gates.o};
      Pack<Operand, kGates> pack;
      Storage* out = static_cast<Storage*>(d.grad_gates) + gates_of(cell) + j * kGates * hidden;
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        const Storage rounded = active ? to_storage<Storage>(step_grads[gate]) : zero;
        pack.value[gate] = Product::operand(rounded);
        store_if(exists(j), out + gate * hidden, rounded);
      }
      if (real_unit) {
        char* row = shared.tile + tile_row(lane.t * kLaneRows + j) * kStride;
        reinterpret_cast<Pack<Operand, kGates>*>(row)[unit] = pack;
      }
      if (!active) continue;
      dc[j] = was_reset[j] ? 0.0f : grad.c_prev;
      if (was_reset[j] && option.grad_reset_c != nullptr) {
        option.grad_reset_c[state_of(j)] += grad.c_prev;
      }
      if (option.grad_peephole != nullptr) {
        shared.grad_peephole[0][threadIdx.x] += grad.w_ci;
        shared.grad_peephole[1][threadIdx.x] += grad.w_cf;
        shared.grad_peephole[2][threadIdx.x] += grad.w_co;
      }
    }
    load_step(t + next, cell + step_cells);
    __syncthreads();

    // Multiply W_hhᵀ by the gradients of half of the gates.
    float sums[2][kLaneRows];
    TileProduct<Product, 2>::template multiply<kRegisterChunks, 1>(
        sums, weights, kRegisterChunks, shared_weights,
        shared.tile + half * kHalfChunks * kChunkBytes, kStride, lane);

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
      if (!is_active(j, t)) continue;
      const float product = (half == 0 ? sums[0][j] : sums[1][j]) + others[j];
      dh[j] = fmaf(product, shared.h_mask[j][threadIdx.x], kept[j]);
      if (!was_reset[j]) continue;
      if (option.grad_reset_h != nullptr) option.grad_reset_h[state_of(j)] += dh[j];
      dh[j] = 0.0f;
    }
  }

  // Write the gradients of the initial states, and the sums.
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    if (!exists(j)) continue;
    static_cast<Storage*>(d.grad_h_0)[state_of(j)] = to_storage<Storage>(dh[j]);
    static_cast<Storage*>(d.grad_c_0)[state_of(j)] = to_storage<Storage>(dc[j]);
  }
  if (option.grad_peephole == nullptr || !exists(0)) return;
#pragma unroll
  for (int i = 0; i < kPeepholes; ++i) {
    option.grad_peephole[(int64_t{rows.first} * kPeepholes + i) * hidden + unit] =
        shared.grad_peephole[i][threadIdx.x];
  }
}

}  // namespace lstm_fused::cuda
