// SPDX-License-Identifier: BSD-3-Clause
// The whole backward recurrence in one launch, as in group_backward.cuh, where a group has a single
// tile of rows, so that a lane has one cell at most, and sizes are constants of the kernel.
//
// What a step's gradients are products of is computed ahead, while the parts of the step before are
// on their way, from what was loaded another step ahead: from those parts to the next tile there
// are two sums, two products and a rounding.
#pragma once

#include <cstdint>

#include "common/lstm_cell.h"
#include "cuda/device/math.cuh"
#include "cuda/device/ptx.cuh"
#include "cuda/device/storage.cuh"
#include "cuda/persistent/group_backward_product.cuh"
#include "cuda/persistent/launch.h"
#include "cuda/persistent/sum_exchange.cuh"
#include "cuda/persistent/tile.cuh"

namespace lstm_fused::cuda {

template <typename Product, int kUnits>
__global__ void __launch_bounds__(kGroupThreads, 1)
    persistent_group_backward_single_kernel(const __grid_constant__ PersistentBackwardArgs args,
                                            const __grid_constant__ GroupArgs group) {
  using Storage = typename Product::Storage;
  using Operand = typename Product::Operand;
  using Math = CellMath<Storage>;
  using Weights = GroupBackwardProduct<Product, kUnits>;
  constexpr int kStride = Weights::kStride;
  constexpr int kVectors = 6;  // of parts that a lane has in flight: enough up to H = 768
  constexpr int kSplits = kGroupWarps * kWarpUnits / kUnits;  // warps of eight units
  constexpr int kSlotVectors = kTileRows * kUnits / 4;
  constexpr int kSources = kGroupThreads / kSlotVectors;
  static_assert(kSplits >= kLaneRows, "a lane has one cell at most");
  static_assert(kSplits * kUnits == kGroupWarps * kWarpUnits, "every unit has as many warps");
  static_assert(kSources * kSlotVectors == kGroupThreads, "every thread has a vector");
  extern __shared__ __align__(16) char shared[];

  const Lane lane;
  const int hidden = args.hidden_size;
  const int block = static_cast<int>(blockIdx.x);
  const int warp = threadIdx.x / kWarpSize;
  const int unit_warp = warp / kSplits;
  const int local_unit = unit_warp * kWarpUnits + lane.g;
  const int unit = block * kUnits + local_unit;
  const bool reverse = blockIdx.z == 1;
  const BackwardRecurrence& d = args.direction[blockIdx.z];

  // Divide the memory.
  int* const abandoned = reinterpret_cast<int*>(shared);
  const SourceSums sums{reinterpret_cast<float2*>(shared + kLaneBytes)};
  char* const tile = shared + kLaneBytes + kGroupThreads * sizeof(float4);
  uint4* const shared_vectors = reinterpret_cast<uint4*>(tile + kTileRows * kStride);
  const int group_index = static_cast<int>(blockIdx.z * gridDim.y + blockIdx.y);
  const SumExchange<Product, kUnits, true> exchange(group, group_index, 1, hidden);

  const Weights weights(d.w_hh, hidden, group.warp_output_tiles, shared_vectors, lane);

  // This lane's cell. NOTE: warps of other units begin with other columns, so that the cells are
  // spread over the SM's schedulers.
  const int first_row = static_cast<int>(blockIdx.y) * kTileRows;
  const int column = (warp + unit_warp * kLaneRows) % kSplits;
  const bool has_cell = __reduce_max_sync(0xffffffffu, column < kLaneRows ? 1 : 0) != 0;
  const int row = lane.t * kLaneRows + column % kLaneRows;
  const bool exists = has_cell && unit < hidden && first_row + row < args.batch;
  const int length = exists ? row_length(args, first_row + row) : 0;
  const int64_t cell = int64_t{first_row + row} * hidden + unit;
  const auto state = [&](const void* states) {
    return exists && states != nullptr ? to_accumulator(static_cast<const Storage*>(states)[cell])
                                       : 0.0f;
  };
  float dh = state(d.grad_h_n), dc = state(d.grad_c_n);
  const float c_0 = state(d.c_0);
  const int group_steps = __reduce_max_sync(
      0xffffffffu, row_length(args, first_row + static_cast<int>(threadIdx.x) % kTileRows));
  // Step s is the cell's step s - begin of `length` steps.
  const int begin = ptx::opaque(reverse ? 0 : group_steps - length);
  const auto is_active = [&](int s) {
    return static_cast<unsigned>(s - begin) < static_cast<unsigned>(length);
  };

  // Pointers to this cell, which run along with the steps.
  const auto time_of = [&](int s) { return reverse ? s : group_steps - 1 - s; };
  const int64_t step_rows = int64_t{reverse ? 1 : -1} * args.batch;
  const int64_t lane_row = int64_t{time_of(0)} * args.batch + first_row + row;
  const int y_columns = args.directions * hidden;
  const int64_t gate_step = ptx::opaque(step_rows * kGates * hidden);
  const int64_t cell_step = ptx::opaque(step_rows * hidden);
  const int64_t y_step = ptx::opaque(step_rows * y_columns);
  const Storage* gates_in =
      static_cast<const Storage*>(d.gates) + lane_row * kGates * hidden + unit;
  const float* cells_in = static_cast<const float*>(d.cells) + lane_row * hidden + unit;
  const Storage* grad_y_in = static_cast<const Storage*>(d.grad_y) + lane_row * y_columns + unit;
  Storage* grad_gates = static_cast<Storage*>(d.grad_gates) + lane_row * kGates * hidden + unit;
  const int y_length = ptx::opaque(d.grad_y != nullptr ? length : 0);

  // Loads what step s reads, where its row takes part. c_prev is the cell state before the step; of
  // a row that takes no part yet, the one after the next step.
  struct {
    Storage gates[kGates], grad_y;
    float c, c_prev;
    uint8_t reset;
  } step = {};
  const auto load_state = [&](int s) {
    load_if(is_active(s), step.c_prev, cells_in);
    cells_in += cell_step;
  };
  const auto load = [&](int s) {
    const bool active = is_active(s);
    step.c = step.c_prev;
    load_state(s + 1);
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      load_if(active, step.gates[gate], gates_in + gate * hidden);
    }
    load_if(static_cast<unsigned>(s - begin) < static_cast<unsigned>(y_length), step.grad_y,
            grad_y_in);
    gates_in += gate_step;
    grad_y_in += y_step;
    if (args.reset_mask != nullptr && active) {
      step.reset = args.reset_mask[int64_t{time_of(s)} * args.batch + first_row + row];
    }
  };

