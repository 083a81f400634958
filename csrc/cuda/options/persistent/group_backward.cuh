// SPDX-License-Identifier: BSD-3-Clause
// The whole backward recurrence in one launch where the cell has options, a group of blocks for
// some tiles of rows and one direction: persistent/group_backward.cuh with another cell. What goes
// back from a step to the h that entered it is as in backward.cuh.
#pragma once

#include <cstdint>

#include "cuda/device/ptx.cuh"
#include "cuda/options/persistent/cell.cuh"
#include "cuda/options/persistent/layout.h"
#include "cuda/persistent/backward_cell.cuh"
#include "cuda/persistent/group_backward_product.cuh"
#include "cuda/persistent/sum_exchange.cuh"

namespace lstm_fused::cuda {

template <typename Product, int kUnits>
__global__ void __launch_bounds__(kGroupThreads, 1)
    persistent_group_option_backward_kernel(const __grid_constant__ PersistentBackwardArgs args,
                                            const __grid_constant__ PersistentOptions options,
                                            const __grid_constant__ GroupArgs group) {
  using Storage = typename Product::Storage;
  using Operand = typename Product::Operand;
  using Weights = GroupBackwardProduct<Product, kUnits>;
  constexpr int kStride = Weights::kStride;
  // Vectors of partial sums that a lane has in flight.
  constexpr int kVectors = kUnits == kGroupUnits[0] ? 4 : 3;
  constexpr int kSplits = kGroupWarps * kWarpUnits / kUnits;  // warps for eight units' cells
  static_assert(kSplits % kLaneRows == 0, "a lane's cells are whole tiles apart");
  static_assert(kSplits * kUnits == kGroupWarps * kWarpUnits, "every unit has as many warps");
  extern __shared__ __align__(16) char shared[];

  const Lane lane;
  const int hidden = args.hidden_size;
  const int block = static_cast<int>(blockIdx.x);
  const int warp = threadIdx.x / kWarpSize;
  const int local_unit = warp / kSplits * kWarpUnits + lane.g;
  const int unit = block * kUnits + local_unit;
  const bool reverse = blockIdx.z == 1;
  const BackwardRecurrence& d = args.direction[blockIdx.z];
  const PersistentOptionDirection& option = options.direction[blockIdx.z];
  const CellOptionInputs& inputs = option.inputs;

  // Divide the memory.
  const int group_rows = group.tiles * kTileRows;
  int* const abandoned = reinterpret_cast<int*>(shared);
  const SourceSums sums{reinterpret_cast<float2*>(shared + kLaneBytes)};
  float4* const peepholes = reinterpret_cast<float4*>(sums.begin + 2 * kGroupThreads);
  // What this thread keeps of its cells, a cell's elements kGroupThreads apart: the mask, the
  // gradient of c, and that of h. Within a step the last holds the part of the gradient of h that
  // goes back beside the product. The thread's sums for three peepholes are over its cells and all
  // steps.
  float* const own_mask = reinterpret_cast<float*>(peepholes + kUnits) + threadIdx.x;
  float* const own_dc = own_mask + kGroupCells * kGroupThreads;
  float* const own_dh = own_dc + kGroupCells * kGroupThreads;
  float* const own_sums = own_dh + kGroupCells * kGroupThreads;
  char* const tiles = reinterpret_cast<char*>(own_sums - threadIdx.x + kPeepholes * kGroupThreads);
  uint4* const shared_vectors = reinterpret_cast<uint4*>(tiles + group_rows * kStride);
  const int group_index = static_cast<int>(blockIdx.z * gridDim.y + blockIdx.y);
  const SumExchange<Product, kUnits, false> exchange(group, group_index, group.tiles, hidden);

  const Weights weights(d.w_hh, hidden, group.warp_output_tiles, shared_vectors, lane);

  // Load the gradients of the final states of this lane's cells.
  const int first_row = static_cast<int>(blockIdx.y) * group_rows;
  const auto row_in_group = [&](int cell) {
    const int column = warp % kSplits + cell * kSplits;
    return column / kLaneRows * kTileRows + lane.t * kLaneRows + column % kLaneRows;
  };
  const auto row_of = [&](int cell) { return first_row + row_in_group(cell); };
  const auto is_real_cell = [&](int cell) {
    return unit < hidden && row_in_group(cell) < group_rows && row_of(cell) < args.batch;
  };
  const int cells = (group.tiles * kLaneRows - warp % kSplits + kSplits - 1) / kSplits;
  LaneCells<Storage, kGroupCells, kSplits / kLaneRows * kTileRows> lane_cells(
      args, d, reverse, row_of(0), unit, cells);
#pragma unroll
  for (int cell = 0; cell < kGroupCells; ++cell) {
    lane_cells.length[cell] = is_real_cell(cell) ? row_length(args, row_of(cell)) : 0;
    const int64_t offset = int64_t{row_of(cell)} * hidden + unit;
    const bool exists = is_real_cell(cell);
    own_dh[cell * kGroupThreads] = exists ? element_or<Storage>(d.grad_h_n, offset, 0.0f) : 0.0f;
    own_dc[cell * kGroupThreads] = exists ? element_or<Storage>(d.grad_c_n, offset, 0.0f) : 0.0f;
    own_mask[cell * kGroupThreads] =
        exists ? element_or<Storage>(inputs.h_mask, offset, 1.0f) : 1.0f;
  }
#pragma unroll
  for (int i = 0; i < kPeepholes; ++i) own_sums[i * kGroupThreads] = 0.0f;
  if (threadIdx.x < kUnits) {
    peepholes[threadIdx.x] = unit_peephole<Storage>(inputs, block * kUnits + threadIdx.x, hidden);
  }
  int group_steps = 0;  // steps of the longest row
  for (int row = threadIdx.x % kWarpSize; row < group_rows; row += kWarpSize) {
    group_steps = max(group_steps, row_length(args, first_row + row));
  }
  group_steps = __reduce_max_sync(0xffffffffu, group_steps);

  if (threadIdx.x == 0) *abandoned = 0;
  __syncthreads();

  // Backpropagate through time, from the last step of the forward.
  const auto time_of = [&](int s) { return reverse ? s : group_steps - 1 - s; };
  // Zoneout's masks of the step to come: a bit for each cell once they are packed. NOTE: bytes at
  // first, which are not looked at before the others' parts are awaited.
  KeepFlags<kGroupCells> keep;
  const auto load_keep = [&](const CellOptionInputs& inputs, int t) {
#pragma unroll
    for (int cell = 0; cell < kGroupCells; ++cell) {
      const bool active = static_cast<unsigned>(t) < static_cast<unsigned>(lane_cells.length[cell]);
      const int64_t index = (int64_t{t} * args.batch + row_of(cell)) * hidden + unit;
      keep.load(inputs, cell, active, index);
    }
  };
  const auto pack_keep = [&] {
    uint32_t flags = 0;
#pragma unroll
    for (int cell = 0; cell < kGroupCells; ++cell) {
      flags |= (keep.c[cell] != 0 ? 1u : 0u) << cell;
      flags |= (keep.h[cell] != 0 ? 1u : 0u) << (kGroupCells + cell);
    }
    return flags;
  };
  BackwardStep<Storage, kGroupCells> step = {};
  uint32_t flags = 0;
  if (group_steps > 0) {
    lane_cells.begin(step, time_of(0));
    lane_cells.load(step, time_of(0));
    load_keep(inputs, time_of(0));
    flags = pack_keep();
  }
  int s = 0;
  for (; s < group_steps; ++s) {
    const int t = time_of(s);
    // NOTE: or the compiler finds these arguments ahead of the loop, and runs out of registers.
    const int direction = ptx::opaque(static_cast<int>(blockIdx.z));
    const PersistentOptionDirection& option = options.direction[direction];
    const CellOptionInputs& inputs = option.inputs;

    // Differentiate the cells; write the gradients of the gates to the tiles and to memory.
    bool was_reset[kGroupCells];
#pragma unroll
    for (int cell = 0; cell < kGroupCells; ++cell) {
      was_reset[cell] = step.is_reset(cell);
      if (row_in_group(cell) >= group_rows) break;
      const bool active = t < lane_cells.length[cell];
      const int64_t state = int64_t{row_of(cell)} * hidden + unit;
      const Gates<float> gates = {to_accumulator(step.gates[kInputGate][cell]),
                                  to_accumulator(step.gates[kForgetGate][cell]),
                                  to_accumulator(step.gates[kCellGate][cell]),
                                  to_accumulator(step.gates[kOutputGate][cell])};
      float dc = own_dc[cell * kGroupThreads];
      if (d.grad_cell_states != nullptr && active) {
        const int64_t row = int64_t{t} * args.batch + row_of(cell);
        dc += element_or<Storage>(d.grad_cell_states, row * args.directions * hidden + unit, 0.0f);
      }
      const float entered =
          was_reset[cell] ? element_or<Storage>(inputs.reset_c, state, 0.0f) : step.c_prev[cell];
      const OptionCellGradient<float> gradient = option_cell_backward<DeviceMath>(
          gates, step.c[cell], entered,
          own_dh[cell * kGroupThreads] + to_accumulator(step.grad_y[cell]), dc,
          option_values(options, inputs, peepholes[local_unit], (flags >> cell & 1) != 0,
                        (flags >> (kGroupCells + cell) & 1) != 0),
          {});
      const float step_grads[kGates] = {gradient.gates.i, gradient.gates.f, gradient.gates.g,
                                        gradient.gates.o};
      Storage grad[kGates];
      Pack<Operand, kGates> pack;
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        grad[gate] = to_storage<Storage>(active ? step_grads[gate] : 0.0f);
        pack.value[gate] = Product::operand(grad[gate]);
      }
      char* row = tiles + (row_in_group(cell) / kTileRows * kTileRows +
                           tile_row(row_in_group(cell) % kTileRows)) *
                              kStride;
      reinterpret_cast<Pack<Operand, kGates>*>(row)[local_unit] = pack;
      lane_cells.store(cell, grad);
      if (!active) continue;
      own_dh[cell * kGroupThreads] = gradient.h_kept;
      own_dc[cell * kGroupThreads] = was_reset[cell] ? 0.0f : gradient.c_prev;
      if (was_reset[cell] && option.grad_reset_c != nullptr) {
        option.grad_reset_c[state] += gradient.c_prev;
      }
      if (option.grad_peephole != nullptr) {
        own_sums[0] += gradient.w_ci;
        own_sums[kGroupThreads] += gradient.w_cf;
        own_sums[2 * kGroupThreads] += gradient.w_co;
      }
    }
    lane_cells.go_on();
    __syncthreads();

    // Multiply this block's rows of W_hh, transposed, and publish each unit's part to its owner.
    auto publisher = exchange.publisher(s);
    for (int tile = 0; tile < group.tiles; ++tile) {
      weights.multiply(tiles + tile * kTileRows * kStride, lane, publisher);
      publisher.place += exchange.kNextTile;
    }

    // Fetch the next step while the others publish.
    if (s + 1 < group_steps) {
      lane_cells.load(step, time_of(s + 1));
      load_keep(inputs, time_of(s + 1));
    }

    // Wait for the parts, and add them up.
    BoundedWait wait(group, group_index, s, abandoned);
    sums.store(exchange.template receive<kVectors>(s, wait));
    flags = pack_keep();
    __syncthreads();
    if (*abandoned != 0) break;
#pragma unroll
    for (int cell = 0; cell < kGroupCells; ++cell) {
      const int row = row_in_group(cell);
      if (row >= group_rows) break;
      const float total =
          sum_apart(sums.of<kUnits>(row, local_unit), 2 * exchange.slot_vectors, exchange.sources);
      if (t >= lane_cells.length[cell]) continue;
      float& dh = own_dh[cell * kGroupThreads];
      dh = fmaf(total, own_mask[cell * kGroupThreads], dh);
      if (!was_reset[cell]) continue;
      if (option.grad_reset_h != nullptr) {
        option.grad_reset_h[int64_t{row_of(cell)} * hidden + unit] += dh;
      }
      dh = 0.0f;
    }
  }

