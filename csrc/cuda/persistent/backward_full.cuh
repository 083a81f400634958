// SPDX-License-Identifier: BSD-3-Clause
// The backward recurrence in one launch, one block for each tile and direction, as in backward.cuh,
// where all warps are full and a thread's registers hold the weights of sixteen units and all of K.
//
// A lane has two neighbouring units and two rows: rows g and g + 8 of mma.sync's sixteen are units
// 2g and 2g + 1, so that a lane ends with the gradients of h_prev of its own cells, and a row's two
// elements move together. In a tile, two units' gates lie together as a lane has them: K = 8·(unit
// / 2) + 2·gate + unit % 2.
//
// What a step's gradients are products of is computed ahead, beside the products of the step before
// it: from these to the next tile there are a sum, two products and a rounding.
#pragma once

#include <cstdint>

#include "common/lstm_cell.h"
#include "cuda/device/math.cuh"
#include "cuda/device/ptx.cuh"
#include "cuda/persistent/launch.h"
#include "cuda/persistent/tile.cuh"
#include "cuda/persistent/units.cuh"

namespace lstm_fused::cuda {

constexpr int kFullUnits = full_lane_units(0, true);
static_assert(kFullUnits == 2, "a pair of neighbours");

template <int kChunks>
struct FullBackwardShared {
  alignas(kLaneBytes) char tiles[2][tile_bytes(kChunks * kGates)];  // of even and odd steps
};

// What a step of a lane's cells is loaded as, in row j.
template <typename Storage>
struct FullStep {
  UnitPack<Storage, kFullUnits> gates[kGates][kLaneRows], grad_y[kLaneRows];
  float c_prev[kLaneRows][kFullUnits] = {};  // as in BackwardStep
  uint8_t reset[kLaneRows] = {};
};

// One direction of one tile.
template <typename Product, int kChunks, bool kMovesPairs, bool kReverse>
__device__ __forceinline__ void full_backward_tile(const PersistentBackwardArgs& args,
                                                   const BackwardRecurrence& d,
                                                   FullBackwardShared<kChunks>& shared) {
  using Storage = typename Product::Storage;
  using Operand = typename Product::Operand;
  using Units = UnitPack<Storage, kFullUnits>;
  constexpr int kGateChunks = kChunks * kGates;
  constexpr int kStride = tile_stride(kGateChunks);
  constexpr int kHidden = chunk_units(kChunks, sizeof(Operand));
  constexpr int kNext = kReverse ? 1 : -1;

  const Lane lane;
  const int unit = (threadIdx.x / kWarpSize * kWarpUnits + lane.g) * kFullUnits;

  // Load the weights of the units' gradients. NOTE: a lane's own word by a shuffle,
  // ahead of which its halves must be joined; else ptxas for sm_100 and newer joins those of all
  // weights behind the branches below, and spills them.
  const auto own = [](const uint4& words) {
    const auto word = [](uint32_t x) {
      return __shfl_sync(0xffffffffu, x, threadIdx.x % kWarpSize);
    };
    return make_uint4(word(words.x), word(words.y), word(words.z), word(words.w));
  };
  uint4 weights[kGateChunks][kFullUnits];
#pragma unroll
  for (int chunk = 0; chunk < kGateChunks; ++chunk) {
    constexpr int kOperands = kLaneOperands<Operand>;
    const int first = chunk * kChunkOperands<Operand> + lane.t * kOperands;  // of K
    const Storage* column = static_cast<const Storage*>(d.w_hh) + unit +
                            (first / 8 * kFullUnits + first % 8 / 2 * kHidden) * kHidden;
#pragma unroll
    for (int u = 0; u < kFullUnits; ++u) {
      LaneOperands<Operand> operands;
#pragma unroll
      for (int i = 0; i < kOperands; ++i) {
        operands.element[i] = Product::operand(column[(i / 2 * kHidden + i % 2) * kHidden + u]);
      }
      weights[chunk][u] = own(operands.bits);
    }
  }

  const int first_row = static_cast<int>(blockIdx.x) * kTileRows;
  const LaneRows rows(first_row, lane, args);
  const int tile_steps = rows.tile_steps();
  const int real_rows = ptx::opaque(min(args.batch - rows.first, kLaneRows));
  const auto is_active = [&](int j, int t) {
    return static_cast<unsigned>(t) < static_cast<unsigned>(rows.length[j]);
  };

  // Whether row j has outputs at time t, if only zeros. NOTE: of a condition that is constant in
  // the loop ptxas makes a branch around every two stores.
  const auto has_outputs = [&](int j, int t) {
    return static_cast<unsigned>(t) < static_cast<unsigned>(j < real_rows ? tile_steps : 0);
  };

  // Load the gradients of the final states.
  float dh[kLaneRows][kFullUnits], dc[kLaneRows][kFullUnits];
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    const int64_t cell = int64_t{rows.first + j} * kHidden + unit;
#pragma unroll
    for (int u = 0; u < kFullUnits; ++u) {
      dh[j][u] = j < real_rows && d.grad_h_n != nullptr
                     ? to_accumulator(static_cast<const Storage*>(d.grad_h_n)[cell + u])
                     : 0.0f;
      dc[j][u] = j < real_rows && d.grad_c_n != nullptr
                     ? to_accumulator(static_cast<const Storage*>(d.grad_c_n)[cell + u])
                     : 0.0f;
    }
  }