  // Computes what step s, which was loaded, needs beside the gradients of h and c.
  CellSlopes<float> slopes;
  float grad_y;
  bool is_reset = false;
  const auto prepare = [&](int s) {
    const auto gate = [&](int which) { return to_accumulator(step.gates[which]); };
    const Gates<float> gates = {gate(kInputGate), gate(kForgetGate), gate(kCellGate),
                                gate(kOutputGate)};
    is_reset = step.reset != 0;
    const float c_prev = s - begin == length - 1 ? c_0 : step.c_prev;
    slopes = lstm_cell_slopes<Math>(gates, step.c, is_reset ? 0.0f : c_prev);
    grad_y = to_accumulator(step.grad_y);
  };
  // Adds what the gradients of the cell states outside of the recurrence are in step s.
  const auto add_cell_gradient = [&](int s) {
    if (d.grad_cell_states == nullptr || !is_active(s)) return;
    const int64_t place = (int64_t{time_of(s)} * args.batch + first_row + row) * y_columns + unit;
    dc += to_accumulator(static_cast<const Storage*>(d.grad_cell_states)[place]);
  };

  // Where the sums of this lane's cell lie, and its gradients in the tile.
  const uint32_t own_sums = ptx::opaque(ptx::shared_address(sums.of<kUnits>(row, local_unit)));
  const int own_gates = ptx::opaque(tile_row(row) * kStride +
                                    local_unit * static_cast<int>(sizeof(Pack<Operand, kGates>)));
  const uint32_t abandoned_address = ptx::opaque(ptx::shared_address(abandoned));
  if (threadIdx.x == 0) *abandoned = 0;
  __syncthreads();

