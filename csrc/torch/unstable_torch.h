// SPDX-License-Identifier: BSD-3-Clause
// All that the binding takes from torch beside the documented surface of its stable ABI (the public
// functions of torch/csrc/stable and torch/headeronly), each with the reason. They are functions of
// torch's C shim, whose ABI torch keeps for compiled models, but whose use by hand it does not
// document. Where a reason falls away, so should the function.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/DeviceType.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>

// torch 2.13 has it, before it is null: the library that is built here runs on torch 2.11 too.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace lstm_fused::unstable {

// ---- Allocating, copying and clearing ----
//
// torch::stable::empty, copy_ and zero_ look an op up by its name and call the dispatcher: that
// takes 1 microsecond, where a step of a small LSTM takes 2. They also throw in the place of saying
// what failed, and what they throw holds none of torch's own words.

// The shim's number of a dtype that the binding allocates; -1 for any other. torch::stable::detail
// has such a conversion, and no public function of the stable ABI does.
inline int32_t dtype_number(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float:
      return aoti_torch_dtype_float32();
    case ScalarType::Double:
      return aoti_torch_dtype_float64();
    case ScalarType::BFloat16:
      return aoti_torch_dtype_bfloat16();
    case ScalarType::Half:
      return aoti_torch_dtype_float16();
    case ScalarType::Long:
      return aoti_torch_dtype_int64();
    case ScalarType::Int:
      return aoti_torch_dtype_int32();
    case ScalarType::Byte:
      return aoti_torch_dtype_uint8();
    case ScalarType::Bool:
      return aoti_torch_dtype_bool();
    default:
      return -1;
  }
}

// An uninitialised tensor, which the caller owns; null where torch gives no memory.
inline AtenTensorHandle empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides,
                                      torch::headeronly::ScalarType dtype,
                                      torch::headeronly::DeviceType device_type,
                                      int32_t device_index) {
  AtenTensorHandle handle = nullptr;
  const AOTITorchError error =
      aoti_torch_empty_strided(dim, sizes, strides, dtype_number(dtype),
                               static_cast<int32_t>(device_type), device_index, &handle);
  return error == AOTI_TORCH_SUCCESS ? handle : nullptr;
}

// False where torch refuses.
inline bool copy_(const torch::stable::Tensor& to, const torch::stable::Tensor& from) {
  return aoti_torch_copy_(to.get(), from.get(), /*non_blocking=*/0) == AOTI_TORCH_SUCCESS;
}
inline bool zero_(const torch::stable::Tensor& tensor) {
  return aoti_torch_zero_(tensor.get()) == AOTI_TORCH_SUCCESS;
}

// ---- What the stable ABI does not tell ----

// Bytes of a tensor's storage, which no public function tells: memory that was freed under a tensor
// is found by them. False where torch refuses.
inline bool storage_bytes(const torch::stable::Tensor& tensor, int64_t* bytes) {
  return aoti_torch_get_storage_size(tensor.get(), bytes) == AOTI_TORCH_SUCCESS;
}

// What torch said of its last failure in this thread, or null. The public functions put it into
// what they throw from torch 2.13 on, in programs that are built for no older torch.
inline const char* last_error() {
  if (!torch_exception_get_what_without_backtrace) return nullptr;
  return torch_exception_get_what_without_backtrace();
}

// ---- Registering ops ----

// Definitions of ops, or kernels for them, which torch forgets with this. STABLE_TORCH_LIBRARY ends
// the process where torch refuses a name, as it does where two copies of a library are loaded.
class Library {
 public:
  Library() = default;
  ~Library() {
    if (handle_) aoti_torch_delete_library_object(handle_);
  }
  Library(const Library&) = delete;

  // Each is false where torch refuses.
  bool begin_definitions(const char* name) {
    return aoti_torch_library_init_def(name, __FILE__, __LINE__, &handle_) == AOTI_TORCH_SUCCESS;
  }
  bool define(const char* schema) {
    return aoti_torch_library_def(handle_, schema) == AOTI_TORCH_SUCCESS;
  }
  bool begin_kernels(const char* name, const char* dispatch_key) {
    return aoti_torch_library_init_impl(name, dispatch_key, __FILE__, __LINE__, &handle_) ==
           AOTI_TORCH_SUCCESS;
  }
  bool implement(const char* op, void (*run)(StableIValue*, uint64_t, uint64_t)) {
    return torch_library_impl(handle_, op, run, TORCH_ABI_VERSION) == AOTI_TORCH_SUCCESS;
  }

 private:
  TorchLibraryHandle handle_ = nullptr;
};

// ---- CUDA ----

#ifdef USE_CUDA
// torch::stable::accelerator::Stream gives the cudaStream_t from torch 2.13 on only. False where
// torch refuses.
inline bool current_cuda_stream(int32_t device_index, void** stream) {
  return aoti_torch_get_current_cuda_stream(device_index, stream) == AOTI_TORCH_SUCCESS;
}
// torch's cublasHandle_t for the current device and stream, which no C++ function wraps.
inline bool current_cublas_handle(void** handle) {
  return torch_get_current_cuda_blas_handle(handle) == AOTI_TORCH_SUCCESS;
}
#endif

}  // namespace lstm_fused::unstable
