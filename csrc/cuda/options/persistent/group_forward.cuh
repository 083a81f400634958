// SPDX-License-Identifier: BSD-3-Clause
// The whole sequence in one launch where the cell has options, a group of blocks for some tiles of
// rows and one direction: persistent/group_forward.cuh with another cell. What blocks publish, and
// tiles hold, is what the recurrent GEMM multiplies: h with the mask on it, or what a reset puts
// in.
#pragma once

#include <cstdint>

#include "cuda/device/ptx.cuh"
#include "cuda/options/persistent/cell.cuh"
#include "cuda/options/persistent/exchange.cuh"
#include "cuda/options/persistent/layout.h"
#include "cuda/persistent/tile.cuh"

namespace lstm_fused::cuda {

template <typename Product>
__global__ void __launch_bounds__(kGroupThreads, 1)
    persistent_group_option_forward_kernel(const __grid_constant__ PersistentForwardArgs args,
                                           const __grid_constant__ PersistentOptions options,
                                           const __grid_constant__ GroupArgs group) {
  using Storage = typename Product::Storage;
  using Operand = typename Product::Operand;
  constexpr int kPieces = 4;  // of what enters, in flight
  constexpr uint32_t kPieceMask = (1u << kPieces) - 1;
  extern __shared__ __align__(16) char shared[];

  const Lane lane;
  const int hidden = args.hidden_size;
  const bool reverse = blockIdx.z == 1;
  const ForwardRecurrence& d = args.direction[blockIdx.z];
  const CellOptionInputs& inputs = options.direction[blockIdx.z].inputs;
  const int warp = threadIdx.x / kWarpSize;
  const int lane_index = threadIdx.x % kWarpSize;
  const int unit_warp = warp / group.k_splits;
  const int k_warp = warp % group.k_splits;
  const int block_units = kGroupWarps / group.k_splits * kWarpUnits;
  const int unit = static_cast<int>(blockIdx.x) * block_units + unit_warp * kWarpUnits + lane.g;
  const bool real_unit = unit < hidden;

  // Divide the memory. A row of a tile, in shared memory and, a word for each unit, in the exchange
  // area alike, lies beside the rows of its number in the group's other tiles.
  const int row_chunks = group.k_splits * group.warp_chunks;
  const int row_bytes = row_chunks * kChunkBytes;
  const int slot_bytes = group.tiles * row_bytes;  // rows of one number
  const int stride = tile_stride(group.tiles * row_chunks);
  const int group_rows = group.tiles * kTileRows;
  int* const abandoned = reinterpret_cast<int*>(shared);
  int* const row_lengths = reinterpret_cast<int*>(shared + kLaneBytes);
  char* const tiles = shared + kLaneBytes + group_rows * sizeof(int);
  float4* const partials = reinterpret_cast<float4*>(tiles + kTileRows * stride);
  float4* const own_preactivations =  // of this thread's cells, a block's threads apart
      partials + group.tiles * kLaneRows * kGroupThreads + threadIdx.x;
  const int cells = (group.tiles * kLaneRows + group.k_splits - 1) / group.k_splits;
  float4* const biases = own_preactivations - threadIdx.x + cells * kGroupThreads;
  float4* const peepholes = biases + block_units;
  // What this thread keeps of its cells, kGroupThreads apart: h as y shows it, c, and the mask.
  float* const own_h = reinterpret_cast<float*>(peepholes + block_units) + threadIdx.x;
  float* const own_c = own_h + kGroupCells * kGroupThreads;
  float* const own_mask = own_c + kGroupCells * kGroupThreads;
  uint4* const shared_vectors =
      reinterpret_cast<uint4*>(own_mask - threadIdx.x + kGroupCells * kGroupThreads);
  const int group_index = static_cast<int>(blockIdx.z * gridDim.y + blockIdx.y);
  constexpr int kWordBytes = option_word_bytes(sizeof(Operand));
  const int buffer_bytes = kTileRows * slot_bytes * kWordBytes;
  char* const exchange = group.exchange + int64_t{group_index} * 2 * buffer_bytes;

  // Load the weights of this lane's unit and this warp's part of K.
  const int register_chunks = min(group.warp_chunks, kGroupChunks);
  uint4 weights[kGroupChunks][kGates];
  const auto load_weights = [&](uint4(&chunk_weights)[kGates], int chunk) {
    const int column = (k_warp * group.warp_chunks + chunk) * kChunkOperands<Operand> +
                       lane.t * kLaneOperands<Operand>;
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      const Storage* row =
          static_cast<const Storage*>(d.w_hh) + (int64_t{gate} * hidden + unit) * hidden;
      chunk_weights[gate] = load_operands<Product>(row, real_unit ? column : hidden, hidden);
    }
  };
#pragma unroll
  for (int chunk = 0; chunk < kGroupChunks; ++chunk) {
    if (chunk < register_chunks) load_weights(weights[chunk], chunk);
  }
  const SharedWeights shared_weights{shared_vectors + threadIdx.x,
                                     group.warp_chunks - register_chunks, kGroupThreads};
#pragma unroll 1
  for (int chunk = 0; chunk < shared_weights.chunks; ++chunk) {
    uint4 chunk_weights[kGates];
    load_weights(chunk_weights, kGroupChunks + chunk);
    shared_weights.store(chunk_weights, chunk);
  }
  if (threadIdx.x < block_units) {
    const int bias_unit = static_cast<int>(blockIdx.x) * block_units + threadIdx.x;
    biases[threadIdx.x] = unit_bias<Storage>(options.direction[blockIdx.z], bias_unit, hidden);
    peepholes[threadIdx.x] = unit_peephole<Storage>(inputs, bias_unit, hidden);
  }

