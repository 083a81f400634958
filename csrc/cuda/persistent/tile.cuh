// SPDX-License-Identifier: BSD-3-Clause
// Products of resident weights with a tile of eight rows of the batch: what the persistent kernels
// share; persistent_layout.h says how both lie in memory.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/types.h"
#include "cuda/persistent/layout.h"
#include "cuda/device/ptx.cuh"
#include "cuda/device/storage.cuh"

namespace lstm_fused::cuda {

// What the products are made of. `Storage`: type in memory; `Operand`: type in the tile.
struct Bf16Product {
  using Storage = BFloat16;
  using Operand = BFloat16;
  static __device__ __forceinline__ Operand operand(Storage x) { return x; }
  static __device__ __forceinline__ void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                             uint32_t a3, uint32_t b0, uint32_t b1) {
    ptx::mma_bf16(d, a0, a1, a2, a3, b0, b1);
  }
};
struct F16Product {
  using Storage = Float16;
  using Operand = Float16;
  static __device__ __forceinline__ Operand operand(Storage x) { return x; }
  static __device__ __forceinline__ void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                             uint32_t a3, uint32_t b0, uint32_t b1) {
    ptx::mma_f16(d, a0, a1, a2, a3, b0, b1);
  }
};
struct Tf32Product {
  using Storage = float;
  using Operand = float;
  static __device__ __forceinline__ Operand operand(Storage x) { return ptx::round_to_tf32(x); }
  static __device__ __forceinline__ void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                             uint32_t a3, uint32_t b0, uint32_t b1) {
    ptx::mma_tf32(d, a0, a1, a2, a3, b0, b1);
  }
};
struct F32Product {  // FFMA: every product and sum is IEEE float
  using Storage = float;
  using Operand = float;
  static __device__ __forceinline__ Operand operand(Storage x) { return x; }
};

// Where a lane stands in its warp.
struct Lane {
  int g, t;
  __device__ __forceinline__ Lane() {
    const int lane = threadIdx.x % kWarpSize;
    g = lane / 4;
    t = lane % 4;
  }
};

template <typename Operand>
constexpr int kLaneOperands = kLaneBytes / static_cast<int>(sizeof(Operand));
template <typename Operand>
constexpr int kChunkOperands = kChunkBytes / static_cast<int>(sizeof(Operand));

// Sixteen bytes of operands.
template <typename Operand>
union LaneOperands {
  uint4 bits;
  Operand element[kLaneOperands<Operand>];
};

// Sixteen bytes of operands from `column` on of a row of H; zero outside of it.
template <typename Product>
__device__ __forceinline__ uint4 load_operands(const typename Product::Storage* row, int column,
                                               int hidden_size) {
  LaneOperands<typename Product::Operand> lane;
  lane.bits = make_uint4(0, 0, 0, 0);
#pragma unroll
  for (int i = 0; i < kLaneOperands<typename Product::Operand>; ++i) {
    if (column + i < hidden_size) lane.element[i] = Product::operand(row[column + i]);
  }
  return lane.bits;
}

// A thread's weights that did not fit its registers, in shared memory: `chunks` of kLines each, of
// which `next` is the thread's first and all others follow at distances of a block's threads.
struct ParkedWeights {
  const uint4* next = nullptr;
  int chunks = 0;

  template <int kLines>
  __device__ __forceinline__ void load(uint4 (&weights)[kLines], int chunk) const {
#pragma unroll
    for (int line = 0; line < kLines; ++line) {
      weights[line] = next[(chunk * kLines + line) * static_cast<int>(blockDim.x)];
    }
  }
};

// Multiplies kLines lines of weights (M) for each g by the tile's rows: sums[line][j] is that of
// line `line` of this lane's g and of row 2t + j. `tile`: the first byte of the K that goes with
// weights[0]; the parked weights' follows that of kChunks in registers. `chunks`: how many of these
// there are, kChunks where any is parked. The order of a sum is the
// same for every row of a tile.
template <typename Product, int kLines>
struct TileProduct {
  static_assert(kLines % 2 == 0, "mma.sync takes 16 = 2 x 8 lines");