  // Write zeros past the end of the tile's longest row.
  const Units zeros;
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    for (int64_t t = tile_steps; j < real_rows && t < args.steps; ++t) {
      Storage* out = static_cast<Storage*>(d.grad_gates) +
                     (t * args.batch + rows.first + j) * kGates * kHidden + unit;
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate)
        zeros.template store_if<kMovesPairs>(true, out + gate * kHidden);
    }
  }

  // Pointers to this lane's first cell, which run along with the steps.
  const int first_t = kReverse ? 0 : tile_steps - 1;
  const auto in_range = [&](int t) { return kReverse ? t < tile_steps : t >= 0; };
  const int64_t first_lane_row = int64_t{first_t} * args.batch + rows.first;
  const int64_t step_rows = int64_t{kNext} * args.batch;
  const int columns = args.directions * kHidden;
  const Storage* gates_in =
      static_cast<const Storage*>(d.gates) + first_lane_row * kGates * kHidden + unit;
  const float* cells_before =
      static_cast<const float*>(d.cells) + (first_lane_row + step_rows) * kHidden + unit;
  const Storage* grad_y = static_cast<const Storage*>(d.grad_y) + first_lane_row * columns + unit;
  Storage* grad_gates =
      static_cast<Storage*>(d.grad_gates) + first_lane_row * kGates * kHidden + unit;

  // Loads the step at time t.
  FullStep<Storage> next;
  const auto load = [&](int t) {
    bool any_first = false;  // a row's first step
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      const bool active = is_active(j, t), has_before = is_active(j, t + kNext);
      load_units_if<kMovesPairs>(has_before, next.c_prev[j], cells_before + j * kHidden);
      any_first = any_first || (active && !has_before);
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        next.gates[gate][j].template load_if<kMovesPairs>(active,
                                                          gates_in + (j * kGates + gate) * kHidden);
      }
      next.grad_y[j].template load_if<kMovesPairs>(active && d.grad_y != nullptr,
                                                   grad_y + j * columns);
    }
    gates_in += step_rows * kGates * kHidden;
    cells_before += step_rows * kHidden;
    grad_y += step_rows * columns;
    if (any_first) {
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j) {
        if (!is_active(j, t) || is_active(j, t + kNext)) continue;
        const Storage* c_0 =
            static_cast<const Storage*>(d.c_0) + int64_t{rows.first + j} * kHidden + unit;
#pragma unroll
        for (int u = 0; u < kFullUnits; ++u) next.c_prev[j][u] = to_accumulator(c_0[u]);
      }
    }
    if (args.reset_mask == nullptr) return;
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      if (is_active(j, t))
        next.reset[j] = args.reset_mask[int64_t{t} * args.batch + rows.first + j];
    }
  };

  // Computes from `next` what its step needs beside the gradients of h and c.
  CellSlopes<float> slopes[kLaneRows][kFullUnits];
  float c[kLaneRows][kFullUnits] = {};  // after the step
  Units step_grad_y[kLaneRows];
  bool is_reset[kLaneRows];
  const auto prepare = [&] {
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      is_reset[j] = next.reset[j] != 0;
      step_grad_y[j] = next.grad_y[j];
#pragma unroll
      for (int u = 0; u < kFullUnits; ++u) {
        const auto gate = [&](int which) { return to_accumulator(next.gates[which][j][u]); };
        const Gates<float> gates = {gate(kInputGate), gate(kForgetGate), gate(kCellGate),
                                    gate(kOutputGate)};
        slopes[j][u] = lstm_cell_slopes<CellMath<Storage>>(gates, c[j][u],
                                                           is_reset[j] ? 0.0f : next.c_prev[j][u]);
        c[j][u] = next.c_prev[j][u];
      }
    }
  };

  // Adds what the cell states' gradients outside of the recurrence are at time t.
  const auto add_cell_gradients = [&](int t) {
    if (d.grad_cell_states == nullptr) return;
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      if (!is_active(j, t)) continue;
      const Storage* grad = static_cast<const Storage*>(d.grad_cell_states) +
                            (int64_t{t} * args.batch + rows.first + j) * columns + unit;
#pragma unroll
      for (int u = 0; u < kFullUnits; ++u) dc[j][u] += to_accumulator(grad[u]);
    }
  };

  if (in_range(first_t)) {
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      load_units_if<kMovesPairs>(is_active(j, first_t), c[j],
                                 cells_before - step_rows * kHidden + j * kHidden);
    }
    load(first_t);
    prepare();
    add_cell_gradients(first_t);
    load(first_t + kNext);
  }

  // Where this lane's cells lie in a tile.
  int tile_offset[kLaneRows];
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    tile_offset[j] = ptx::opaque(tile_row(lane.t * kLaneRows + j) * kStride +
                                 unit * kGates * static_cast<int>(sizeof(Operand)));
  }

  // Backpropagate through time, from the last step of the forward.
  char *tile = shared.tiles[0], *other_tile = shared.tiles[1];
  for (int t = first_t; in_range(t); t += kNext) {
    // Differentiate the cells, and write the gradients of the gates to the tile.
    Units grad[kLaneRows][kGates];
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      float gates[kGates][kFullUnits];
#pragma unroll
      for (int u = 0; u < kFullUnits; ++u) {
        const CellGradient<float> gradient = lstm_cell_backward<CellMath<Storage>>(
            slopes[j][u], dh[j][u] + to_accumulator(step_grad_y[j][u]), dc[j][u]);
        gates[kInputGate][u] = gradient.gates.i;
        gates[kForgetGate][u] = gradient.gates.f;
        gates[kCellGate][u] = gradient.gates.g;
        gates[kOutputGate][u] = gradient.gates.o;
        if (is_active(j, t)) dc[j][u] = is_reset[j] ? 0.0f : gradient.c_prev;
      }
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        grad[j][gate] = is_active(j, t) ? Units(gates[gate]) : zeros;
      }
      store_operands(tile + tile_offset[j], grad[j]);
    }
    // NOTE: one barrier suffices: the other tile, which the next step writes, was read before it.
    __syncthreads();

    const bool was_reset[kLaneRows] = {is_reset[0], is_reset[1]};
    prepare();
    load(t + 2 * kNext);
    // Multiply W_hhᵀ by the gradients of the gates; store these, and prepare the next step.
    float sums[kFullUnits][kLaneRows];
    TileProduct<Product, kFullUnits>::template multiply<kGateChunks>(
        sums, weights, kGateChunks, SharedWeights{}, tile, kStride, lane);
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
#pragma unroll
      for (int u = 0; u < kFullUnits; ++u) {
        if (is_active(j, t)) dh[j][u] = was_reset[j] ? 0.0f : sums[u][j];
      }
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        grad[j][gate].template store_if<kMovesPairs>(has_outputs(j, t),
                                                     grad_gates + (j * kGates + gate) * kHidden);
      }
    }
    grad_gates += step_rows * kGates * kHidden;
    add_cell_gradients(t + kNext);
    char* const read_tile = tile;
    tile = other_tile;
    other_tile = read_tile;
  }

  // Write the gradients of the initial states.
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    if (j >= real_rows) continue;
    const int64_t cell = int64_t{ptx::opaque(rows.first) + j} * kHidden + unit;
#pragma unroll
    for (int u = 0; u < kFullUnits; ++u) {
      static_cast<Storage*>(d.grad_h_0)[cell + u] = to_storage<Storage>(dh[j][u]);
      static_cast<Storage*>(d.grad_c_0)[cell + u] = to_storage<Storage>(dc[j][u]);
    }
  }
}

}  // namespace lstm_fused::cuda