  // Clear the tiles, for their padding must be finite, and take the rows' lengths.
  const int first_row = static_cast<int>(blockIdx.y) * group_rows;
  for (int i = threadIdx.x * kLaneBytes; i < kTileRows * stride; i += kGroupThreads * kLaneBytes) {
    *reinterpret_cast<uint4*>(tiles + i) = make_uint4(0, 0, 0, 0);
  }
  if (threadIdx.x == 0) *abandoned = 0;
  if (threadIdx.x < group_rows)
    row_lengths[threadIdx.x] = row_length(args, first_row + threadIdx.x);
  __syncthreads();
  int group_steps = 0;  // steps of the longest row
  for (int row = lane_index; row < group_rows; row += kWarpSize) {
    group_steps = max(group_steps, row_lengths[row]);
  }
  group_steps = __reduce_max_sync(0xffffffffu, group_steps);

  // Load the initial states of this lane's cells.
  const int columns = group.tiles * kLaneRows;
  const auto column_of = [&](int cell) { return k_warp + cell * group.k_splits; };
  // NOTE: what depends on a cell's column is kept in registers for the first cell only.
  const auto step_column_of = [&](int cell) {
    return cell == 0 ? k_warp : ptx::opaque(column_of(cell));
  };
  const auto row_of_column = [&](int column) {  // counted within the group
    return column / kLaneRows * kTileRows + lane.t * kLaneRows + column % kLaneRows;
  };
  const auto row_of = [&](int cell) { return row_of_column(column_of(cell)); };
  const auto is_real_cell = [&](int cell) {
    return real_unit && column_of(cell) < columns && first_row + row_of(cell) < args.batch;
  };
  // Steps in which a cell of this lane's unit takes part.
  const auto length_of = [&](int row) { return real_unit ? row_lengths[row] : 0; };
  const Storage zero = to_storage<Storage>(0.0f);
#pragma unroll
  for (int cell = 0; cell < kGroupCells; ++cell) {
    const int64_t offset = int64_t{first_row + row_of(cell)} * hidden + unit;
    const bool exists = is_real_cell(cell);
    own_c[cell * kGroupThreads] = exists ? element_or<Storage>(d.c_0, offset, 0.0f) : 0.0f;
    own_h[cell * kGroupThreads] = exists ? element_or<Storage>(d.h_0, offset, 0.0f) : 0.0f;
    own_mask[cell * kGroupThreads] =
        exists ? element_or<Storage>(inputs.h_mask, offset, 1.0f) : 1.0f;
  }

