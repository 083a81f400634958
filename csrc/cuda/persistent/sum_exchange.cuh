// SPDX-License-Identifier: BSD-3-Clause
// How the blocks of a group add up the gradient of h_prev in the backward, of which each has a part
// for all units: a block publishes each unit's part in a slot of the block that owns it, and adds
// up its own units' parts, in the blocks' order.
//
// What is published are words as exchange.cuh has them, but of 64 bits, with the parts of two rows
// and one tag. A word of 64 bits is stored and loaded whole too, and a tag for two numbers is half
// the work to look at and to take off.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/device/ptx.cuh"
#include "cuda/persistent/exchange.cuh"
#include "cuda/persistent/launch.h"
#include "cuda/persistent/tile.cuh"

namespace lstm_fused::cuda {

// Two rows' parts of a sum as a word, whose tag is the lowest bit of the first. Where products are
// exact parts are rounded, ties to odd, else cut, to 23 bits; infinity stays what it is. NOTE: the
// second one too, so that a row's result does not depend on its place.
constexpr uint32_t kSumTag = 1u;
template <typename Product>
__device__ __forceinline__ uint64_t sum_word(const float (&parts)[kLaneRows], uint32_t tag) {
  static_assert(kLaneRows == 2);
  const auto rounded = [](float part) {
    if constexpr (std::is_same_v<Product, F32Product>) return StateWord<Product>::make(part);
    return __float_as_uint(part) & ~kSumTag;
  };
  return uint64_t{rounded(parts[1])} << 32 | (rounded(parts[0]) | tag);
}

// Vectors of four rows' parts, in two words, of kCount blocks on their way to a lane, `stride`
// vectors apart at their source.
template <int kCount>
struct PartsInFlight {
  uint4 words[kCount];

  // Begins to load the first `count`. NOTE: those that there are not are zeros that have come: code
  // without branches, and adding them changes nothing.
  __device__ __forceinline__ void load(const uint4* source, int stride, int count, uint32_t tag) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      words[i] = make_uint4(tag, 0, tag, 0);
      if (i < count) words[i] = ptx::load_relaxed_pairs(source + i * stride);
    }
  }

  // Waits for them, and adds them to `sum` in their order. Returns early where the wait is over.
  // NOTE: they are added before it is known whether all have come, and anew if not: behind the last
  // one's arrival there is then little left to do.
  __device__ __forceinline__ void receive(float4& sum, const uint4* source, int stride,
                                          uint32_t tag, BoundedWait& wait) {
    while (true) {
      float4 total = sum;
      uint32_t differs = 0;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const uint32_t first = words[i].x - tag, third = words[i].z - tag;
        differs |= first | third;
        total.x += __uint_as_float(first);
        total.y += __uint_as_float(words[i].y);
        total.z += __uint_as_float(third);
        total.w += __uint_as_float(words[i].w);
      }
      total = make_float4(ptx::opaque(total.x), ptx::opaque(total.y), ptx::opaque(total.z),
                          ptx::opaque(total.w));
      if ((ptx::opaque(differs) & kSumTag) == 0) {
        sum = total;
        return;
      }
      if (wait.is_over()) return;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if ((((words[i].x ^ tag) | (words[i].z ^ tag)) & kSumTag) != 0) {
          words[i] = ptx::load_relaxed_pairs(source + i * stride);
        }
      }
    }
  }
};

// A thread's part in it. A slot holds one block's parts for another one: (tiles, kUnits, 8 rows).
// The threads of a block share its sums out by vectors of four rows of a unit, and by `sources`:
// each adds up every sources-th block's vector. What is left to add up are the sources' sums, which
// the caller keeps in shared memory. kKeepsPlaces: places in memory are kept, and not found anew in
// every step.
template <typename Product, int kUnits, bool kKeepsPlaces>
class SumExchange {
 public:
  int slot_vectors;  // of 16 bytes
  int sources;

  __device__ __forceinline__ SumExchange(const GroupArgs& group, int group_index, int group_tiles,
                                         int hidden)
      : slot_vectors(group_tiles * kTileRows * kUnits / 4),
        sources(kGroupThreads / slot_vectors),
        blocks_(static_cast<int>(gridDim.x)),
        slots_(reinterpret_cast<uint4*>(group.exchange) +
               int64_t{group_index} * 2 * blocks_ * blocks_ * slot_vectors) {
    const int block = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
    const int source = thread / slot_vectors, vector = thread % slot_vectors;
    // NOTE: units past the last output tile have no parts.
    const int tiled_units = (hidden + 2 * kWarpUnits - 1) / (2 * kWarpUnits) * (2 * kWarpUnits);
    const bool has_parts = source < sources && block * kUnits + vector / 2 % kUnits < tiled_units;
    source_blocks_ = has_parts ? (blocks_ - source + sources - 1) / sources : 0;
    received_ = (block * blocks_ + source) * slot_vectors + vector;
    if constexpr (kKeepsPlaces) {
      own_place_ = ptx::opaque(find_own_place());
      received_place_ = ptx::opaque(slots_ + received_);
    }
  }

