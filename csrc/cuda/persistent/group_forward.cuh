// SPDX-License-Identifier: BSD-3-Clause
// The whole sequence in one launch, a group of blocks for some tiles of rows and one direction.
//
// The blocks of a group split the hidden units, and so hold all of W_hh together, in registers and,
// where these do not suffice, in shared memory. Each step a block needs h_prev of all units: blocks
// publish their units' h to the group as exchange.cuh says, and copy all units' h to their tiles.
//
// Within a block, `k_splits` warps work on the same eight units and split K; their partial sums are
// added up through shared memory. Then each of these warps applies the cell to a part of the tiles'
// columns: lane 4g + t of column i (tile i / 2, j = i % 2) has unit g and row 2t + j.
//
// NOTE: a group must be resident as a whole, or it would wait until its limit: the plan proves that
// all blocks are, and the launch is cooperative, so that the driver refuses what the plan got
// wrong.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/lstm_cell.h"
#include "cuda/device/math.cuh"
#include "cuda/device/ptx.cuh"
#include "cuda/persistent/exchange.cuh"
#include "cuda/persistent/group_ffma.cuh"
#include "cuda/persistent/group_forward_ends.cuh"
#include "cuda/persistent/group_mma.cuh"
#include "cuda/persistent/launch.h"
#include "cuda/persistent/tile.cuh"

