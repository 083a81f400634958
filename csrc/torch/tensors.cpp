// SPDX-License-Identifier: BSD-3-Clause
#include "torch/tensors.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <sstream>

namespace lstm_fused {

Sizes::Sizes(std::initializer_list<int64_t> sizes) {
  for (int64_t size : sizes) sizes_[dim_++] = size;
}

bool Sizes::equals(const Tensor& tensor) const {
  if (tensor.dim() != dim_) return false;
  const auto sizes = tensor.sizes();
  for (int64_t i = 0; i < dim_; ++i) {
    if (sizes[i] != sizes_[i]) return false;
  }
  return true;
}

std::string Sizes::text() const { return shape_text(dim_, sizes_); }

std::string shape_text(int64_t dim, const int64_t* sizes) {
  std::ostringstream text;
  text << "(";
  for (int64_t i = 0; i < dim; ++i) text << (i ? ", " : "") << sizes[i];
  text << (dim == 1 ? ",)" : ")");
  return text.str();
}

std::string Device::text() const {
  if (type == aoti_torch_device_type_cpu()) return "the CPU";
  std::ostringstream text;
  text << (type == aoti_torch_device_type_cuda() ? "cuda:" : "device ") << index;
  return text.str();
}

Device device_of(const Tensor& tensor) {
  Device device;
  STD_TORCH_CHECK(
      aoti_torch_get_device_type(tensor.get(), &device.type) == AOTI_TORCH_SUCCESS &&
          (device.type == aoti_torch_device_type_cpu() ||
           aoti_torch_get_device_index(tensor.get(), &device.index) == AOTI_TORCH_SUCCESS),
      "could not tell a tensor's device");
  return device;
}

void* element(const Tensor& tensor, int64_t offset, int64_t size) {
  if (tensor.numel() == 0) return nullptr;
  return static_cast<char*>(tensor.mutable_data_ptr()) + offset * size;
}

const void* const_element(const Tensor& tensor, int64_t offset, int64_t size) {
  if (tensor.numel() == 0) return nullptr;
  return static_cast<const char*>(tensor.const_data_ptr()) + offset * size;
}

Tensor to_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

}  // namespace lstm_fused
