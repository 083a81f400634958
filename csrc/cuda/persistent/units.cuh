// SPDX-License-Identifier: BSD-3-Clause
// The hidden units of a lane in the one-block kernels: one, or two neighbours, whose elements in
// memory then move by one instruction where they lie so that they may (kMovesPairs).
#pragma once

#include <cstdint>

#include "cuda/device/ptx.cuh"
#include "cuda/device/storage.cuh"

namespace lstm_fused::cuda {

// Elements of a lane's units in one row, rounded and packed. Two have 16 bits each.
template <typename Storage, int kUnits>
struct UnitPack {
  static_assert(kUnits == 1);
  Storage value = to_storage<Storage>(0.0f);

  UnitPack() = default;
  __device__ __forceinline__ explicit UnitPack(const float (&units)[1])
      : value(to_storage<Storage>(units[0])) {}
  __device__ __forceinline__ Storage operator[](int) const { return value; }
  template <bool kMovesPairs>
  __device__ __forceinline__ void store_if(bool condition, Storage* address) const {
    cuda::store_if(condition, address, value);
  }
  // As operands of the product, in a tile.
  template <typename Product>
  __device__ __forceinline__ void store_operands(char* place) const {
    *reinterpret_cast<typename Product::Operand*>(place) = Product::operand(value);
  }
};
template <typename Storage>
struct UnitPack<Storage, 2> {
  StoragePair<Storage> value;

  UnitPack() = default;
  __device__ __forceinline__ explicit UnitPack(const float (&units)[2])
      : value(units[0], units[1]) {}
  __device__ __forceinline__ Storage operator[](int u) const { return value[u]; }
  template <bool kMovesPairs>
  __device__ __forceinline__ void load_if(bool condition, const Storage* address) {
    if constexpr (kMovesPairs) {
      uint32_t word = value.word();
      ptx::load_if(condition, word, reinterpret_cast<const uint32_t*>(address));
      value = StoragePair<Storage>(word);
    } else {
      Storage units[2] = {value[0], value[1]};
#pragma unroll
      for (int u = 0; u < 2; ++u) cuda::load_if(condition, units[u], address + u);
      value = StoragePair<Storage>(units[0].bits | uint32_t{units[1].bits} << 16);
    }
  }
  template <bool kMovesPairs>
  __device__ __forceinline__ void store_if(bool condition, Storage* address) const {
    if constexpr (kMovesPairs) {
      ptx::store_if(condition, reinterpret_cast<uint32_t*>(address), value.word());
    } else {
#pragma unroll
      for (int u = 0; u < 2; ++u) cuda::store_if(condition, address + u, value[u]);
    }
  }
  template <typename Product>
  __device__ __forceinline__ void store_operands(char* place) const {
    *reinterpret_cast<uint32_t*>(place) = value.word();
  }
};

// ptx::load_if and ptx::store_if of the accumulators of a lane's units.
template <bool kMovesPairs, int kUnits>
__device__ __forceinline__ void load_units_if(bool condition, float (&units)[kUnits],
                                              const float* address) {
  if constexpr (kUnits == 2 && kMovesPairs) {
    ptx::load_if(condition, units[0], units[1], address);
  } else {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) ptx::load_if(condition, units[u], address + u);
  }
}
template <bool kMovesPairs, int kUnits>
__device__ __forceinline__ void store_units_if(bool condition, float* address,
                                               const float (&units)[kUnits]) {
  if constexpr (kUnits == 2 && kMovesPairs) {
    ptx::store_if(condition, address, units[0], units[1]);
  } else {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) ptx::store_if(condition, address + u, units[u]);
  }
}

// Writes the gates of a lane's two units as operands of the product.
template <typename Storage>
__device__ __forceinline__ void store_operands(char* place,
                                               const UnitPack<Storage, 2> (&gates)[kGates]) {
  *reinterpret_cast<uint4*>(place) = make_uint4(gates[0].value.word(), gates[1].value.word(),
                                                gates[2].value.word(), gates[3].value.word());
}

}  // namespace lstm_fused::cuda