namespace lstm_fused::cuda {

// One direction of one group.
template <typename Product, bool kReverse>
__device__ __forceinline__ void group_forward(const PersistentForwardArgs& args,
                                              const ForwardRecurrence& d, const GroupArgs& group) {
  using Storage = typename Product::Storage;
  using Operand = typename Product::Operand;
  using Word = StateWord<Product>;
  constexpr bool kIsFfma = std::is_same_v<Product, F32Product>;
  constexpr int kPieces = pieces_in_flight<kIsFfma>();
  constexpr uint32_t kPieceMask = (1u << kPieces) - 1;
  extern __shared__ __align__(16) char shared[];

  const Lane lane;
  const int hidden = args.hidden_size;
  const int warp = threadIdx.x / kWarpSize;
  const int lane_index = threadIdx.x % kWarpSize;
  const int unit_warp = warp / group.k_splits;
  const int k_warp = warp % group.k_splits;
  const int block_units = kGroupWarps / group.k_splits * kWarpUnits;
  const int unit = static_cast<int>(blockIdx.x) * block_units + unit_warp * kWarpUnits + lane.g;
  const bool real_unit = unit < hidden;

  const GroupForwardMemory memory(group, block_units, kIsFfma, shared);
  const int stride = memory.stride, row_bytes = memory.row_bytes, slot_bytes = memory.slot_bytes;
  char* const tiles = memory.tiles;
  const int* const row_lengths = memory.row_lengths;
  float4* const own_preactivations = memory.preactivations + threadIdx.x;  // of this thread's cells
  const int group_index = static_cast<int>(blockIdx.z * gridDim.y + blockIdx.y);
  const int buffer_bytes = kTileRows * slot_bytes;
  char* const exchange = group.exchange + int64_t{group_index} * 2 * buffer_bytes;

  // Load this warp's weights.
  const std::conditional_t<kIsFfma, GroupFfma, GroupMma<Product>> product(
      d.w_hh, hidden, unit - lane.g, k_warp, group.warp_chunks, memory.weights);
  load_biases(memory.biases, d.bias, hidden, block_units);

  // Clear the tiles, for their padding must be finite, and take the rows' lengths.
  const int first_row = static_cast<int>(blockIdx.y) * memory.group_rows;
  for (int i = threadIdx.x * kLaneBytes; i < kTileRows * stride; i += kGroupThreads * kLaneBytes) {
    *reinterpret_cast<uint4*>(tiles + i) = make_uint4(0, 0, 0, 0);
  }
  if (threadIdx.x == 0) *memory.abandoned = 0;
  if (threadIdx.x < memory.group_rows)
    memory.row_lengths[threadIdx.x] = row_length(args, first_row + threadIdx.x);
  __syncthreads();
  int group_steps = 0;  // steps of the longest row
  for (int row = lane_index; row < memory.group_rows; row += kWarpSize) {
    group_steps = max(group_steps, row_lengths[row]);
  }
  group_steps = __reduce_max_sync(0xffffffffu, group_steps);

  // Load the initial states of this lane's cells. NOTE: warps of other units begin with other
  // columns, so that the cells of a single tile are spread over the SM's schedulers.
  const int columns = group.tiles * kLaneRows;
  const int first_column = (k_warp + unit_warp * kLaneRows) % group.k_splits;
  const auto column_of = [&](int cell) { return first_column + cell * group.k_splits; };
  // NOTE: what depends on a cell's column is kept in registers for the first cell only, by FFMA for
  // none.
  const auto step_column_of = [&](int cell) {
    return cell == 0 && !kIsFfma ? first_column : ptx::opaque(column_of(cell));
  };
  const auto row_of_column = [&](int column) {  // counted within the group
    return column / kLaneRows * kTileRows + lane.t * kLaneRows + column % kLaneRows;
  };
  const auto row_of = [&](int cell) { return row_of_column(column_of(cell)); };
  const auto is_real_cell = [&](int cell) {
    return real_unit && column_of(cell) < columns && first_row + row_of(cell) < args.batch;
  };
  // Steps in which a cell of this lane's unit takes part. NOTE: from shared memory, for c takes the
  // last registers.
  const auto length_of = [&](int row) { return real_unit ? row_lengths[row] : 0; };
  const Storage zero = to_storage<Storage>(0.0f);
  float c[kGroupCells];
#pragma unroll
  for (int cell = 0; cell < kGroupCells; ++cell) {
    const int64_t offset = int64_t{first_row + row_of(cell)} * hidden + unit;
    c[cell] =
        is_real_cell(cell) ? to_accumulator(static_cast<const Storage*>(d.c_0)[offset]) : 0.0f;
  }

  // Step s runs at the time that `time_of` gives.
  const auto time_of = [&](int s) { return kReverse ? group_steps - 1 - s : s; };
  const auto first_row_at = [&](int t) { return int64_t{t} * args.batch + first_row; };
  // Pointers to the first cell of this lane, which run along with the steps; the other cells' rows
  // lie at 32-bit offsets from it.
  const int64_t step_rows = int64_t{kReverse ? -1 : 1} * args.batch;
  const int64_t lane_row = first_row_at(time_of(0)) + row_of(0);
  const int y_columns = args.directions * hidden;
  const float* preactivations =
      static_cast<const float*>(d.preactivations) + lane_row * kGates * hidden + unit;
  Storage* gates_out = static_cast<Storage*>(d.gates) + lane_row * kGates * hidden + unit;
  float* cells_out = static_cast<float*>(d.cells) + lane_row * hidden + unit;
  Storage* y_out = static_cast<Storage*>(d.y) + lane_row * y_columns + unit;
  const auto offset_of = [&](int cell, int row, int row_elements) {
    return cell == 0 ? 0 : (row - row_of(0)) * row_elements;
  };
  const auto fetch_preactivations = [&](int t) {
#pragma unroll
    for (int cell = 0; cell < kGroupCells; ++cell) {
      const int column = step_column_of(cell);
      if (column >= columns) break;
      const int row = row_of_column(column);
      if (t >= length_of(row)) continue;
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        ptx::copy_async(&own_preactivations[cell * kGroupThreads].x + gate,
                        preactivations + gate * hidden + offset_of(cell, row, kGates * hidden));
      }
    }
  };
  // Whether a row that takes part in step s is reset there. NOTE: bytes, which are not looked at
  // before they are used, a step after the load.
  uint8_t reset[kGroupCells] = {};
  const auto load_reset = [&](int s) {
    if (args.reset_mask == nullptr) return;
    const int t = time_of(s);
#pragma unroll
    for (int cell = 0; cell < kGroupCells; ++cell) {
      const int column = step_column_of(cell);
      if (column >= columns) break;
      const int row = row_of_column(column);
      reset[cell] = s < group_steps && t < length_of(row) ? (args.reset_mask + first_row_at(t))[row]
                                                          : uint8_t{0};
    }
  };

  // Writes h_0 to the tiles' rows that begin with step s, or zero where they are reset. This warp's
  // rows are those of its number.
  const auto begin_rows = [&](int s) {
    const int t = time_of(s);
    for (int tile = 0; tile < group.tiles; ++tile) {
      const int row = tile * kTileRows + warp;
      const int steps = row_lengths[row];
      if (steps == 0 || s != (kReverse ? group_steps - steps : 0)) continue;
      const bool is_reset =
          args.reset_mask != nullptr && args.reset_mask[first_row_at(t) + row] != 0;
      const Storage* source =
          static_cast<const Storage*>(d.h_0) + int64_t{first_row + row} * hidden;
      uint4* target = reinterpret_cast<uint4*>(tiles + group_tile_row(warp, kIsFfma) * stride +
                                               tile * row_bytes);
      for (int piece = lane_index; piece < memory.row_chunks * 4; piece += kWarpSize) {
        const int column = piece * kLaneOperands<Operand>;
        target[piece] = load_operands<Product>(source, is_reset ? hidden : column, hidden);
      }
    }
  };

