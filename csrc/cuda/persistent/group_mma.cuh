// SPDX-License-Identifier: BSD-3-Clause
// A warp's part of the recurrent GEMM in the group forward by mma.sync: the four gates of its eight
// units, by its part of K.
#pragma once

#include <cstdint>

#include "cuda/persistent/tile.cuh"

namespace lstm_fused::cuda {

template <typename Product>
class GroupMma {
 public:
  // As GroupFfma's, in group_ffma.cuh.
  __device__ __forceinline__ GroupMma(const void* w_hh, int hidden_size, int first_unit, int k_warp,
                                      int chunks, uint4* shared)
      : chunks_(min(chunks, kGroupChunks)),
        shared_{shared + threadIdx.x, chunks - chunks_, kGroupThreads} {
    using Storage = typename Product::Storage;
    using Operand = typename Product::Operand;
    const Lane lane;
    const int unit = first_unit + lane.g;
    const auto load_weights = [&](uint4(&chunk_weights)[kGates], int chunk) {
      const int column =
          (k_warp * chunks + chunk) * kChunkOperands<Operand> + lane.t * kLaneOperands<Operand>;
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        const Storage* row =
            static_cast<const Storage*>(w_hh) + (int64_t{gate} * hidden_size + unit) * hidden_size;
        chunk_weights[gate] =
            load_operands<Product>(row, unit < hidden_size ? column : hidden_size, hidden_size);
      }
    };
#pragma unroll
    for (int chunk = 0; chunk < kGroupChunks; ++chunk) {
      if (chunk < chunks_) load_weights(weights_[chunk], chunk);
    }
#pragma unroll 1
    for (int chunk = 0; chunk < shared_.chunks; ++chunk) {
      uint4 chunk_weights[kGates];
      load_weights(chunk_weights, kGroupChunks + chunk);
      shared_.store(chunk_weights, chunk);
    }
  }

  // As GroupFfma's.
  template <typename Store>
  __device__ __forceinline__ void multiply(const char* tile, int stride, const Store& store) const {
    float sums[kGates][kLaneRows];
    TileProduct<Product, kGates>::template multiply_some<kGroupChunks>(sums, weights_, chunks_,
                                                                       shared_, tile, stride, {});
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      store(j, make_float4(sums[0][j], sums[1][j], sums[2][j], sums[3][j]));
    }
  }

 private:
  int chunks_;  // in registers
  SharedWeights shared_;
  uint4 weights_[kGroupChunks][kGates];
};

}  // namespace lstm_fused::cuda
