// SPDX-License-Identifier: BSD-3-Clause
// How the blocks of a group pass data to each other: words in global memory that carry their own
// readiness. No flag announces them, so that neither a fence nor a second round trip stands between
// what one block computes and what the next one reads.
//
// One bit of each 32-bit word is its tag. There are two buffers, used in turn, zero at launch; the
// k-th use of a buffer (k = 0, 1, …) has the tag ~k & 1, which differs from the tag of what lies
// there from the use before. A writer stores the word with its tag; a reader loads it again and
// again until it has the tag that it waits for.
//
// Why that is right:
//   A word is stored and loaded whole, so its value and its tag belong together. No order between
//   words matters: every one is looked at. Loads and stores are strong and relaxed (st.relaxed.gpu,
//   ld.relaxed.gpu), so they neither race nor stay in a cache.
//   A word is overwritten two steps later, after its writer has read words of all blocks that were
//   computed from it: every reader is done with it, for loads whose values are used have ended.
//
// A wait ends after `wait_limit`: a block that never comes must not hang the device.
#pragma once

#include <cstdint>

#include "cuda/device/ptx.cuh"
#include "cuda/persistent/launch.h"
#include "cuda/persistent/tile.cuh"

namespace lstm_fused::cuda {

// The tag of what step s writes, to buffer s % 2, for words whose tag is the bit kTag.
template <uint32_t kTag>
__device__ __forceinline__ uint32_t tag_of_step(int s) {
  return (s & 2) == 0 ? kTag : 0u;
}

// h as words. In 16 bits, two units' h: |h| ≤ 1, so that bit 30, the highest of the upper one's
// exponent, is free unless h is NaN. A NaN of the upper unit is put in the place of the lower one:
// the recurrent GEMM makes NaN of the whole row either way.
template <typename Product, int kBytes = sizeof(typename Product::Operand)>
struct StateWord {
  static_assert(kBytes == 2);
  static constexpr uint32_t kTag = 1u << 30;
  static constexpr int kUnits = 2;
  // Packs this lane's unit and, on lanes of even units, the next one; all lanes of the warp take
  // part.
  static __device__ __forceinline__ uint32_t make(typename Product::Operand h) {
    constexpr uint32_t kNan = 0x7fff;  // of both 16-bit types
    const uint32_t own = h.bits;
    const uint32_t word = own | __shfl_xor_sync(0xffffffffu, own, 4) << 16;
    return (word & kTag) != 0 ? kNan : word;
  }
};
// In 32 bits the tag is the lowest bit of the mantissa. TF32 has zeros there; float is rounded to
// 23 of its 24 bits, ties to odd, which leaves NaN a NaN.
template <typename Product>
struct StateWord<Product, 4> {
  static constexpr uint32_t kTag = 1u;
  static constexpr int kUnits = 1;
  static __device__ __forceinline__ uint32_t make(float value) {
    const uint32_t bits = __float_as_uint(value);
    return (bits + (~(bits >> 1) & 1u)) & ~1u;
  }
};

// Ends a wait that lasts too long. One for each wait; `shared_abandoned`: a word of the block's,
// which is set when a thread gives up.
class BoundedWait {
 public:
  __device__ __forceinline__ BoundedWait(const GroupArgs& group, int group_index, int step,
                                         int* shared_abandoned)
      : group_(group),
        group_index_(group_index),
        step_(step),
        shared_abandoned_(shared_abandoned) {}

  // To be asked after every poll in vain: whether to give up.
  __device__ __forceinline__ bool is_over() {
    constexpr uint32_t kPollsPerLook = 256;
    return ++polls_ % kPollsPerLook == 0 && look();
  }

 private:
  __device__ __forceinline__ bool look() {
    const uint64_t now = ptx::global_timer();
    if (begin_ == 0) begin_ = now;
    uint32_t* const abandoned = group_.abandoned + group_index_;
    if (ptx::load_relaxed(abandoned) == 0) {
      if (now - begin_ < group_.wait_limit) return false;
      ptx::store_for_host(group_.failure,
                          make_uint4(group_.launch, group_index_, blockIdx.x, step_));
      ptx::store_relaxed(abandoned, 1);
    }
    *shared_abandoned_ = 1;
    return true;
  }

  const GroupArgs& group_;
  const int group_index_, step_;
  int* const shared_abandoned_;
  uint32_t polls_ = 0;
  uint64_t begin_ = 0;
};

// 16-byte pieces of h on their way to a lane, the distance of a warp's lanes apart at their source
// and at their target. NOTE: a piece that there is not counts as come: code without branches.
template <int kPieces, uint32_t kTag>
struct PiecesInFlight {
  uint4 words[kPieces];

  // Begins to load a piece for each bit of `real`, all at once.
  __device__ __forceinline__ void load(const uint4* source, uint32_t real, uint32_t tag) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      words[i] = make_uint4(tag, tag, tag, tag);
      if ((real >> i & 1) != 0) words[i] = ptx::load_relaxed(source + i * kWarpSize);
    }
  }

  // Waits for the first kCount pieces, and copies them to shared memory without their tags. Returns
  // early where the wait is over.
  template <int kCount = kPieces>
  __device__ __forceinline__ void receive(const uint4* source, uint4* target, uint32_t real,
                                          uint32_t tag, BoundedWait& wait) {
    tag = ptx::opaque(tag);  // no code in common with other counts, or it would not wait apart
#pragma unroll
    for (int i = 0; i < kCount; ++i) take_tags(words[i], tag);
    while (true) {
      uint32_t all = 0;
#pragma unroll
      for (int i = 0; i < kCount; ++i) all |= tags(words[i]);
      if ((all & kTag) == 0) break;
      if (wait.is_over()) return;
      bool is_missing[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        is_missing[i] = (tags(words[i]) & kTag) != 0;
        if (is_missing[i]) words[i] = ptx::load_relaxed(source + i * kWarpSize);
      }
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (is_missing[i]) take_tags(words[i], tag);
      }
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if ((real >> i & 1) != 0) target[i * kWarpSize] = words[i];
    }
  }

 private:
  // Takes the tags off; the bit is set then where a tag was wrong. NOTE: by differences, for which
  // there are two kinds of units, and only one for exclusive or.
  static __device__ __forceinline__ void take_tags(uint4& piece, uint32_t tag) {
    piece = make_uint4(piece.x - tag, piece.y - tag, piece.z - tag, piece.w - tag);
  }
  static __device__ __forceinline__ uint32_t tags(const uint4& piece) {
    return piece.x | piece.y | piece.z | piece.w;
  }
};

}  // namespace lstm_fused::cuda