  // Step s runs at the time that `time_of` gives.
  const auto time_of = [&](int s) { return reverse ? group_steps - 1 - s : s; };
  const auto first_row_at = [&](int t) { return int64_t{t} * args.batch + first_row; };
  // Pointers to the first cell of this lane, which run along with the steps; the other cells' rows
  // lie at 32-bit offsets from it.
  const int64_t step_rows = int64_t{reverse ? -1 : 1} * args.batch;
  const int64_t lane_row = first_row_at(time_of(0)) + row_of(0);
  const int y_columns = args.directions * hidden;
  const float* preactivations =
      static_cast<const float*>(d.preactivations) + lane_row * kGates * hidden + unit;
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
  // Whether rows that take part in step s are reset there, and zoneout's masks of that step: a bit
  // for each cell once they are packed. NOTE: bytes at first, which are not looked at before
  // others' h is awaited.
  uint8_t reset[kGroupCells] = {};
  KeepFlags<kGroupCells> keep;
  const auto load_flags = [&](int s, int reset_step) {
    const int t = time_of(s), reset_t = time_of(reset_step);
#pragma unroll
    for (int cell = 0; cell < kGroupCells; ++cell) {
      const int column = step_column_of(cell);
      if (column >= columns) break;
      const int row = row_of_column(column);
      const int length = length_of(row);
      const int64_t index = (first_row_at(t) + row) * hidden + unit;
      keep.load(inputs, cell, s < group_steps && t < length, index);
      if (args.reset_mask == nullptr) continue;
      reset[cell] = reset_step < group_steps && reset_t < length
                        ? (args.reset_mask + first_row_at(reset_t))[row]
                        : uint8_t{0};
    }
  };
  const auto pack_flags = [&] {
    uint32_t flags = 0;
#pragma unroll
    for (int cell = 0; cell < kGroupCells; ++cell) {
      flags |= (reset[cell] != 0 ? 1u : 0u) << cell;
      flags |= (keep.c[cell] != 0 ? 1u : 0u) << (kGroupCells + cell);
      flags |= (keep.h[cell] != 0 ? 1u : 0u) << (2 * kGroupCells + cell);
    }
    return flags;
  };
  // Puts in what a reset before the next step does to cell `cell`, of that row.
  const auto put_in = [&](int cell, int row) {
    const int64_t state = int64_t{first_row + row} * hidden + unit;
    own_h[cell * kGroupThreads] =
        to_accumulator(to_storage<Storage>(element_or<Storage>(inputs.reset_h, state, 0.0f)));
    own_c[cell * kGroupThreads] = element_or<Storage>(inputs.reset_c, state, 0.0f);
  };

  // Writes what enters the tiles' rows that begin with step s. This warp's rows are those of its
  // number.
  const auto begin_rows = [&](int s) {
    const int t = time_of(s);
    for (int tile = 0; tile < group.tiles; ++tile) {
      const int row = tile * kTileRows + warp;
      const int steps = row_lengths[row];
      if (steps == 0 || s != (reverse ? group_steps - steps : 0)) continue;
      const bool is_reset =
          args.reset_mask != nullptr && args.reset_mask[first_row_at(t) + row] != 0;
      const void* const source = is_reset ? inputs.reset_h : d.h_0;
      Operand* target =
          reinterpret_cast<Operand*>(tiles + tile_row(warp) * stride + tile * row_bytes);
      for (int column = lane_index; column < hidden; column += kWarpSize) {
        const int64_t state = int64_t{first_row + row} * hidden + column;
        target[column] =
            Product::operand(to_storage<Storage>(element_or<Storage>(source, state, 0.0f) *
                                                 element_or<Storage>(inputs.h_mask, state, 1.0f)));
      }
    }
  };

