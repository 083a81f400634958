// SPDX-License-Identifier: BSD-3-Clause
// The sizes on which the persistent kernels and their plans agree. Free of CUDA's headers.
//
// Weights are the first operand of the product ("M"), the batch is the second ("N"), for a tensor
// core takes 16 x 8 outputs and batches are small. Both operands run along K in memory, and K is
// cut into chunks of 64 bytes of which lane l = 4g + t takes the 16 bytes at 16t. Since a sum may
// take K in any order, provided that both operands take the same, these 16 bytes serve as they are:
// for mma.sync as two steps of K, and for FFMA as a quarter of K. So a lane loads its operands with
// one 16-byte access, without ldmatrix, and all types share one layout of registers and memory.
#pragma once

#include <cstdint>

#include "common/lstm_cell.h"
#include "common/types.h"

namespace lstm_fused::cuda {

constexpr int kWarpSize = 32;
constexpr int kTileRows = 8;                 // rows of the batch in a tile: N of mma.sync m16n8
constexpr int kLaneBytes = 16;               // the widest access of a lane
constexpr int kChunkBytes = 4 * kLaneBytes;  // one access of each of a unit's four lanes
constexpr int kWarpUnits = 8;                // hidden units of a warp: one for each g = lane / 4
constexpr int kLaneRows = 2;  // rows of the batch that a lane ends up with: 2t and 2t + 1
static_assert(kTileRows == 4 * kLaneRows, "a tile's rows are split over the four lanes of a unit");
static_assert(kWarpUnits * 4 == kWarpSize, "a warp's units and rows are split over its lanes");

// The types that products are made of.
enum class ProductKind { kBFloat16, kFloat16, kTf32, kFloat32 };

// One block for all of W_hh: chunks of a row of W_hh that the kernels are compiled for, and no
// others. A lane holds 16 registers of weights for each chunk.
//
// NOTE: 16-bit, 4 chunks: H = 128 takes 16 warps, and 65536 registers leave 128 for each thread,
// 64 of them weights. 32-bit, 6 chunks: H = 96 takes 12 warps with 168 registers, 96 of them
// weights; H = 128 would take 16 warps with 128, all of them weights. The smaller instances spare
// short rows the zeros that fill them up. 16-bit sizes have instances besides for the H that fills
// them (PersistentPlan::full), in which a lane has two units where that pays.
constexpr int kCtaChunks16[] = {2, 4};
constexpr int kCtaChunks32[] = {3, 6};
template <typename Operand>
constexpr const int (&kCtaChunks)[2] = sizeof(Operand) == 2 ? kCtaChunks16 : kCtaChunks32;

constexpr int operand_bytes(ProductKind kind) {
  return kind == ProductKind::kBFloat16 || kind == ProductKind::kFloat16 ? 2 : 4;
}

// Units whose weights fill `chunks`, and the threads that these units take.
LSTM_HOST_DEVICE constexpr int chunk_units(int chunks, int bytes) {
  return chunks * kChunkBytes / bytes;
}
LSTM_HOST_DEVICE constexpr int cta_max_threads(int chunks, int bytes) {
  return chunk_units(chunks, bytes) / kWarpUnits * kWarpSize;
}
// Threads for any H; in the backward warps work in pairs.
LSTM_HOST_DEVICE constexpr int cta_threads(int64_t hidden_size, bool backward) {
  const int64_t units = (backward ? 2 : 1) * kWarpUnits;
  return static_cast<int>((hidden_size + units - 1) / units * units / kWarpUnits) * kWarpSize;
}
LSTM_HOST_DEVICE constexpr bool has_full_warps(int chunks, int bytes, int64_t hidden_size) {
  return bytes == 2 && hidden_size == chunk_units(chunks, bytes);
}
// Hidden units of a lane where all warps are full. NOTE: two are neighbours, whose elements move
// together, and half as many warps have twice the registers: H = 128 then keeps all weights there.
// Where all fits anyway, the forward hides more with twice the warps.
LSTM_HOST_DEVICE constexpr int full_lane_units(int chunks, bool backward) {
  return backward || chunks == kCtaChunks16[1] ? 2 : 1;
}
LSTM_HOST_DEVICE constexpr int full_threads(int chunks, int bytes, bool backward) {
  return cta_max_threads(chunks, bytes) / full_lane_units(chunks, backward);
}
static_assert(cta_max_threads(kCtaChunks16[1], 2) == 512 &&
                  cta_max_threads(kCtaChunks32[1], 4) == 384,
              "the note's 16 and 12 warps");
static_assert(chunk_units(kCtaChunks16[0], 2) % kWarpUnits == 0 &&
                  chunk_units(kCtaChunks32[0], 4) % kWarpUnits == 0,
              "the units of the smaller instances fill their warps too");

// A group of blocks for all of W_hh. Eight warps hold all of an SM's registers, with 255 in each
// thread, the most that a thread can have.
constexpr int kGroupWarps = 8;
constexpr int kGroupThreads = kGroupWarps * kWarpSize;
constexpr int kGroupChunks = 8;  // a lane's chunks of weights in registers
constexpr int kGroupCells = 4;  // a lane's cells, at most: their gates and states are registers too
constexpr int kGroupRegisters = 255;
// A group's tiles, at most: each of the kGroupWarps warps, if all of them split K, has cells of
// kGroupCells of the tiles' columns, and a tile has kLaneRows columns.
constexpr int kMaxGroupTiles = kGroupCells * kGroupWarps / kLaneRows;
static_assert(kMaxGroupTiles * kTileRows <= kGroupWarps * kWarpSize,
              "a thread takes the length of one row");
// 16-byte pieces of h that a lane of a group copies each step, at most: a mask has a bit for each.
constexpr int kMaxLanePieces = 64;
static_assert(kGroupThreads * (kGroupRegisters + 1) == 65536, "one block takes an SM's registers");
static_assert(kGroupChunks * kGates * 4 == 128, "half of a lane's registers are weights");
// The backward in a group: units of a block that the kernels are compiled for; chunks of their
// gates; a lane's pairs of 16-byte vectors of weights in registers, at most.
constexpr int kGroupUnits[] = {16, 32};
constexpr int kGroupBackwardVectors = 16;
LSTM_HOST_DEVICE constexpr int group_backward_chunks(int units, int bytes) {
  return units * kGates * bytes / kChunkBytes;
}
static_assert(kGroupBackwardVectors * 2 * 4 == 128, "half of a lane's registers are weights");
// NOTE: of 16-bit weights for 16 units three quarters of them, which are enough up to H = 768: the
// others go to what is under way of the step.
LSTM_HOST_DEVICE constexpr int group_backward_vectors(int chunks) {
  return chunks == 2 ? kGroupBackwardVectors * 3 / 4 : kGroupBackwardVectors;
}
static_assert(group_backward_chunks(kGroupUnits[0], 2) * kChunkBytes == kGroupUnits[0] * kGates * 2,
              "the gates of the fewest units fill their chunks");
// A tile in shared memory: eight rows of K operands, zero past the real ones.
//
// NOTE: eight lanes of a 16-byte access go together; they are two rows, and must not touch the same
// banks, so the stride is 64 modulo 128 bytes. The lanes that write a column hold rows 2t (then
// 2t + 1), all of one parity; swapping neighbours in the upper half of the tile puts two of them on
// either half of the banks.
LSTM_HOST_DEVICE constexpr int tile_stride(int chunks) { return (chunks | 1) * kChunkBytes; }
LSTM_HOST_DEVICE constexpr int tile_bytes(int chunks) { return kTileRows * tile_stride(chunks); }
LSTM_HOST_DEVICE constexpr int tile_row(int row) { return row ^ (row >> 2 & 1); }
static_assert(tile_stride(1) % 128 == 64 && tile_stride(2) % 128 == 64, "banks of two rows differ");

// The group forward by FFMA (group_ffma.cuh): into how many parts the four lanes t of a unit divide
// a warp's chunks of K, so that weights of up to kGroupChunks of them fit their registers.
LSTM_HOST_DEVICE constexpr int ffma_parts(int chunks) {
  return chunks <= 2 ? 1 : chunks <= 4 ? 2 : 4;
}
// Chunks of the part of K of each of k_splits warps; by FFMA, as many as its lanes can divide.
LSTM_HOST_DEVICE constexpr int group_warp_chunks(int chunks, int k_splits, bool is_ffma) {
  const int part = (chunks + k_splits - 1) / k_splits;
  return is_ffma && part > kGroupChunks / 2 ? (part + 1) / 2 * 2 : part;
}
static_assert(group_warp_chunks(5, 1, true) * 2 % ffma_parts(5) == 0,
              "all lanes have as many steps");
// FFMA's tile in the group forward has its rows in their order. NOTE: the lanes of an access are
// four t, of rows 2t or of some of them, and two of g at other parts of K: without conflicts of
// banks if rows 2t are 32 modulo 128 bytes apart.
LSTM_HOST_DEVICE constexpr int ffma_tile_stride(int chunks) {
  return chunks * kChunkBytes + kLaneBytes;
}
static_assert(2 * ffma_tile_stride(1) % 128 == 32 && 2 * ffma_tile_stride(2) % 128 == 32,
              "banks of four rows differ");
LSTM_HOST_DEVICE constexpr int group_tile_stride(int chunks, bool is_ffma) {
  return is_ffma ? ffma_tile_stride(chunks) : tile_stride(chunks);
}
LSTM_HOST_DEVICE constexpr int group_tile_row(int row, bool is_ffma) {
  return is_ffma ? row : tile_row(row);
}

}  // namespace lstm_fused::cuda