  // Publishes parts for one tile of rows in one step.
  struct Publisher {
    uint64_t* place;
    int next;  // how far the next output tile's parts are
    uint32_t tag;

    // The sums of the warp's i-th output tile: of the lane's unit of eight, and of the one eight
    // units on.
    __device__ __forceinline__ void operator()(int i, const float (&first)[kLaneRows],
                                               const float (&second)[kLaneRows]) const {
      ptx::store_relaxed(place + i * next, sum_word<Product>(first, tag));
      ptx::store_relaxed(place + i * next + kWarpUnits * 4, sum_word<Product>(second, tag));
    }
  };
  __device__ __forceinline__ Publisher publisher(int s) const {
    uint64_t* place = nullptr;
    if constexpr (kKeepsPlaces) {
      place = own_place_;
    } else {
      place = find_own_place();
    }
    return {place + 2 * buffer_vectors(s),
            kGroupWarps * 2 * kWarpUnits / kUnits * blocks_ * slot_vectors * 2,
            tag_of_step<kSumTag>(s)};
  }
  // How far the parts of the group's next tile of rows are.
  static constexpr int kNextTile = kUnits * 4;

  // Waits for the parts of this thread's vector in step s, kVectors of them in flight at once, and
  // adds them up. Returns early where the wait is over.
  template <int kVectors, bool kKnowsFew = false>
  __device__ __forceinline__ float4 receive(int s, BoundedWait& wait) const {
    const uint4* source = nullptr;
    if constexpr (kKeepsPlaces) {
      source = received_place_;
    } else {
      source = slots_ + ptx::opaque(received_);
    }
    source += buffer_vectors(s);
    const uint32_t tag = tag_of_step<kSumTag>(s);
    const int stride = sources * slot_vectors;
    const int most_blocks = (blocks_ + sources - 1) / sources;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    const auto receive_some = [&](auto count, int begin) {
      PartsInFlight<decltype(count)::value> parts;
      parts.load(source + begin * stride, stride, source_blocks_ - begin, tag);
      parts.receive(sum, source + begin * stride, stride, tag, wait);
    };
    // NOTE: code of its own for few: what is switched off takes its time all the same.
    constexpr int kFew = 2;
    if (kKnowsFew && most_blocks <= kFew) {
      receive_some(std::integral_constant<int, kFew>{}, 0);
      return sum;
    }
    int begin = 0;
    do {
      receive_some(std::integral_constant<int, kVectors>{}, begin);
      begin += kVectors;
    } while (begin < most_blocks);
    return sum;
  }

 private:
  static_assert(2 * kWarpUnits <= kUnits, "an output tile's units belong to one block");
  static_assert(kGroupWarps * 2 * kWarpUnits % kUnits == 0, "a warp's tiles are whole slots apart");

  // Where the lane's parts of its warp's first output tile go.
  __device__ __forceinline__ uint64_t* find_own_place() const {
    const Lane lane;
    const int first_unit = ptx::opaque(static_cast<int>(threadIdx.x)) / kWarpSize * 2 * kWarpUnits;
    const int64_t slot = int64_t{first_unit / kUnits} * blocks_ + blockIdx.x;
    return reinterpret_cast<uint64_t*>(slots_ + slot * slot_vectors +
                                       (first_unit % kUnits + lane.g) * 2) +
           lane.t;
  }
  __device__ __forceinline__ int buffer_vectors(int s) const {
    return s % 2 == 0 ? 0 : blocks_ * blocks_ * slot_vectors;
  }

  const int blocks_;
  uint4* const slots_;
  int source_blocks_, received_;
  uint64_t* own_place_;
  const uint4* received_place_;
};

// The sum of the first kCount numbers, `distance` apart, in their order.
template <int kCount>
__device__ __forceinline__ float sum_apart(const float* first, int distance) {
  float number[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) number[i] = first[i * distance];
#pragma unroll
  for (int i = 1; i < kCount; ++i) number[0] += number[i];
  return number[0];
}
__device__ __forceinline__ float sum_apart(const float* first, int distance, int count) {
  // NOTE: a tile has 32 or 64 vectors of a block's 256: no other counts than these.
  if (count > 2) return count > 4 ? sum_apart<8>(first, distance) : sum_apart<4>(first, distance);
  return count > 1 ? sum_apart<2>(first, distance) : *first;
}

// The sources' sums in shared memory: of each column j of the lanes' rows 2t + j, (sources, tiles,
// kUnits, 4 lanes). NOTE: a warp that reads them finds those of its lanes side by side.
struct SourceSums {
  float2* begin;  // 2·kGroupThreads

  __device__ __forceinline__ void store(const float4& sum) const {
    begin[threadIdx.x] = make_float2(sum.x, sum.z);
    begin[kGroupThreads + threadIdx.x] = make_float2(sum.y, sum.w);
  }
  // The first of the sums of a row of the group, 2·slot_vectors apart.
  template <int kUnits>
  __device__ __forceinline__ const float* of(int row, int unit) const {
    return reinterpret_cast<const float*>(begin + row % kLaneRows * kGroupThreads) +
           (row / kTileRows * kUnits + unit) * 4 + row % kTileRows / kLaneRows;
  }
};

}  // namespace lstm_fused::cuda