  // The pieces that this lane copies, of its warp's rows: a bit for each that exists. The last one
  // of a row may hold units past H, which are published too.
  constexpr int kPieceBytes = kPieceUnits * sizeof(Operand);  // in a tile
  const int slot_pieces = slot_bytes / kPieceBytes, row_pieces = row_bytes / kPieceBytes;
  const int unit_pieces = (hidden + kPieceUnits - 1) / kPieceUnits;
  const bool is_published = unit < unit_pieces * kPieceUnits;
  uint64_t real_pieces = 0;
  for (int i = 0, piece = lane_index; piece < slot_pieces; ++i, piece += kWarpSize) {
    const int row = piece / row_pieces * kTileRows + warp;
    const bool is_real = first_row + row < args.batch && piece % row_pieces < unit_pieces;
    real_pieces |= uint64_t{is_real} << i;
  }

  uint32_t flags = 0;
  if (group_steps > 0) {
    load_flags(0, 0);
#pragma unroll
    for (int cell = 0; cell < kGroupCells; ++cell) {
      if (reset[cell] != 0) put_in(cell, row_of(cell));
    }
    begin_rows(0);
    fetch_preactivations(time_of(0));
    load_flags(0, 1);
    flags = pack_flags();
  }
  __syncthreads();
  const uint32_t abandoned_address = ptx::opaque(ptx::shared_address(abandoned));
  int s = 0;
  for (; s < group_steps; ++s) {
    const int t = time_of(s);
    const bool last = s + 1 == group_steps;

    // The recurrent GEMM: multiply this warp's part of W_hh by h_prev.
    int tile = 0;
    do {
      float sums[kGates][kLaneRows];
      TileProduct<Product, kGates>::template multiply<kGroupChunks>(
          sums, weights, register_chunks, shared_weights,
          tiles + tile * row_bytes + k_warp * group.warp_chunks * kChunkBytes, stride, lane);
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j) {
        partials[(tile * kLaneRows + j) * kGroupThreads + threadIdx.x] =
            make_float4(sums[0][j], sums[1][j], sums[2][j], sums[3][j]);
      }
    } while (++tile < group.tiles);
    __syncthreads();
    ptx::wait_for_copies();

    // The epilogue: add up the parts of K, in their order, and apply the cell; publish what enters
    // the next step to the group; write the outputs and what the backward needs.
    char* const buffer = exchange + s % 2 * buffer_bytes;
    const uint32_t tag = tag_of_step<kEnteringTag>(s);
#pragma unroll
    for (int cell = 0; cell < kGroupCells; ++cell) {
      const int column = step_column_of(cell);
      if (column >= columns) break;
      const int row_in_group = row_of_column(column);
      const float4* part = partials + column * kGroupThreads + threadIdx.x - k_warp * kWarpSize;
      const float4 a = sum_parts(part, group.k_splits);
      const float4 bias = biases[unit_warp * kWarpUnits + lane.g];
      const float4 x = own_preactivations[cell * kGroupThreads];
      const auto flag = [&](int kind) { return (flags >> (kind * kGroupCells + cell) & 1) != 0; };
      const OptionValues<float> values = option_values(
          options, inputs, peepholes[unit_warp * kWarpUnits + lane.g], flag(1), flag(2));
      const OptionCellOutput<float> output = option_cell_forward<DeviceMath>(
          a.x + x.x + bias.x, a.y + x.y + bias.y, a.z + x.z + bias.z, a.w + x.w + bias.w,
          own_c[cell * kGroupThreads], values);
      const Gates<float>& gates = output.gates;
      float h_next = output.cell_output;
      if (values.has_keep_h) {
        h_next = fmaf(values.keep_h, own_h[cell * kGroupThreads], (1 - values.keep_h) * h_next);
      }
      const bool active = t < length_of(row_in_group);
      const Storage h = active ? to_storage<Storage>(h_next) : zero;
      if (active) {
        own_c[cell * kGroupThreads] = output.c;
        own_h[cell * kGroupThreads] = to_accumulator(h);
      }
      const float c_out = own_c[cell * kGroupThreads];
      if (flag(0)) put_in(cell, row_in_group);
      if (!last && is_published) {
        const float entering =
            active || flag(0) ? own_h[cell * kGroupThreads] * own_mask[cell * kGroupThreads] : 0.0f;
        char* row = buffer + ((lane.t * kLaneRows + column % kLaneRows) * slot_bytes +
                              column / kLaneRows * row_bytes) *
                                 kWordBytes;
        ptx::store_relaxed(
            reinterpret_cast<uint32_t*>(row) + unit,
            entering_word<Product>(Product::operand(to_storage<Storage>(entering))) | tag);
      }

      if (active && d.gates != nullptr) {
        // NOTE: gates lie as pre-activations do, whose pointer serves them too.
        Storage* out = static_cast<Storage*>(d.gates) +
                       (preactivations - static_cast<const float*>(d.preactivations)) +
                       offset_of(cell, row_in_group, kGates * hidden);
        out[kInputGate * hidden] = to_storage<Storage>(gates.i);
        out[kForgetGate * hidden] = to_storage<Storage>(gates.f);
        out[kCellGate * hidden] = to_storage<Storage>(gates.g);
        out[kOutputGate * hidden] = to_storage<Storage>(gates.o);
      }
      if (active && d.cells != nullptr) {
        cells_out[offset_of(cell, row_in_group, hidden)] = c_out;
      }
      if (real_unit && first_row + row_in_group < args.batch) {
        Storage* out = y_out + offset_of(cell, row_in_group, y_columns);
        *out = h;
        if (d.cell_states != nullptr) {
          static_cast<Storage*>(d.cell_states)[out - static_cast<Storage*>(d.y)] =
              active ? to_storage<Storage>(c_out) : zero;
        }
      }
    }
    y_out += step_rows * y_columns;
    cells_out += step_rows * hidden;

