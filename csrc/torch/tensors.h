// SPDX-License-Identifier: BSD-3-Clause
// The few tensor operations that every call makes, by the shortest way through the stable ABI: a
// step of a small LSTM takes 2 microseconds, and a call through the dispatcher takes 1.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/DeviceType.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <type_traits>

namespace lstm_fused {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Bytes of an element of a dtype that an op takes or gives.
int64_t element_bytes(ScalarType dtype);

// Up to kMaxDimensions sizes, without an allocation.
class Sizes {
 public:
  static constexpr int64_t kMaxDimensions = 3;

  template <typename... Integers, std::enable_if_t<(std::is_integral_v<Integers> && ...), int> = 0>
  Sizes(Integers... sizes) : dim_(sizeof...(sizes)), sizes_{static_cast<int64_t>(sizes)...} {
    static_assert(sizeof...(sizes) <= kMaxDimensions, "the binding's tensors have 3 dimensions");
  }
  // Throws Error where the tensor has more dimensions.
  explicit Sizes(const Tensor& tensor);
  int64_t dim() const { return dim_; }
  const int64_t* data() const { return sizes_; }
  bool equals(const Tensor& tensor) const;
  std::string text() const;  // as Python writes a tuple: (2, 3), (2,)

 private:
  int64_t dim_ = 0;
  int64_t sizes_[kMaxDimensions] = {};
};

std::string shape_text(int64_t dim, const int64_t* sizes);

// A dtype as Python writes it: torch.float32.
std::string dtype_text(ScalarType dtype);

// Where a tensor lies. torch::stable::Device checks itself wherever one is made.
struct Device {
  DeviceType type = DeviceType::CPU;
  int32_t index = 0;  // 0 for the CPU

  bool operator==(const Device& other) const { return type == other.type && index == other.index; }
  bool is_cpu() const { return type == DeviceType::CPU; }
  std::string text() const;  // as Python writes it: cpu, cuda:0
};
Device device_of(const Tensor& tensor);

// Bytes of such a tensor. Throws Error where int64 does not hold them.
int64_t byte_count(const Sizes& sizes, ScalarType dtype);

// An uninitialised, contiguous tensor. Where there is no memory it throws what torch throws.
Tensor new_tensor(const Sizes& sizes, ScalarType dtype, const Device& device);

// Pointer to element `offset`, of `size` bytes each; null for tensors without elements.
void* element(const Tensor& tensor, int64_t offset, int64_t size);
const void* const_element(const Tensor& tensor, int64_t offset, int64_t size);

// The tensor itself if it is contiguous, else a copy that is. Throws Error unless all elements lie
// in its storage, which a program may have resized (to free the memory, as FSDP does).
Tensor to_contiguous(const Tensor& tensor, const char* name);

// A contiguous copy.
Tensor converted(const Tensor& tensor, ScalarType dtype);

void fill_with_zeros(const Tensor& tensor);

// Throws Error, in torch's words if it has any, where a call of torch that should `what` failed.
void check_torch(bool success, const char* what);

// What torch said of its last failure in this thread; empty before torch 2.13, which says nothing.
std::string last_error_of_torch();

}  // namespace lstm_fused
