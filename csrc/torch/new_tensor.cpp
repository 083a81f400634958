// SPDX-License-Identifier: BSD-3-Clause
// In a file of its own: the tests of the CUDA ops allocate on an emulated device instead.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <string>

#include "common/error.h"
#include "cpu/runtime/huge_pages.h"
#include "torch/allocation.h"
#include "torch/tensors.h"

namespace lstm_fused {
namespace {

std::atomic<AskTorch> ask_torch{nullptr};

// Null where torch gives no memory.
AtenTensorHandle try_to_allocate(const Sizes& sizes, ScalarType dtype, const Device& device) {
  int64_t strides[3] = {};
  int64_t stride = 1;
  for (int64_t i = sizes.dim() - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= sizes.data()[i] > 1 ? sizes.data()[i] : 1;
  }
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  AtenTensorHandle handle = nullptr;
  const AOTITorchError error =
      aoti_torch_empty_strided(sizes.dim(), sizes.data(), strides, to<int32_t>(from(dtype)),
                               device.type, device.index, &handle);
  return error == AOTI_TORCH_SUCCESS ? handle : nullptr;
}

// Tries again by way of who can tell why it failed.
AtenTensorHandle allocate_or_fail(const Sizes& sizes, ScalarType dtype, const Device& device) {
  const std::string words = last_error_of_torch();
  if (const AskTorch ask = ask_torch.load()) {
    ask(sizes, dtype, device);
    if (AtenTensorHandle handle = try_to_allocate(sizes, dtype, device)) return handle;
  }
  if (!words.empty()) fail(words);
  const std::string bytes = std::to_string(byte_count(sizes, dtype));
  if (device.type == aoti_torch_device_type_cpu()) fail_to_allocate(bytes);
  fail("CUDA out of memory. Tried to allocate ", bytes, " bytes on ", device.text(),
       ", in lstm_fused");
}

}  // namespace

void set_ask_torch(AskTorch ask) { ask_torch = ask; }

Tensor new_tensor(const Sizes& sizes, ScalarType dtype, const Device& device) {
  const int64_t bytes = byte_count(sizes, dtype);
  AtenTensorHandle handle = try_to_allocate(sizes, dtype, device);
  if (!handle) handle = allocate_or_fail(sizes, dtype, device);
  Tensor tensor(handle);
  if (device.type == aoti_torch_device_type_cpu()) {
    cpu::advise_huge_pages(element(tensor, 0, 1), bytes);
  }
  return tensor;
}

}  // namespace lstm_fused
