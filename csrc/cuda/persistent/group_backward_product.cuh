// SPDX-License-Identifier: BSD-3-Clause
// The product of a block of a group in the backward: its rows of W_hh, transposed, by the gradients
// of its gates. The outputs, units of the gradient of h_prev, come in tiles of sixteen, of which a
// warp has every eighth.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/device/ptx.cuh"
#include "cuda/persistent/backward_cell.cuh"
#include "cuda/persistent/launch.h"
#include "cuda/persistent/tile.cuh"

namespace lstm_fused::cuda {

template <typename Product, int kUnits>
class GroupBackwardProduct {
 public:
  using Storage = typename Product::Storage;
  using Operand = typename Product::Operand;
  static constexpr int kChunks = group_backward_chunks(kUnits, sizeof(Operand));
  static constexpr int kRegisterTiles = group_backward_vectors(kChunks) / kChunks;
  static constexpr int kStride = tile_stride(kChunks);
  static_assert(kRegisterTiles * kChunks == group_backward_vectors(kChunks),
                "registers hold whole tiles");
  static_assert(kLaneOperands<Operand> % kGates == 0, "a lane's vector holds whole units");

  // Loads this lane's weights; `warp_tiles`: a warp's output tiles, at most.
  __device__ __forceinline__ GroupBackwardProduct(const void* w_hh, int hidden, int warp_tiles,
                                                  uint4* shared_vectors, const Lane& lane)
      : shared_vectors_(shared_vectors + threadIdx.x) {
    const int warp = threadIdx.x / kWarpSize;
    const auto load_weights = [&](uint4(&vectors)[2], int tile, int chunk) {
      const int output = (tile * kGroupWarps + warp) * 2 * kWarpUnits + lane.g;
      const int first_unit =
          static_cast<int>(blockIdx.x) * kUnits +
          (chunk * kChunkOperands<Operand> + lane.t * kLaneOperands<Operand>) / kGates;
      load_weight_columns<Product>(
          vectors,
          ptx::opaque(static_cast<const Storage*>(w_hh) + int64_t{first_unit} * hidden + output),
          first_unit, output, hidden);
    };
#pragma unroll
    for (int tile = 0; tile < kRegisterTiles; ++tile) {
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        uint4 vectors[2];
        load_weights(vectors, tile, chunk);
        weights_[tile / kTogether][chunk][tile % kTogether * 2] = vectors[0];
        weights_[tile / kTogether][chunk][tile % kTogether * 2 + 1] = vectors[1];
      }
    }
#pragma unroll 1
    for (int tile = kRegisterTiles; tile < warp_tiles; ++tile) {
#pragma unroll 1
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        uint4 vectors[2];
        load_weights(vectors, tile, chunk);
        shared_weights_of(tile).store(vectors, chunk);
      }
    }
    // NOTE: by way of a reduction, for then the compiler knows that a warp's lanes agree.
    const int tiles = (hidden + 2 * kWarpUnits - 1) / (2 * kWarpUnits);
    tiles_ = __reduce_max_sync(0xffffffffu, (tiles - warp + kGroupWarps - 1) / kGroupWarps);
  }

  // Multiplies by a tile of rows, some output tiles after the other, so that stores are spread over
  // the time of the products. publish(i, first, second) takes the sums of this warp's i-th
  // output tile: of the lane's unit of eight, and of the one eight units on.
  template <typename Publish>
  __device__ __forceinline__ void multiply(const char* tile, const Lane& lane,
                                           const Publish& publish) const {
    if constexpr (kIsFfma) {
#pragma unroll
      for (int i = 0; i < kRegisterTiles; ++i) {
        if (i >= ptx::opaque(tiles_)) break;
        float sums[2][kLaneRows];
        TileProduct<Product, 2>::template multiply<kChunks>(sums, weights_[i], kChunks, {}, tile,
                                                            kStride, lane);
        publish(i, sums[0], sums[1]);
      }
    } else {
      const char* column = tile + tile_row(lane.g) * kStride + lane.t * kLaneBytes;
      uint4 operands[kChunks];
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        operands[chunk] = *reinterpret_cast<const uint4*>(column + chunk * kChunkBytes);
      }
#pragma unroll
      for (int pair = 0; pair < kRegisterTiles / kTogether; ++pair) {
        if (pair * kTogether >= ptx::opaque(tiles_)) break;
        multiply_together(pair, operands, publish);
      }
    }
#pragma unroll 1
    for (int i = kRegisterTiles; i < tiles_; ++i) {
      float sums[2][kLaneRows];
      TileProduct<Product, 2>::template multiply<0>(sums, nullptr, 0, shared_weights_of(i), tile,
                                                    kStride, lane);
      publish(i, sums[0], sums[1]);
    }
  }

 private:
  static constexpr bool kIsFfma = std::is_same_v<Product, F32Product>;
  // NOTE: with mma.sync two tiles go together, so that four chains of sums are under way.
  static constexpr int kTogether = kIsFfma ? 1 : 2;
  static_assert(kRegisterTiles % kTogether == 0, "registers hold all of what goes together");

  // Multiplies by weights in registers, of tiles that go together.
  template <typename Publish>
  __device__ __forceinline__ void multiply_together(int pair, const uint4 (&operands)[kChunks],
                                                    const Publish& publish) const {
    float d[2][kTogether][4] = {};
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const uint4& b = operands[chunk];
#pragma unroll
      for (int m = 0; m < kTogether; ++m) {
        const uint4& lower = weights_[pair][chunk][2 * m];
        const uint4& upper = weights_[pair][chunk][2 * m + 1];
        Product::mma(d[0][m], lower.x, upper.x, lower.y, upper.y, b.x, b.y);
        Product::mma(d[1][m], lower.z, upper.z, lower.w, upper.w, b.z, b.w);
      }
    }
#pragma unroll
    for (int m = 0; m < kTogether; ++m) {
      const int i = pair * kTogether + m;
      const float first[kLaneRows] = {d[0][m][0] + d[1][m][0], d[0][m][1] + d[1][m][1]};
      const float second[kLaneRows] = {d[0][m][2] + d[1][m][2], d[0][m][3] + d[1][m][3]};
      if (m == 0 || i < tiles_) publish(i, first, second);
    }
  }

  // The weights of an output tile that did not fit the registers.
  __device__ __forceinline__ SharedWeights shared_weights_of(int tile) const {
    return {shared_vectors_ + (tile - kRegisterTiles) * kChunks * 2 * kGroupThreads, kChunks,
            kGroupThreads};
  }

  uint4* const shared_vectors_;
  int tiles_;  // of this warp
  uint4 weights_[kRegisterTiles / kTogether][kChunks][2 * kTogether];
};

}  // namespace lstm_fused::cuda
