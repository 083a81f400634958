// SPDX-License-Identifier: BSD-3-Clause
#include "torch/tensors.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <sstream>

#include "common/error.h"

// torch 2.13 has it, before it is null: the library that is built here runs on torch 2.11 too.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace lstm_fused {
namespace {

int64_t element_bytes(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
    case ScalarType::Long:
      return 8;
    case ScalarType::Float:
    case ScalarType::Int:
      return 4;
    case ScalarType::BFloat16:
    case ScalarType::Half:
      return 2;
    default:  // Byte, Bool
      return 1;
  }
}

void check_memory(const Tensor& tensor, bool is_contiguous, const char* name) {
  const int64_t elements = tensor.numel();
  if (elements == 0) return;
  int64_t offset = 0, storage_bytes = 0;
  check_torch(aoti_torch_get_storage_offset(tensor.get(), &offset) == AOTI_TORCH_SUCCESS &&
                  aoti_torch_get_storage_size(tensor.get(), &storage_bytes) == AOTI_TORCH_SUCCESS,
              "tell a tensor's storage");
  int64_t last = offset;
  if (is_contiguous) {
    last += elements - 1;
  } else {
    const auto sizes = tensor.sizes(), strides = tensor.strides();
    for (int64_t i = 0; i < tensor.dim(); ++i) last += (sizes[i] - 1) * strides[i];
  }
  const int64_t bytes = (last + 1) * element_bytes(tensor.scalar_type());
  LSTM_CHECK(storage_bytes >= bytes && tensor.const_data_ptr(), name, " must have ", bytes,
             " bytes of storage for its shape ", Sizes(tensor).text(), ", got ", storage_bytes,
             ": its memory was freed or resized");
}

}  // namespace

Sizes::Sizes(std::initializer_list<int64_t> sizes) {
  for (int64_t size : sizes) sizes_[dim_++] = size;
}

Sizes::Sizes(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  LSTM_CHECK(sizes.size() <= 3, "a tensor must have up to 3 dimensions, got ", sizes.size());
  for (const int64_t size : sizes) sizes_[dim_++] = size;
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
  check_torch(aoti_torch_get_device_type(tensor.get(), &device.type) == AOTI_TORCH_SUCCESS &&
                  (device.type == aoti_torch_device_type_cpu() ||
                   aoti_torch_get_device_index(tensor.get(), &device.index) == AOTI_TORCH_SUCCESS),
              "tell a tensor's device");
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

int64_t byte_count(const Sizes& sizes, ScalarType dtype) {
  // NOTE: strides are products of the sizes that are not 0.
  int64_t most = element_bytes(dtype);
  bool overflows = false, empty = false;
  for (int64_t i = 0; i < sizes.dim(); ++i) {
    const int64_t size = sizes.data()[i];
    empty |= size == 0;
    overflows |= size < 0 || __builtin_mul_overflow(most, std::max<int64_t>(size, 1), &most);
  }
  LSTM_CHECK(!overflows, "a tensor of shape ", sizes.text(), " is too large");
  return empty ? 0 : most;
}

Tensor to_contiguous(const Tensor& tensor, const char* name) {
  const bool is_contiguous = tensor.is_contiguous();
  check_memory(tensor, is_contiguous, name);
  return is_contiguous ? tensor : converted(tensor, tensor.scalar_type());
}

Tensor converted(const Tensor& tensor, ScalarType dtype) {
  Tensor copy = new_tensor(Sizes(tensor), dtype, device_of(tensor));
  check_torch(aoti_torch_copy_(copy.get(), tensor.get(), 0) == AOTI_TORCH_SUCCESS, "copy a tensor");
  return copy;
}

void fill_with_zeros(const Tensor& tensor) {
  check_torch(aoti_torch_zero_(tensor.get()) == AOTI_TORCH_SUCCESS, "fill a tensor with zeros");
}

void check_torch(bool success, const char* what) {
  if (success) return;
  const std::string words = last_error_of_torch();
  if (!words.empty()) fail(words);
  fail("torch could not ", what);
}

std::string last_error_of_torch() {
  if (!torch_exception_get_what_without_backtrace) return "";
  const char* words = torch_exception_get_what_without_backtrace();
  return words ? words : "";
}

}  // namespace lstm_fused
