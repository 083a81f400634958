// SPDX-License-Identifier: BSD-3-Clause
// In a file of its own: the tests of the CUDA ops allocate on an emulated device instead.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include "cpu/huge_pages.h"
#include "torch/tensors.h"

namespace lstm_fused {

Tensor new_tensor(const Sizes& sizes, ScalarType dtype, const Device& device) {
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
                               device.type, device.index, &handle) == AOTI_TORCH_SUCCESS,
      "could not allocate a tensor of shape ", sizes.text());
  Tensor tensor(handle);
  if (device.type == aoti_torch_device_type_cpu()) {
    cpu::advise_huge_pages(element(tensor, 0, 1), tensor.numel() * tensor.element_size());
  }
  return tensor;
}

}  // namespace lstm_fused
