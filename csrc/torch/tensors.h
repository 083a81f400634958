// SPDX-License-Identifier: BSD-3-Clause
// The few tensor operations that every call makes, by the shortest way through the stable ABI: a
// step of a small LSTM takes 2 microseconds, and a call through the dispatcher takes 1.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <string>

namespace lstm_fused {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Up to three sizes, without an allocation.
class Sizes {
 public:
  Sizes(std::initializer_list<int64_t> sizes);
  int64_t dim() const { return dim_; }
  const int64_t* data() const { return sizes_; }
  bool equals(const Tensor& tensor) const;
  std::string text() const;  // as Python writes a tuple: (2, 3), (2,)

 private:
  int64_t dim_ = 0;
  int64_t sizes_[3] = {};
};

std::string shape_text(int64_t dim, const int64_t* sizes);

// Where a tensor lies, in torch's numbers.
struct Device {
  int32_t type = 0;
  int32_t index = 0;  // 0 for the CPU

  bool operator==(const Device& other) const { return type == other.type && index == other.index; }
  std::string text() const;  // "the CPU", "cuda:0"
};
Device device_of(const Tensor& tensor);

// An uninitialised, contiguous tensor.
Tensor new_tensor(const Sizes& sizes, ScalarType dtype, const Device& device);

// Pointer to element `offset`, of `size` bytes each; null for tensors without elements.
void* element(const Tensor& tensor, int64_t offset, int64_t size);
const void* const_element(const Tensor& tensor, int64_t offset, int64_t size);

// The tensor itself if it is contiguous, else a copy that is.
Tensor to_contiguous(const Tensor& tensor);

}  // namespace lstm_fused