  // The pieces of h that this lane copies, of its warp's rows: a bit for each that exists. The last
  // one of a row may hold units past H, which are published too.
  const int slot_pieces = slot_bytes / kLaneBytes, row_pieces = row_bytes / kLaneBytes;
  const int unit_pieces = (hidden + kLaneOperands<Operand> - 1) / kLaneOperands<Operand>;
  const bool is_published =
      unit < unit_pieces * kLaneOperands<Operand> && lane.g % Word::kUnits == 0;
  // Where this lane's first cell is published, and where it takes its first piece from.
  const auto word_offset = [&](int column) {
    return (lane.t * kLaneRows + column % kLaneRows) * slot_bytes + column / kLaneRows * row_bytes;
  };
  char* const own_words =
      ptx::opaque(exchange + word_offset(first_column) + unit * static_cast<int>(sizeof(Operand)));
  const char* const own_pieces =
      ptx::opaque(exchange + warp * slot_bytes + lane_index * kLaneBytes);
  uint64_t real_pieces = 0;
  for (int i = 0, piece = lane_index; piece < slot_pieces; ++i, piece += kWarpSize) {
    const int row = piece / row_pieces * kTileRows + warp;
    const bool is_real = first_row + row < args.batch && piece % row_pieces < unit_pieces;
    real_pieces |= uint64_t{is_real} << i;
  }

  load_reset(0);
  if (group_steps > 0) {
#pragma unroll
    for (int cell = 0; cell < kGroupCells; ++cell) {
      if (reset[cell] != 0) c[cell] = 0.0f;
    }
    begin_rows(0);
    fetch_preactivations(time_of(0));
  }
  load_reset(1);
  __syncthreads();

