// SPDX-License-Identifier: BSD-3-Clause
// In a file of its own: the tests of the CUDA ops allocate on an emulated device instead.
#include <atomic>
#include <string>

#include "common/error.h"
#include "cpu/runtime/huge_pages.h"
#include "torch/allocation.h"
#include "torch/tensors.h"
#include "torch/unstable_torch.h"

namespace lstm_fused {
namespace {

std::atomic<AskTorch> ask_torch{nullptr};

// Null where torch gives no memory.
AtenTensorHandle try_to_allocate(const Sizes& sizes, ScalarType dtype, const Device& device) {
  int64_t strides[Sizes::kMaxDimensions] = {};
  int64_t stride = 1;
  for (int64_t i = sizes.dim() - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= sizes.data()[i] > 1 ? sizes.data()[i] : 1;
  }
  return unstable::empty_strided(sizes.dim(), sizes.data(), strides, dtype, device.type,
                                 device.index);
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
  if (device.is_cpu()) fail_to_allocate(bytes);
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
  if (device.is_cpu()) {
    cpu::advise_huge_pages(element(tensor, 0, 1), bytes);
  }
  return tensor;
}

}  // namespace lstm_fused