  // Write the gradients of the initial states, and zeros past the end of the group's longest row;
  // where a wait was given up, NaN for all that was not computed.
  const bool complete = s == group_steps;
  const Storage zero = to_storage<Storage>(0.0f);
  const Storage nan = to_storage<Storage>(__int_as_float(0x7fc00000));
#pragma unroll
  for (int cell = 0; cell < kGroupCells; ++cell) {
    if (!is_real_cell(cell)) continue;
    const int n = ptx::opaque(first_row) + row_in_group(cell);
    const int64_t offset = int64_t{n} * hidden + unit;
    static_cast<Storage*>(d.grad_h_0)[offset] =
        complete ? to_storage<Storage>(own_dh[cell * kGroupThreads]) : nan;
    static_cast<Storage*>(d.grad_c_0)[offset] =
        complete ? to_storage<Storage>(own_dc[cell * kGroupThreads]) : nan;
    for (int rest = s; rest < args.steps; ++rest) {
      const int t = rest < group_steps ? time_of(rest) : rest;
      const int64_t row = int64_t{t} * args.batch + n;
      Storage* out = static_cast<Storage*>(d.grad_gates) + row * kGates * hidden + unit;
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        out[gate * hidden] = rest < group_steps ? nan : zero;
      }
    }
  }
  if (option.grad_peephole == nullptr || !is_real_cell(0)) return;
#pragma unroll
  for (int i = 0; i < kPeepholes; ++i) {
    option.grad_peephole[(int64_t{row_of(0)} * kPeepholes + i) * hidden + unit] =
        complete ? own_sums[i * kGroupThreads] : __int_as_float(0x7fc00000);
  }
}

}  // namespace lstm_fused::cuda
