// SPDX-License-Identifier: BSD-3-Clause
// Elements in memory and in registers: storage types in the one, accumulators in the other.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "common/types.h"
#include "cuda/device/ptx.cuh"

namespace lstm_fused::cuda {

template <typename Storage>
struct AccumulatorOf {
  using Type = float;
};
template <>
struct AccumulatorOf<double> {
  using Type = double;
};
template <typename Storage>
using Accumulator = typename AccumulatorOf<Storage>::Type;

__device__ __forceinline__ float to_accumulator(float value) { return value; }
__device__ __forceinline__ double to_accumulator(double value) { return value; }
__device__ __forceinline__ float to_accumulator(BFloat16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}
__device__ __forceinline__ float to_accumulator(Float16 value) {
  return __half2float(__ushort_as_half(value.bits));
}

// Rounds to nearest even.
template <typename Storage>
__device__ __forceinline__ Storage to_storage(Accumulator<Storage> value) {
  return value;
}
template <>
__device__ __forceinline__ BFloat16 to_storage<BFloat16>(float value) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
}
template <>
__device__ __forceinline__ Float16 to_storage<Float16>(float value) {
  return {__half_as_ushort(__float2half_rn(value))};
}

// Two elements that one instruction rounds and, of 16 bits, one register holds.
template <typename Storage>
class StoragePair {
 public:
  static_assert(sizeof(Storage) == 2);
  StoragePair() = default;
  __device__ __forceinline__ StoragePair(float first, float second) {
    if constexpr (std::is_same_v<Storage, Float16>) {
      const __half2 pair = __floats2half2_rn(first, second);
      word_ = __half_as_ushort(pair.x) | static_cast<uint32_t>(__half_as_ushort(pair.y)) << 16;
    } else {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
      word_ = __bfloat16_as_ushort(pair.x) | static_cast<uint32_t>(__bfloat16_as_ushort(pair.y))
                                                 << 16;
    }
  }
  __device__ __forceinline__ explicit StoragePair(uint32_t word) : word_(word) {}
  __device__ __forceinline__ Storage operator[](int i) const {
    return {static_cast<uint16_t>(i == 0 ? word_ : word_ >> 16)};
  }
  __device__ __forceinline__ uint32_t word() const { return word_; }

 private:
  uint32_t word_ = 0;
};
template <>
class StoragePair<float> {
 public:
  StoragePair() = default;
  __device__ __forceinline__ StoragePair(float first, float second) : value_{first, second} {}
  __device__ __forceinline__ float operator[](int i) const { return value_[i]; }

 private:
  float value_[2] = {};
};

// ptx::load_if and ptx::store_if of an element.
__device__ __forceinline__ void load_if(bool condition, float& value, const float* address) {
  ptx::load_if(condition, value, address);
}
__device__ __forceinline__ void store_if(bool condition, float* address, float value) {
  ptx::store_if(condition, address, value);
}
template <typename Half>
__device__ __forceinline__ void load_if(bool condition, Half& value, const Half* address) {
  static_assert(sizeof(Half) == sizeof(value.bits));
  ptx::load_if(condition, value.bits, &address->bits);
}
template <typename Half>
__device__ __forceinline__ void store_if(bool condition, Half* address, Half value) {
  static_assert(sizeof(Half) == sizeof(value.bits));
  ptx::store_if(condition, &address->bits, value.bits);
}

// kWidth neighbours, moved by one instruction; their address is a multiple of their size.
template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T value[kWidth];
};

// kWidth accumulators in registers.
template <typename Storage, int kWidth>
struct Values {
  Accumulator<Storage> value[kWidth] = {};
  __device__ __forceinline__ Accumulator<Storage>& operator[](int i) { return value[i]; }
  __device__ __forceinline__ const Accumulator<Storage>& operator[](int i) const {
    return value[i];
  }
};

// Elements [offset, offset + kWidth) of an array of T, as accumulators of Storage.
template <typename Storage, int kWidth, typename T = Storage>
__device__ __forceinline__ Values<Storage, kWidth> load(const void* array, int64_t offset) {
  const auto pack =
      *reinterpret_cast<const Pack<T, kWidth>*>(static_cast<const T*>(array) + offset);
  Values<Storage, kWidth> values;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) values[i] = to_accumulator(pack.value[i]);
  return values;
}
template <typename Storage, int kWidth>
__device__ __forceinline__ Values<Storage, kWidth> load_accumulators(const void* array,
                                                                     int64_t offset) {
  return load<Storage, kWidth, Accumulator<Storage>>(array, offset);
}

// Stores accumulators of Storage as elements [offset, offset + kWidth) of an array of T.
template <typename Storage, int kWidth, typename T = Storage>
__device__ __forceinline__ void store(void* array, int64_t offset,
                                      const Values<Storage, kWidth>& values) {
  Pack<T, kWidth> pack;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) pack.value[i] = to_storage<T>(values[i]);
  *reinterpret_cast<Pack<T, kWidth>*>(static_cast<T*>(array) + offset) = pack;
}
template <typename Storage, int kWidth>
__device__ __forceinline__ void store_accumulators(void* array, int64_t offset,
                                                   const Values<Storage, kWidth>& values) {
  store<Storage, kWidth, Accumulator<Storage>>(array, offset, values);
}

// Calls body(Storage{}) for the dtype's storage type.
template <typename Body>
void dispatch_storage(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(float{});
    case DType::kFloat64:
      return body(double{});
    case DType::kBFloat16:
      return body(BFloat16{});
    case DType::kFloat16:
      return body(Float16{});
  }
}

}  // namespace lstm_fused::cuda