  load_state(0);
  load(0);
  prepare(0);
  add_cell_gradient(0);
  load(1);

  // Backpropagate through time, from the last step of the forward.
  int s = 0;
  bool was_reset = false;
  uint32_t is_abandoned;
  while (true) {
    // Add up the sums of the step before.
    is_abandoned = ptx::load_shared(abandoned_address);
    if (has_cell) {
      constexpr int kDistance = 2 * kSlotVectors * static_cast<int>(sizeof(float));
      float total = __uint_as_float(ptx::load_shared(own_sums));
#pragma unroll
      for (int i = 1; i < kSources; ++i) {
        total += __uint_as_float(ptx::load_shared(own_sums + i * kDistance));
      }
      if (is_active(s - 1)) dh = was_reset ? 0.0f : total;
    }
    if (s == group_steps) break;

    // Differentiate the cell; write the gradients of its gates to the tile.
    StoragePair<Storage> grad[kGates / 2];
    if (has_cell) {
      const CellGradient<float> gradient = lstm_cell_backward<Math>(slopes, dh + grad_y, dc);
      grad[0] = StoragePair<Storage>(gradient.gates.i, gradient.gates.f);
      grad[1] = StoragePair<Storage>(gradient.gates.g, gradient.gates.o);
      if (is_active(s)) {
        dc = is_reset ? 0.0f : gradient.c_prev;
      } else {
        grad[0] = grad[1] = StoragePair<Storage>();
      }
      if constexpr (sizeof(Operand) == 2) {
        *reinterpret_cast<uint2*>(tile + own_gates) = make_uint2(grad[0].word(), grad[1].word());
      } else {
        *reinterpret_cast<float4*>(tile + own_gates) =
            make_float4(Product::operand(grad[0][0]), Product::operand(grad[0][1]),
                        Product::operand(grad[1][0]), Product::operand(grad[1][1]));
      }
    }
    __syncthreads();
    if (is_abandoned != 0) break;

    // Multiply this block's rows of W_hh, transposed, and publish each unit's part to its owner.
    weights.multiply(tile, lane, exchange.publisher(s));

    // Store the gradients of the gates, and prepare the next step while the others publish.
    if (has_cell) {
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        store_if(exists, grad_gates + gate * hidden, grad[gate / 2][gate % 2]);
      }
      grad_gates += gate_step;
      add_cell_gradient(s + 1);
      was_reset = is_reset;
      prepare(s + 1);
      load(s + 2);
    }

    // Wait for the parts, and add them up.
    BoundedWait wait(group, group_index, s, abandoned);
    sums.store(exchange.template receive<kVectors, true>(s, wait));
    ++s;
    __syncthreads();
  }

  // Write the gradients of the initial states, and zeros past the end of the group's longest row;
  // where a wait was given up, NaN for all that was not computed.
  if (!exists) return;
  const bool complete = is_abandoned == 0;
  const Storage zero = to_storage<Storage>(0.0f);
  const Storage nan = to_storage<Storage>(__int_as_float(0x7fc00000));
  static_cast<Storage*>(d.grad_h_0)[cell] = complete ? to_storage<Storage>(dh) : nan;
  static_cast<Storage*>(d.grad_c_0)[cell] = complete ? to_storage<Storage>(dc) : nan;
  for (int rest = s; rest < args.steps; ++rest) {
    const int t = rest < group_steps ? time_of(rest) : rest;
    const int64_t time_row = int64_t{t} * args.batch + first_row + row;
    Storage* out = static_cast<Storage*>(d.grad_gates) + time_row * kGates * hidden + unit;
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      out[gate * hidden] = rest < group_steps ? nan : zero;
    }
  }
}

}  // namespace lstm_fused::cuda
