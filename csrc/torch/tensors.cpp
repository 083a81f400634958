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

Tensor new_tensor(const Sizes& sizes, ScalarType dtype) {
  int64_t strides[3] = {};
  int64_t stride = 1;
  for (int64_t i = sizes.dim() - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= sizes.data()[i] > 1 ? sizes.data()[i] : 1;
  }
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  AtenTensorHandle handle = nullptr;
  STD_TORCH_CHECK(
      aoti_torch_empty_strided(sizes.dim(), sizes.data(), strides, to<int32_t>(from(dtype)),
                               aoti_torch_device_type_cpu(), 0, &handle) == AOTI_TORCH_SUCCESS,
      "could not allocate a tensor of shape ", sizes.text());
  return Tensor(handle);
}

Tensor to_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

}  // namespace lstm_fused
