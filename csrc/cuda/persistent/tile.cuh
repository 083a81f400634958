// SPDX-License-Identifier: BSD-3-Clause
// Products of resident weights with a tile of eight rows of the batch, as all persistent kernels
// make them. layout.h says how both operands lie in memory.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/types.h"
#include "cuda/device/ptx.cuh"
#include "cuda/device/storage.cuh"
#include "cuda/persistent/layout.h"

namespace lstm_fused::cuda {

// The types and the instruction of a product. `Storage`: type in memory; `Operand`: type in the
// tile.
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

// A lane's place in its warp, lane = 4g + t.
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

// A thread's weights that did not fit its registers, in shared memory: `chunks` of kWeightRows
// vectors each. `first` is the thread's first vector, and the others follow at distances of
// `threads`. NOTE: two rows' words alternate, as an mma.sync takes them: it wants them in
// neighbouring registers.
struct SharedWeights {
  uint4* first = nullptr;
  int chunks = 0;
  int threads = 0;

  template <int kWeightRows>
  __device__ __forceinline__ void store(const uint4 (&weights)[kWeightRows], int chunk) const {
#pragma unroll
    for (int m = 0; m < kWeightRows; m += 2) {
      const uint4 &lower = weights[m], &upper = weights[m + 1];
      uint4* place = first + (chunk * kWeightRows + m) * threads;
      place[0] = make_uint4(lower.x, upper.x, lower.y, upper.y);
      place[threads] = make_uint4(lower.z, upper.z, lower.w, upper.w);
    }
  }
  template <int kWeightRows>
  __device__ __forceinline__ void load(uint4 (&weights)[kWeightRows], int chunk) const {
#pragma unroll
    for (int m = 0; m < kWeightRows; m += 2) {
      const uint4* place = first + (chunk * kWeightRows + m) * threads;
      const uint4 begin = place[0], end = place[threads];
      weights[m] = make_uint4(begin.x, begin.z, end.x, end.z);
      weights[m + 1] = make_uint4(begin.y, begin.w, end.y, end.w);
    }
  }
};

// Multiplies kWeightRows rows of weights (M) for each g by the tile's rows: sums[m][j] belongs to
// weight row m of this lane's g and to the tile's row 2t + j. `tile`: the first byte of the K that
// goes with weights[0]; the K of the weights in shared memory follows that of the kChunks in
// registers. `chunks`: how many of these there are, kChunks where any is in shared memory. Every
// row of a tile is summed in the same order.
template <typename Product, int kWeightRows>
struct TileProduct {
  static_assert(kWeightRows % 2 == 0, "mma.sync takes 16 = 2 x 8 rows of weights");
  static constexpr int kPairs = kWeightRows / 2;
  // Sums of each output. NOTE: with two of them, of the chunks' first and second steps of K, a
  // chain of mma.sync, of which each waits for the one before, is half as long. Four pairs of rows
  // are chains enough for a tensor core.
  static constexpr int kSums = kPairs >= 4 ? 1 : 2;
  using Sums = float[kSums][kPairs][4];

  template <int kChunks, int kUnroll = 1>
  static __device__ __forceinline__ void multiply(float (&sums)[kWeightRows][kLaneRows],
                                                  const uint4 (*weights)[kWeightRows], int chunks,
                                                  const SharedWeights& shared, const char* tile,
                                                  int stride, const Lane& lane) {
    constexpr float kZeros[kWeightRows][kLaneRows] = {};
    multiply_add<kChunks, kUnroll>(sums, kZeros, kZeros, weights, chunks, shared, tile, stride,
                                   lane);
  }

  // multiply, of a number of chunks, one at least, that the launch knows: code of its own for each
  // number, since instructions that are switched off take their time all the same.
  template <int kChunks>
  static __device__ __forceinline__ void multiply_some(float (&sums)[kWeightRows][kLaneRows],
                                                       const uint4 (*weights)[kWeightRows],
                                                       int chunks, const SharedWeights& shared,
                                                       const char* tile, int stride,
                                                       const Lane& lane) {
    Sums d = {};
    add_some<0, 1, kChunks>(d, weights, chunks, shared,
                            tile + tile_row(lane.g) * stride + lane.t * kLaneBytes);
    finish(sums, d);
  }