  template <int kChunks>
  static __device__ __forceinline__ void multiply(float (&sums)[kLines][kLaneRows],
                                                  const uint4 (*weights)[kLines], int chunks,
                                                  const ParkedWeights& parked, const char* tile,
                                                  int stride, const Lane& lane) {
    const char* column = tile + tile_row(lane.g) * stride + lane.t * kLaneBytes;
    float d[kLines / 2][4] = {};
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      if (chunk < chunks) add(d, weights[chunk], column, chunk);
    }
#pragma unroll 1
    for (int chunk = 0; chunk < parked.chunks; ++chunk) {
      uint4 loaded[kLines];
      parked.load(loaded, chunk);
      add(d, loaded, column, kChunks + chunk);
    }
#pragma unroll
    for (int pair = 0; pair < kLines / 2; ++pair) {
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j) {
        sums[2 * pair][j] = d[pair][j];
        sums[2 * pair + 1][j] = d[pair][2 + j];
      }
    }
  }

 private:
  static __device__ __forceinline__ void add(float (&d)[kLines / 2][4],
                                             const uint4 (&weights)[kLines], const char* column,
                                             int chunk) {
    const uint4 b = *reinterpret_cast<const uint4*>(column + chunk * kChunkBytes);
#pragma unroll
    for (int pair = 0; pair < kLines / 2; ++pair) {
      const uint4& lower = weights[2 * pair];
      const uint4& upper = weights[2 * pair + 1];
      Product::mma(d[pair], lower.x, upper.x, lower.y, upper.y, b.x, b.y);
      Product::mma(d[pair], lower.z, upper.z, lower.w, upper.w, b.z, b.w);
    }
  }
};

// With FFMA each of a unit's four lanes sums its quarter of K for all eight rows.
template <int kLines>
struct TileProduct<F32Product, kLines> {
  template <int kChunks>
  static __device__ __forceinline__ void multiply(float (&sums)[kLines][kLaneRows],
                                                  const uint4 (*weights)[kLines], int chunks,
                                                  const ParkedWeights& parked, const char* tile,
                                                  int stride, const Lane& lane) {
    // Take four rows at a time: 2·half, 2·half + 1, and those 4 on.
    // NOTE: a real loop. Unrolled, it keeps loads for all rows in flight, and spills.
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      float d[kLines][4] = {};
      const char* rows = tile + 2 * half * stride + lane.t * kLaneBytes;
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        if (chunk < chunks) add(d, weights[chunk], rows, stride, chunk);
      }
#pragma unroll 1
      for (int chunk = 0; chunk < parked.chunks; ++chunk) {
        uint4 loaded[kLines];
        parked.load(loaded, chunk);
        add(d, loaded, rows, stride, kChunks + chunk);
      }

      // Add the quarters: (0 + 2) + (1 + 3) in every lane, for addition commutes. The lanes that
      // keep the rows of this half are t = half and t = half + 2.
      const bool upper = lane.t >= 2;
#pragma unroll
      for (int line = 0; line < kLines; ++line) {
#pragma unroll
        for (int j = 0; j < kLaneRows; ++j) {
          const float kept = upper ? d[line][2 + j] : d[line][j];
          const float given = upper ? d[line][j] : d[line][2 + j];
          const float two = kept + __shfl_xor_sync(0xffffffffu, given, 2);
          const float four = two + __shfl_xor_sync(0xffffffffu, two, 1);
          if (lane.t % 2 == half) sums[line][j] = four;
        }
      }
    }
  }

 private:
  static __device__ __forceinline__ void add(float (&d)[kLines][4], const uint4 (&weights)[kLines],
                                             const char* rows, int stride, int chunk) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // Of rows 0, 1, 4 and 5, counted from 2·half, which does not touch what tile_row swaps.
      const int row = tile_row(i % 2 + i / 2 * 4);
      const float4 b = *reinterpret_cast<const float4*>(rows + row * stride + chunk * kChunkBytes);
#pragma unroll
      for (int line = 0; line < kLines; ++line) {
        float sum = d[line][i];
        sum = fmaf(__uint_as_float(weights[line].x), b.x, sum);
        sum = fmaf(__uint_as_float(weights[line].y), b.y, sum);
        sum = fmaf(__uint_as_float(weights[line].z), b.z, sum);
        d[line][i] = fmaf(__uint_as_float(weights[line].w), b.w, sum);
      }
    }
  }
};

// Largest of a value over the rows of a tile, of which lane t holds those of its two rows.
__device__ __forceinline__ int tile_max(int value) {
#pragma unroll
  for (int distance = 1; distance <= 2; distance *= 2) {
    value = max(value, __shfl_xor_sync(0xffffffffu, value, distance));
  }
  return value;
}

// Steps in which row n takes part; 0 where it does not exist.
template <typename Args>
__device__ __forceinline__ int row_length(const Args& args, int n) {
  if (n >= args.batch) return 0;
  if (args.lengths == nullptr) return args.steps;
  const int64_t length = args.lengths[n];
  return static_cast<int>(length < 0 ? 0 : length > args.steps ? args.steps : length);
}

// The two rows of the batch that belong to a lane.
struct LaneRows {
  int first;              // batch row of j = 0
  int length[kLaneRows];  // steps in which it takes part; 0 where it does not exist

  template <typename Args>
  __device__ __forceinline__ LaneRows(int tile_first_row, const Lane& lane, const Args& args) {
    first = tile_first_row + lane.t * kLaneRows;
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) length[j] = row_length(args, first + j);
  }

  // Steps in which any row of the tile takes part.
  __device__ __forceinline__ int tile_steps() const { return tile_max(max(length[0], length[1])); }
};

}  // namespace lstm_fused::cuda
