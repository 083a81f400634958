// SPDX-License-Identifier: BSD-3-Clause
// Stand-in for the CUDA runtime library: memory.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>

#include "device.h"
#include "streams.h"

namespace {

using cuda_on_cpu::check_unsafe;
using cuda_on_cpu::device;
using cuda_on_cpu::Owner;
using cuda_on_cpu::set_error;
using cuda_on_cpu::submit;

// What the device touches must be memory of its own, where that is asked for; what the host touches
// is the host's affair.
cudaError_t check(const void* at, size_t bytes, const char* what) {
  if (bytes == 0 || !device().strict_memory) return cudaSuccess;
  const std::string text = device().memory.check(reinterpret_cast<uint64_t>(at), bytes);
  if (text.empty()) return cudaSuccess;
  return set_error(cudaErrorInvalidValue,
                   std::string(what) + " of " + std::to_string(bytes) + " bytes: " + text);
}

cudaError_t allocate(void** at, size_t bytes, const std::string& name, Owner owner) {
  if (device().is_sticky) return device().error;
  if (const cudaError_t error = check_unsafe(name.c_str())) return error;
  constexpr size_t kAlign = 256;
  *at = nullptr;
  if (bytes == 0) return cudaSuccess;
  if (static_cast<int64_t>(bytes) > device().global_bytes) {
    return set_error(cudaErrorMemoryAllocation, "out of memory");
  }
  static int count = 0;
  *at = aligned_alloc(kAlign, (bytes + kAlign - 1) / kAlign * kAlign);
  if (*at == nullptr) return set_error(cudaErrorMemoryAllocation, "out of memory");
  // Memory that was never written reads as NaN.
  memset(*at, 0xff, bytes);
  device().memory.add(*at, bytes, name + " " + std::to_string(++count), owner);
  return cudaSuccess;
}

cudaError_t give_back(void* at, const char* what, Owner owner) {
  if (at == nullptr) return cudaSuccess;
  if (const cudaError_t error = check_unsafe("the release of memory")) return error;
  const auto* found = device().memory.find(reinterpret_cast<uint64_t>(at));
  if (found == nullptr || found->owner != owner || found->begin != reinterpret_cast<uint64_t>(at)) {
    return set_error(cudaErrorInvalidValue, what);
  }
  device().memory.remove(at);
  free(at);
  return cudaSuccess;
}

cudaError_t copy(void* to, const void* from, size_t count, cudaMemcpyKind kind) {
  if (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) {
    if (const cudaError_t error = check(to, count, "copy to the device")) return error;
  }
  if (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice) {
    if (const cudaError_t error = check(from, count, "copy from the device")) return error;
  }
  memmove(to, from, count);
  if (kind == cudaMemcpyDeviceToDevice) {
    device().copied = const_cast<char*>(static_cast<const char*>(from));
    device().copied_bytes = count;
  }
  return cudaSuccess;
}

cudaError_t fill(void* at, int value, size_t count) {
  if (const cudaError_t error = check(at, count, "memset")) return error;
  memset(at, value, count);
  return cudaSuccess;
}

cudaError_t refuse_captured(cudaStream_t handle) {
  const cuda_on_cpu::Stream* stream = cuda_on_cpu::find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  return stream->capture ? set_error(cudaErrorNotSupported, "memory of a graph is not emulated")
                         : cudaSuccess;
}

}  // namespace

extern "C" {

cudaError_t cudaMalloc(void** at, size_t bytes) {
  return allocate(at, bytes, "cudaMalloc", Owner::kDevice);
}

cudaError_t cudaFree(void* at) {
  return give_back(at, "cudaFree of what cudaMalloc did not give", Owner::kDevice);
}

// Pinned memory is all mapped, at the same address.
cudaError_t cudaHostAlloc(void** at, size_t bytes, unsigned) {
  return allocate(at, bytes, "cudaHostAlloc", Owner::kHost);
}

cudaError_t cudaMallocHost(void** at, size_t bytes) { return cudaHostAlloc(at, bytes, 0); }

cudaError_t cudaFreeHost(void* at) {
  return give_back(at, "cudaFreeHost of what cudaHostAlloc did not give", Owner::kHost);
}

cudaError_t cudaHostGetDevicePointer(void** on_device, void* at, unsigned) {
  const auto* found = device().memory.find(reinterpret_cast<uint64_t>(at));
  if (found == nullptr || found->owner != Owner::kHost) {
    return set_error(cudaErrorInvalidValue, "the device pointer of what is not pinned memory");
  }
  *on_device = at;
  return cudaSuccess;
}

// In a capture these would be nodes of the graph, with memory of its own.
cudaError_t cudaMallocAsync(void** at, size_t bytes, cudaStream_t stream) {
  if (const cudaError_t error = refuse_captured(stream)) return error;
  return cudaMalloc(at, bytes);
}
cudaError_t cudaFreeAsync(void* at, cudaStream_t stream) {
  if (const cudaError_t error = refuse_captured(stream)) return error;
  return cudaFree(at);
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  if (width > to_pitch || width > from_pitch) {
    return set_error(cudaErrorInvalidPitchValue, "a copy wider than the pitch");
  }
  return submit(stream, "memcpy", [=] {
    for (size_t row = 0; row < height; ++row) {
      const cudaError_t error =
          copy(static_cast<char*>(to) + row * to_pitch,
               static_cast<const char*>(from) + row * from_pitch, width, kind);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t count, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return submit(stream, "memcpy", [=] { return copy(to, from, count, kind); });
}

cudaError_t cudaMemset2DAsync(void* at, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t stream) {
  return submit(stream, "memset", [=] {
    for (size_t row = 0; row < height; ++row) {
      const cudaError_t error = fill(static_cast<char*>(at) + row * pitch, value, width);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  });
}

cudaError_t cudaMemsetAsync(void* at, int value, size_t count, cudaStream_t stream) {
  return submit(stream, "memset", [=] { return fill(at, value, count); });
}

// Those that wait use the legacy stream.
cudaError_t cudaMemcpy(void* to, const void* from, size_t count, cudaMemcpyKind kind) {
  if (const cudaError_t error = check_unsafe("cudaMemcpy")) return error;
  return cudaMemcpyAsync(to, from, count, kind, nullptr);
}
cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                         size_t width, size_t height, cudaMemcpyKind kind) {
  if (const cudaError_t error = check_unsafe("cudaMemcpy2D")) return error;
  return cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, height, kind, nullptr);
}
cudaError_t cudaMemset(void* at, int value, size_t count) {
  if (const cudaError_t error = check_unsafe("cudaMemset")) return error;
  return cudaMemsetAsync(at, value, count, nullptr);
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  *free_bytes = *total_bytes = static_cast<size_t>(device().global_bytes);
  return cudaSuccess;
}

}  // extern "C"