  // multiply, whose sums begin with addends: (first + half of the product) + (second + the rest).
  template <int kChunks, int kUnroll = 1>
  static __device__ __forceinline__ void multiply_add(
      float (&sums)[kWeightRows][kLaneRows], const float (&first)[kWeightRows][kLaneRows],
      const float (&second)[kWeightRows][kLaneRows], const uint4 (*weights)[kWeightRows],
      int chunks, const SharedWeights& shared, const char* tile, int stride, const Lane& lane) {
    const char* column = tile + tile_row(lane.g) * stride + lane.t * kLaneBytes;
    Sums d;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        d[0][pair][i] = first[2 * pair + i / 2][i % 2];
        if constexpr (kSums == 2) d[1][pair][i] = second[2 * pair + i / 2][i % 2];
      }
    }
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      if (chunk < chunks) add(d, weights[chunk], column, chunk);
    }
    add_shared<kChunks, kUnroll>(d, shared, column);
    finish(sums, d);
  }

 private:
  // Adds the chunks from kBegin on; there are kFewest to kMost in all in registers, and some in
  // shared memory only behind kMost. Products hide the choice of the code for those behind them.
  template <int kBegin, int kFewest, int kMost>
  static __device__ __forceinline__ void add_some(Sums& d, const uint4 (*weights)[kWeightRows],
                                                  int chunks, const SharedWeights& shared,
                                                  const char* column) {
#pragma unroll
    for (int chunk = kBegin; chunk < kFewest; ++chunk) add(d, weights[chunk], column, chunk);
    if constexpr (kFewest == kMost) {
      add_shared<kMost, 1>(d, shared, column);
    } else {
      constexpr int kHalf = (kFewest + kMost) / 2;
      if (chunks > kHalf) {
        add_some<kFewest, kHalf + 1, kMost>(d, weights, chunks, shared, column);
      } else {
        add_some<kFewest, kFewest, kHalf>(d, weights, chunks, {}, column);
      }
    }
  }

  template <int kChunks, int kUnroll>
  static __device__ __forceinline__ void add_shared(Sums& d, const SharedWeights& shared,
                                                    const char* column) {
#pragma unroll kUnroll
    for (int chunk = 0; chunk < shared.chunks; ++chunk) {
      uint4 loaded[kWeightRows];
      shared.load(loaded, chunk);
      add(d, loaded, column, kChunks + chunk);
    }
  }

  static __device__ __forceinline__ void finish(float (&sums)[kWeightRows][kLaneRows],
                                                const Sums& d) {
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j) {
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          float sum = d[0][pair][2 * m + j];
          if constexpr (kSums == 2) sum += d[1][pair][2 * m + j];
          sums[2 * pair + m][j] = sum;
        }
      }
    }
  }

  static __device__ __forceinline__ void add(Sums& d, const uint4 (&weights)[kWeightRows],
                                             const char* column, int chunk) {
    const uint4 b = *reinterpret_cast<const uint4*>(column + chunk * kChunkBytes);
    if constexpr (kSums == 2) {
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        const uint4& lower = weights[2 * pair];
        const uint4& upper = weights[2 * pair + 1];
        Product::mma(d[0][pair], lower.x, upper.x, lower.y, upper.y, b.x, b.y);
        Product::mma(d[1][pair], lower.z, upper.z, lower.w, upper.w, b.z, b.w);
      }
    } else {
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        const uint4& lower = weights[2 * pair];
        const uint4& upper = weights[2 * pair + 1];
        Product::mma(d[0][pair], lower.x, upper.x, lower.y, upper.y, b.x, b.y);
      }
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        const uint4& lower = weights[2 * pair];
        const uint4& upper = weights[2 * pair + 1];
        Product::mma(d[0][pair], lower.z, upper.z, lower.w, upper.w, b.z, b.w);
      }
    }
  }
};

// The product by FFMA: each of a unit's four lanes sums its quarter of K for all eight rows.
template <int kWeightRows>
struct TileProduct<F32Product, kWeightRows> {
  template <int kChunks, int kUnroll = 1>
  static __device__ __forceinline__ void multiply(float (&sums)[kWeightRows][kLaneRows],
                                                  const uint4 (*weights)[kWeightRows], int chunks,
                                                  const SharedWeights& shared, const char* tile,
                                                  int stride, const Lane& lane) {
    // Take four rows at a time: 2·half, 2·half + 1, and those 4 on.
    // NOTE: a real loop. Unrolled, it keeps loads for all rows in flight, and spills.
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      float d[kWeightRows][4] = {};
      const char* rows = tile + 2 * half * stride + lane.t * kLaneBytes;
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        if (chunk < chunks) add(d, weights[chunk], rows, stride, chunk);
      }
#pragma unroll 1
      for (int chunk = 0; chunk < shared.chunks; ++chunk) {
        uint4 loaded[kWeightRows];
        shared.load(loaded, chunk);
        add(d, loaded, rows, stride, kChunks + chunk);
      }

