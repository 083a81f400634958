// SPDX-License-Identifier: BSD-3-Clause
// A warp's part of the recurrent GEMM in the group forward by FFMA: the four gates of its eight
// units, by its part of K.
//
// A word of h_prev that a lane loads from shared memory serves as many FFMA as the lane has rows of
// weights: eight, the gates of two units, its own (of g) and its neighbour's (of g ^ 1). The eight
// lanes of such a pair divide K among them: in two by g % 2, and by t in kParts, as few as leave
// the weights room in registers, for there are as many sums to add up across lanes. Lanes of the
// same part of K take other rows of the tile.
#pragma once

#include <cstdint>

#include "cuda/device/ptx.cuh"
#include "cuda/persistent/tile.cuh"

namespace lstm_fused::cuda {

class GroupFfma {
 public:
  // `w_hh`: (4, H, H). `first_unit`: of the warp. `k_warp`, `chunks`: which part of K the warp has,
  // and of how many chunks (group_warp_chunks). `shared`: the block's vectors of weights that are
  // not in registers.
  __device__ __forceinline__ GroupFfma(const void* w_hh, int hidden_size, int first_unit,
                                       int k_warp, int chunks, uint4* shared)
      : chunks_(chunks), shared_(shared + threadIdx.x) {
    const Lane lane;
    const int parts = ffma_parts(chunks), steps = 2 * chunks / parts;
    first_byte_ = (lane.g % 2 * parts + lane.t % parts) * kLaneBytes;
    const auto load_step = [&](uint4(&weights)[kRows], int step) {
      const int byte = k_warp * chunks * kChunkBytes + first_byte_ + step * 2 * parts * kLaneBytes;
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        const int unit = first_unit + (lane.g ^ m / kGates);
        const float* row = static_cast<const float*>(w_hh) +
                           (int64_t{m % kGates} * hidden_size + unit) * hidden_size;
        const int column = byte / static_cast<int>(sizeof(float));
        weights[m] =
            load_operands<F32Product>(row, unit < hidden_size ? column : hidden_size, hidden_size);
      }
    };
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (step < steps) load_step(weights_[step], step);
    }
#pragma unroll 1
    for (int step = kSteps; step < steps; ++step) {
      uint4 weights[kRows];
      load_step(weights, step);
#pragma unroll
      for (int m = 0; m < kRows; ++m) *shared_vector(step, m) = weights[m];
    }
  }

  // Multiplies by a tile's rows, `stride` apart, whose first byte of the warp's part of K is at
  // `tile`. store(j, sums) is called with the four gates' sums of the lane's unit and row 2t + j.
  template <typename Store>
  __device__ __forceinline__ void multiply(const char* tile, int stride, const Store& store) const {
    if (chunks_ <= 1) {
      multiply_by<1, 2, false>(tile, stride, store);
    } else if (chunks_ <= 2) {
      multiply_by<1, 4, false>(tile, stride, store);
    } else if (chunks_ <= 3) {
      multiply_by<2, 3, false>(tile, stride, store);
    } else if (chunks_ <= 4) {
      multiply_by<2, 4, false>(tile, stride, store);
    } else if (chunks_ <= 6) {
      multiply_by<4, 3, false>(tile, stride, store);
    } else {
      multiply_by<4, 4, true>(tile, stride, store);
    }
  }

 private:
  static constexpr int kRows = 2 * kGates;                      // of weights, of a lane
  static constexpr int kSteps = kGroupChunks * kGates / kRows;  // vectors of a row in registers

  // A lane's steps of K, 2·kParts·16 bytes apart: kRegisterSteps with weights in registers and, if
  // kHasMore, the rest.
  template <int kParts, int kRegisterSteps, bool kHasMore, typename Store>
  __device__ __forceinline__ void multiply_by(const char* tile, int stride,
                                              const Store& store) const {
    static_assert(kRegisterSteps <= kSteps);
    constexpr int kStepBytes = 2 * kParts * kLaneBytes;
    // Rows of the tile at a time: with one part the lane's own two; else, for j = 0 and then 1,
    // rows 2t + j of its own t and of those that have other parts of K. NOTE: a real loop.
    // Unrolled, it keeps loads for all rows in flight, and spills.
    constexpr int kOwn = kParts == 1 ? kLaneRows : 1;
    constexpr int kSlots = kParts * kOwn;
    const Lane lane;
#pragma unroll 1
    for (int j = 0; j < kLaneRows; j += kOwn) {
      float d[kRows][kSlots] = {};
      const char* rows[kSlots];
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        const int row = kLaneRows * (lane.t ^ slot / kOwn) + j + slot % kOwn;
        rows[slot] = tile + row * stride + first_byte_;
      }
#pragma unroll
      for (int step = 0; step < kRegisterSteps; ++step) {
        add(d, weights_[step], rows, step * kStepBytes);
      }
      if constexpr (kHasMore) {
        add_shared(d, rows, kRegisterSteps, kStepBytes);
      }

      // Add up the parts of K: the lane keeps its own rows, and then its own unit. Additions
      // commute, so that all rows are summed in the same order.
      if constexpr (kParts == 4) {
#pragma unroll
        for (int m = 0; m < kRows; ++m) {
#pragma unroll
          for (int slot = 0; slot < 2; ++slot) {
            d[m][slot] += __shfl_xor_sync(0xffffffffu, d[m][slot + 2], 2);
          }
        }
      }
      if constexpr (kParts >= 2) {
#pragma unroll
        for (int m = 0; m < kRows; ++m) d[m][0] += __shfl_xor_sync(0xffffffffu, d[m][1], 1);
      }
#pragma unroll
      for (int own = 0; own < kOwn; ++own) {
        float sums[kGates];
#pragma unroll
        for (int gate = 0; gate < kGates; ++gate) {
          sums[gate] = d[gate][own] + __shfl_xor_sync(0xffffffffu, d[kGates + gate][own], 4);
        }
        store(j + own, make_float4(sums[0], sums[1], sums[2], sums[3]));
      }
    }
  }

  template <int kSlots>
  static __device__ __forceinline__ void add(float (&d)[kRows][kSlots],
                                             const uint4 (&weights)[kRows],
                                             const char* const (&rows)[kSlots], int byte) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const float4 h = *reinterpret_cast<const float4*>(rows[slot] + byte);
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        float sum = d[m][slot];
        sum = fmaf(__uint_as_float(weights[m].x), h.x, sum);
        sum = fmaf(__uint_as_float(weights[m].y), h.y, sum);
        sum = fmaf(__uint_as_float(weights[m].z), h.z, sum);
        d[m][slot] = fmaf(__uint_as_float(weights[m].w), h.w, sum);
      }
    }
  }

  // The steps with weights in shared memory. NOTE: word by word, for which there are registers.
  template <int kSlots>
  __device__ __forceinline__ void add_shared(float (&d)[kRows][kSlots],
                                             const char* const (&rows)[kSlots], int first_step,
                                             int step_bytes) const {
    constexpr int kWords = kLaneBytes / static_cast<int>(sizeof(float));
#pragma unroll 1
    for (int word = first_step * kWords; word / kWords * step_bytes < chunks_ * kChunkBytes;
         ++word) {
      const int step = word / kWords, in_step = word % kWords;
      float h[kSlots];
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        h[slot] = reinterpret_cast<const float*>(rows[slot] + step * step_bytes)[in_step];
      }
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        const float weight = reinterpret_cast<const float*>(shared_vector(step, m))[in_step];
#pragma unroll
        for (int slot = 0; slot < kSlots; ++slot) d[m][slot] = fmaf(weight, h[slot], d[m][slot]);
      }
    }
  }

  __device__ __forceinline__ uint4* shared_vector(int step, int m) const {
    return shared_ + ((step - kSteps) * kRows + m) * kGroupThreads;
  }

  int chunks_, first_byte_;
  uint4* shared_;
  uint4 weights_[kSteps][kRows];
};

}  // namespace lstm_fused::cuda