  // The pre-activations and the bias of a cell, without the recurrent GEMM's part.
  const auto input_of = [&](int cell) {
    const float4 x = own_preactivations[cell * kGroupThreads];
    const float4 bias = memory.biases[unit_warp * kWarpUnits + lane.g];
    return make_float4(x.x + bias.x, x.y + bias.y, x.z + bias.z, x.w + bias.w);
  };
  // A cell's outputs in a step.
  struct Outputs {
    Gates<float> gates;
    float c;
    Storage h;
    bool active;
  };
  const auto part_of = [&](int column) {
    return column * kGroupThreads + static_cast<int>(threadIdx.x) - k_warp * kWarpSize;
  };
  const int own_part = ptx::opaque(part_of(first_column));
  // NOTE: by way of a reduction, or ptxas would load it from the constant bank wherever it is used.
  const int k_splits = __reduce_max_sync(0xffffffffu, group.k_splits);
  // Adds up the parts of K, in their order, and applies the cell; publishes h to the group, zero
  // where the next step is reset.
  const auto compute_cell = [&](int cell, int column, const float4& input, int s, int buffer_offset,
                                uint32_t tag) {
    const float4* part = memory.partials + (cell == 0 && !kIsFfma ? own_part : part_of(column));
    const float4 a = sum_parts(part, kIsFfma ? group.k_splits : k_splits);
    Outputs out;
    out.gates = DeviceMath::activate(a.x + input.x, a.y + input.y, a.z + input.z, a.w + input.w);
    const CellOutput<float> output = lstm_cell_forward<DeviceMath>(out.gates, c[cell]);
    out.active = time_of(s) < length_of(row_of_column(column));
    out.h = out.active ? to_storage<Storage>(output.h) : zero;
    out.c = out.active ? output.c : c[cell];
    const bool is_reset = reset[cell] != 0;
    c[cell] = is_reset ? 0.0f : out.c;
    const uint32_t word = Word::make(Product::operand(is_reset ? zero : out.h));
    if (is_published && s + 1 < group_steps) {
      ptx::store_relaxed(reinterpret_cast<uint32_t*>(
                             own_words + buffer_offset +
                             (cell == 0 ? 0 : word_offset(column) - word_offset(first_column))),
                         word | tag);
    }
    return out;
  };
  // Writes a cell's outputs and what the backward needs.
  const auto store_cell = [&](int cell, int column, const Outputs& out) {
    const int row = row_of_column(column);
    const float values[kGates] = {out.gates.i, out.gates.f, out.gates.g, out.gates.o};
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      store_if(out.active && d.gates != nullptr,
               gates_out + gate * hidden + offset_of(cell, row, kGates * hidden),
               to_storage<Storage>(values[gate]));
    }
    store_if(out.active && d.cells != nullptr, cells_out + offset_of(cell, row, hidden), out.c);
    const bool exists = real_unit && first_row + row < args.batch;
    Storage* y = y_out + offset_of(cell, row, y_columns);
    store_if(exists, y, out.h);
    if (exists && d.cell_states != nullptr) {
      static_cast<Storage*>(d.cell_states)[y - static_cast<Storage*>(d.y)] =
          out.active ? to_storage<Storage>(out.c) : zero;
    }
  };

  const int lane_pieces = (slot_pieces + kWarpSize - 1) / kWarpSize;
  const bool has_cell = first_column < columns;
  const int own_begin = ptx::opaque(k_warp * group.warp_chunks * kChunkBytes);
  const uint32_t abandoned_address = ptx::opaque(ptx::shared_address(memory.abandoned));
  int s = 0;
  while (group_steps > 0) {  // the last step breaks off, not the loop's end, where all would wait
    const bool last = s + 1 == group_steps;

    // The recurrent GEMM: multiply this warp's part of W_hh by h_prev.
    int tile = 0, tile_begin = own_begin;
    do {
      product.multiply(tiles + tile_begin, stride, [&](int j, const float4& sums) {
        memory.partials[(tile * kLaneRows + j) * kGroupThreads + threadIdx.x] = sums;
      });
      tile_begin += row_bytes;
    } while (++tile < group.tiles);
    ptx::wait_for_copies();
    const float4 first_input = input_of(0);
    __syncthreads();
    // NOTE: it was set before the barrier ahead of this step's products, so all threads see it.
    const uint32_t is_abandoned = ptx::load_shared(abandoned_address);

    // The epilogue. The first cell's outputs are stored when the others' h is on its way.
    const int buffer_offset = s % 2 * buffer_bytes;
    const uint32_t tag = tag_of_step<Word::kTag>(s);
    Outputs first;
    if (has_cell) first = compute_cell(0, step_column_of(0), first_input, s, buffer_offset, tag);
#pragma unroll
    for (int cell = 1; cell < kGroupCells; ++cell) {
      const int column = step_column_of(cell);
      if (column >= columns) break;
      store_cell(cell, column, compute_cell(cell, column, input_of(cell), s, buffer_offset, tag));
    }

    if (is_abandoned != 0) break;

    // Wait for the others' h; meanwhile store, and fetch what the next step needs of memory.
    BoundedWait wait(group, group_index, s, memory.abandoned);
    const uint4* source = reinterpret_cast<const uint4*>(own_pieces + buffer_offset);
    uint4* target =
        reinterpret_cast<uint4*>(tiles + group_tile_row(warp, kIsFfma) * stride) + lane_index;
    const uint32_t first_pieces = last ? 0 : static_cast<uint32_t>(real_pieces) & kPieceMask;
    PiecesInFlight<kPieces, Word::kTag> pieces;
    pieces.load(source, first_pieces, tag);
    if (has_cell) store_cell(0, step_column_of(0), first);
    gates_out = ptx::opaque(gates_out + step_rows * kGates * hidden);
    cells_out = ptx::opaque(cells_out + step_rows * hidden);
    y_out = ptx::opaque(y_out + step_rows * y_columns);
    if (last) {
      ++s;
      break;
    }
    preactivations += step_rows * kGates * hidden;
    fetch_preactivations(time_of(s + 1));
    load_reset(s + 2);
    if (lane_pieces == 1) {
      pieces.template receive<1>(source, target, first_pieces, tag, wait);
    } else if (lane_pieces == 2) {
      pieces.template receive<2>(source, target, first_pieces, tag, wait);
    } else if (kPieces > 3 && lane_pieces == 3) {
      pieces.template receive<3>(source, target, first_pieces, tag, wait);
    } else {
      pieces.receive(source, target, first_pieces, tag, wait);
      for (int i = kPieces; i < lane_pieces; i += kPieces) {
        const uint32_t more = static_cast<uint32_t>(real_pieces >> i) & kPieceMask;
        pieces.load(source + i * kWarpSize, more, tag);
        pieces.receive(source + i * kWarpSize, target + i * kWarpSize, more, tag, wait);
      }
    }
    if (kReverse && args.lengths != nullptr) {
      __syncwarp();
      begin_rows(s + 1);
    }
    ++s;
    __syncthreads();
  }

  const RunOfSteps run{s, group_steps, kReverse};
#pragma unroll
  for (int cell = 0; cell < kGroupCells; ++cell) {
    if (!is_real_cell(cell)) continue;
    const int row = row_of(cell);
    write_end<Storage>(args, d, run, ptx::opaque(first_row) + row, unit, row_lengths[row], c[cell]);
  }
}

// NOTE: each direction has code of its own, for then its pointers are constants of the launch.
template <typename Product>
__global__ void __launch_bounds__(kGroupThreads, 1)
    persistent_group_forward_kernel(const __grid_constant__ PersistentForwardArgs args,
                                    const __grid_constant__ GroupArgs group) {
  if (blockIdx.z == 0) {
    group_forward<Product, false>(args, args.direction[0], group);
  } else {
    group_forward<Product, true>(args, args.direction[1], group);
  }
}

}  // namespace lstm_fused::cuda
