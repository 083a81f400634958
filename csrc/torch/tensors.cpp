// SPDX-License-Identifier: BSD-3-Clause
#include "torch/tensors.h"

#include <algorithm>
#include <cctype>
#include <sstream>

#include "common/error.h"
#include "torch/unstable_torch.h"

namespace lstm_fused {
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

namespace {

void check_memory(const Tensor& tensor, bool is_contiguous, const char* name) {
  const int64_t elements = tensor.numel();
  if (elements == 0) return;
  int64_t storage_bytes = 0;
  check_torch(unstable::storage_bytes(tensor, &storage_bytes), "tell the size of a storage");
  int64_t last = tensor.storage_offset();
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

Sizes::Sizes(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  LSTM_CHECK(sizes.size() <= kMaxDimensions, "a tensor must have up to ", kMaxDimensions,
             " dimensions, got ", sizes.size());
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

std::string dtype_text(ScalarType dtype) {
  const auto name = [&]() -> std::string {
    switch (dtype) {
      case ScalarType::Byte:
        return "uint8";
      case ScalarType::Char:
        return "int8";
      case ScalarType::Short:
        return "int16";
      case ScalarType::Int:
        return "int32";
      case ScalarType::Long:
        return "int64";
      case ScalarType::Half:
        return "float16";
      case ScalarType::Float:
        return "float32";
      case ScalarType::Double:
        return "float64";
      case ScalarType::ComplexHalf:
        return "complex32";
      case ScalarType::ComplexFloat:
        return "complex64";
      case ScalarType::ComplexDouble:
        return "complex128";
      default: {  // bool, bfloat16, uint16 and others, which Python writes in small letters
        std::string text = torch::headeronly::toString(dtype);
        for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
        return text;
      }
    }
  };
  return "torch." + name();
}

std::string Device::text() const {
  if (is_cpu()) return "cpu";
  std::ostringstream text;
  if (type == DeviceType::CUDA) {
    text << "cuda:" << index;
  } else {
    text << "a device of type " << static_cast<int>(type);
  }
  return text.str();
}

Device device_of(const Tensor& tensor) {
  if (tensor.is_cpu()) return {};
  const torch::stable::Device device = tensor.device();
  return {device.type(), device.index()};
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
  check_torch(unstable::copy_(copy, tensor), "copy a tensor");
  return copy;
}

void fill_with_zeros(const Tensor& tensor) {
  check_torch(unstable::zero_(tensor), "fill a tensor with zeros");
}

void check_torch(bool success, const char* what) {
  if (success) return;
  const std::string words = last_error_of_torch();
  if (!words.empty()) fail(words);
  fail("torch could not ", what);
}

std::string last_error_of_torch() {
  const char* words = unstable::last_error();
  return words ? words : "";
}

}  // namespace lstm_fused