    // NOTE: looked at here, where the others' h is on its way anyway. It was set before the barrier
    // ahead of this step's products, so all threads see it.
    if (ptx::load_shared(abandoned_address) != 0) break;
    if (last) continue;

    // Wait for what others publish; fetch what the next step needs of memory meanwhile.
    BoundedWait wait(group, group_index, s, abandoned);
    const uint4* source =
        reinterpret_cast<const uint4*>(buffer + warp * slot_bytes * kWordBytes) + lane_index;
    char* target = tiles + tile_row(warp) * stride + lane_index * kPieceBytes;
    const auto fetch = [&] {
      preactivations += step_rows * kGates * hidden;
      fetch_preactivations(time_of(s + 1));
      load_flags(s + 1, s + 2);
    };
    receive_entering<kPieces, Operand>(
        source, target, static_cast<uint32_t>(real_pieces) & kPieceMask, tag, wait, fetch);
    for (int i = kPieces; i * kWarpSize < slot_pieces; i += kPieces) {
      receive_entering<kPieces, Operand>(
          source + i * kWarpSize, target + i * kWarpSize * kPieceBytes,
          static_cast<uint32_t>(real_pieces >> i) & kPieceMask, tag, wait, [] {});
    }
    flags = pack_flags();
    if (reverse && args.lengths != nullptr) {
      __syncwarp();
      begin_rows(s + 1);
    }
    __syncthreads();
  }

  // Write the final states, and zeros past the end of the group's longest row; where a wait was
  // given up, NaN for all that was not computed.
  const bool complete = s == group_steps;
  const Storage nan = to_storage<Storage>(__int_as_float(0x7fc00000));
#pragma unroll
  for (int cell = 0; cell < kGroupCells; ++cell) {
    if (!is_real_cell(cell)) continue;
    const int64_t n = ptx::opaque(first_row) + row_of(cell);
    const Storage h = complete ? to_storage<Storage>(own_h[cell * kGroupThreads]) : nan;
    static_cast<Storage*>(d.h_n)[n * hidden + unit] = h;
    static_cast<Storage*>(d.c_n)[n * hidden + unit] =
        complete ? to_storage<Storage>(own_c[cell * kGroupThreads]) : nan;
    for (int rest = s; rest < args.steps; ++rest) {
      const int t = rest < group_steps ? time_of(rest) : rest;
      const int64_t output = (int64_t{t} * args.batch + n) * args.directions * hidden + unit;
      const Storage value = rest < group_steps ? nan : zero;
      static_cast<Storage*>(d.y)[output] = value;
      if (d.cell_states != nullptr) static_cast<Storage*>(d.cell_states)[output] = value;
    }
  }
}

}  // namespace lstm_fused::cuda
