// SPDX-License-Identifier: BSD-3-Clause
// What enters the recurrent GEMM, on its way between the blocks of a group: as
// persistent/exchange.cuh has h, in words that carry their tag, but one unit to a word.
//
// NOTE: two units of 16 bits to a word leave no bit free: that of h is free since |h| ≤ 1, but a
// mask's factor, a state that a reset puts in, or an initial one that zoneout keeps, has no bound.
#pragma once

#include "cuda/persistent/exchange.cuh"

namespace lstm_fused::cuda {

constexpr uint32_t kEnteringTag = 1u;
constexpr int kPieceUnits = 4;  // of a 16-byte piece

template <typename Product>
__device__ __forceinline__ uint32_t entering_word(typename Product::Operand value) {
  if constexpr (sizeof(value) == 2) {
    return static_cast<uint32_t>(value.bits) << 16;
  } else {
    return StateWord<Product>::make(value);
  }
}

// A piece's units, as they lie in a tile.
template <typename Operand>
__device__ __forceinline__ void store_piece(char* tile, const uint4& piece) {
  if constexpr (sizeof(Operand) == 2) {
    *reinterpret_cast<uint2*>(tile) =
        make_uint2(__byte_perm(piece.x, piece.y, 0x7632), __byte_perm(piece.z, piece.w, 0x7632));
  } else {
    *reinterpret_cast<uint4*>(tile) = piece;
  }
}

// As `receive` of persistent/exchange.cuh; `tile`: where the lane's first piece goes.
template <int kPieces, typename Operand, typename Meanwhile>
__device__ __forceinline__ void receive_entering(const uint4* source, char* tile, uint32_t pending,
                                                 uint32_t tag, BoundedWait& wait,
                                                 const Meanwhile& meanwhile) {
  constexpr int kDistance = kWarpSize * kPieceUnits * static_cast<int>(sizeof(Operand));
  uint4 words[kPieces];
  const auto load = [&] {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      if (pending >> i & 1) words[i] = ptx::load_relaxed(source + i * kWarpSize);
    }
  };
  load();
  meanwhile();
  while (true) {
    uint32_t missing = 0;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      if ((pending >> i & 1) == 0) continue;
      const uint4 piece =
          make_uint4(words[i].x ^ tag, words[i].y ^ tag, words[i].z ^ tag, words[i].w ^ tag);
      if (((piece.x | piece.y | piece.z | piece.w) & kEnteringTag) == 0) {
        store_piece<Operand>(tile + i * kDistance, piece);
      } else {
        missing |= 1u << i;
      }
    }
    pending = missing;
    if (pending == 0 || wait.is_over()) return;
    load();
  }
}

}  // namespace lstm_fused::cuda