      // Add the quarters: (0 + 2) + (1 + 3) in every lane, for addition commutes. The lanes that
      // keep the rows of this half are t = half and t = half + 2.
      const bool upper = lane.t >= 2;
#pragma unroll
      for (int m = 0; m < kWeightRows; ++m) {
#pragma unroll
        for (int j = 0; j < kLaneRows; ++j) {
          const float kept = upper ? d[m][2 + j] : d[m][j];
          const float sent = upper ? d[m][j] : d[m][2 + j];
          const float two = kept + __shfl_xor_sync(0xffffffffu, sent, 2);
          const float four = two + __shfl_xor_sync(0xffffffffu, two, 1);
          if (lane.t % 2 == half) sums[m][j] = four;
        }
      }
    }
  }

  // multiply, with two addends to each sum.
  template <int kChunks, int kUnroll = 1>
  static __device__ __forceinline__ void multiply_add(
      float (&sums)[kWeightRows][kLaneRows], const float (&first)[kWeightRows][kLaneRows],
      const float (&second)[kWeightRows][kLaneRows], const uint4 (*weights)[kWeightRows],
      int chunks, const SharedWeights& shared, const char* tile, int stride, const Lane& lane) {
    multiply<kChunks, kUnroll>(sums, weights, chunks, shared, tile, stride, lane);
#pragma unroll
    for (int m = 0; m < kWeightRows; ++m) {
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j) sums[m][j] += first[m][j] + second[m][j];
    }
  }

 private:
  static __device__ __forceinline__ void add(float (&d)[kWeightRows][4],
                                             const uint4 (&weights)[kWeightRows], const char* rows,
                                             int stride, int chunk) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // The row is 0, 1, 4 or 5, counted from 2·half: tile_row(row + 2) is tile_row(row) + 2 there.
      const int row = tile_row(i % 2 + i / 2 * 4);
      const float4 b = *reinterpret_cast<const float4*>(rows + row * stride + chunk * kChunkBytes);
#pragma unroll
      for (int m = 0; m < kWeightRows; ++m) {
        float sum = d[m][i];
        sum = fmaf(__uint_as_float(weights[m].x), b.x, sum);
        sum = fmaf(__uint_as_float(weights[m].y), b.y, sum);
        sum = fmaf(__uint_as_float(weights[m].z), b.z, sum);
        d[m][i] = fmaf(__uint_as_float(weights[m].w), b.w, sum);
      }
    }
  }
};

// The sum of the first kCount numbers, in their order, element by element.
template <int kCount>
__device__ __forceinline__ float4 sum_of(const float4* number) {
  float4 sum = number[0];
#pragma unroll
  for (int i = 1; i < kCount; ++i) {
    sum = make_float4(sum.x + number[i].x, sum.y + number[i].y, sum.z + number[i].z,
                      sum.w + number[i].w);
  }
  return sum;
}

// The sum of the parts of K, in their order; a warp's are kWarpSize apart. NOTE: loads are under
// way while it is found out whether there are more. Not a row of comparisons, of which the compiler
// makes a jump by a table.
__device__ __forceinline__ float4 sum_parts(const float4* parts, int k_splits) {
  static_assert(kGroupWarps == 8, "the powers of two up to it");
  float4 part[kGroupWarps];
  part[0] = parts[0];
  if (k_splits <= 1) return part[0];
  part[1] = parts[kWarpSize];
  if (k_splits <= 2) return sum_of<2>(part);
#pragma unroll
  for (int k = 2; k < 4; ++k) part[k] = parts[k * kWarpSize];
  if (k_splits <= 4) return sum_of<4>(part);
#pragma unroll
  for (int k = 4; k < kGroupWarps; ++k) part[k] = parts[k * kWarpSize];
  return sum_of<kGroupWarps>(part);
}

// Steps in which row n takes part; 0 where it does not exist.
template <typename Args>
__device__ __forceinline__ int row_length(const Args& args, int n) {
  if (n >= args.batch) return 0;
  if (args.lengths == nullptr) return args.steps;
  const int64_t length = args.lengths[n];
  return static_cast<int>(length < 0 ? 0 : length > args.steps ? args.steps : length);
}

// A lane's two rows of the batch.
struct LaneRows {
  int first;              // batch row of j = 0
  int length[kLaneRows];  // steps in which it takes part; 0 where it does not exist

  template <typename Args>
  __device__ __forceinline__ LaneRows(int tile_first_row, const Lane& lane, const Args& args) {
    first = tile_first_row + lane.t * kLaneRows;
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) length[j] = row_length(args, first + j);
  }

  // Steps in which any row of the tile takes part; the compiler knows that the lanes agree.
  __device__ __forceinline__ int tile_steps() const {
    return __reduce_max_sync(0xffffffffu, max(length[0], length[1]));
  }
};

}  // namespace lstm_fused::cuda
