// SPDX-License-Identifier: BSD-3-Clause
// Stand-in for the CUDA runtime library: the device, and errors.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstring>

#include "control_api.h"
#include "device.h"

namespace {

using cuda_on_cpu::device;
using cuda_on_cpu::Device;
using cuda_on_cpu::set_error;

struct ErrorName {
  cudaError_t error;
  const char* name;
  const char* text;
};

constexpr ErrorName kErrors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInvalidPitchValue, "cudaErrorInvalidPitchValue", "invalid pitch argument"},
    {cudaErrorInvalidSymbol, "cudaErrorInvalidSymbol", "invalid device symbol"},
    {cudaErrorMissingConfiguration, "cudaErrorMissingConfiguration",
     "__global__ function call is not configured"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {cudaErrorLaunchOutOfResources, "cudaErrorLaunchOutOfResources",
     "too many resources requested for launch"},
    {cudaErrorLaunchTimeout, "cudaErrorLaunchTimeout", "the launch timed out and was terminated"},
    {cudaErrorAssert, "cudaErrorAssert", "device-side assert triggered"},
    {cudaErrorIllegalInstruction, "cudaErrorIllegalInstruction",
     "an illegal instruction was encountered"},
    {cudaErrorMisalignedAddress, "cudaErrorMisalignedAddress", "misaligned address"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorCooperativeLaunchTooLarge, "cudaErrorCooperativeLaunchTooLarge",
     "too many blocks in cooperative launch"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorIllegalState, "cudaErrorIllegalState",
     "the operation cannot be performed in the present state"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureMerge, "cudaErrorStreamCaptureMerge",
     "operation would result in a merge of separate capture sequences"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched",
     "capture was not ended in the same stream as it began"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined",
     "capturing stream has unjoined work"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capturing stream"},
    {cudaErrorStreamCaptureWrongThread, "cudaErrorStreamCaptureWrongThread",
     "attempt to terminate a thread-local capture sequence from another thread"},
    {cudaErrorGraphExecUpdateFailure, "cudaErrorGraphExecUpdateFailure",
     "the graph update was not performed because it included changes which violated constraints"},
};

const ErrorName* find_error(cudaError_t error) {
  for (const ErrorName& entry : kErrors) {
    if (entry.error == error) return &entry;
  }
  return nullptr;
}

}  // namespace

extern "C" {

cudaError_t cudaGetLastError() {
  const cudaError_t error = device().error;
  if (!device().is_sticky) device().error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() { return device().error; }

const char* cudaGetErrorName(cudaError_t error) {
  const ErrorName* entry = find_error(error);
  return entry ? entry->name : "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  const ErrorName* entry = find_error(error);
  return entry ? entry->text : "unrecognized error code";
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* index) {
  *index = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int index) {
  return index == 0 ? cudaSuccess : set_error(cudaErrorInvalidDevice, "there is one device, 0");
}

cudaError_t cudaDeviceReset() {
  emu_clear_error();
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int index) {
  if (cudaSetDevice(index) != cudaSuccess) return cudaErrorInvalidDevice;
  const Device& d = device();
  int64_t fact = 0;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
      fact = 1024;
      break;
    case cudaDevAttrMaxBlockDimZ:
      fact = 64;
      break;
    case cudaDevAttrMaxGridDimX:
      fact = 0x7fffffff;
      break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      fact = 65535;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      fact = 48 << 10;
      break;
    case cudaDevAttrWarpSize:
      fact = 32;
      break;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      fact = d.registers_per_sm;
      break;
    case cudaDevAttrMultiProcessorCount:
      fact = d.sm_count;
      break;
    case cudaDevAttrL2CacheSize:
      fact = d.l2_bytes;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      fact = d.max_threads_per_sm;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      fact = d.compute_capability / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      fact = d.compute_capability % 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      fact = d.shared_per_sm;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      fact = d.shared_per_block_optin;
      break;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      fact = d.reserved_shared_per_block;
      break;
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrMemoryPoolsSupported:
      fact = 1;
      break;
    case cudaDevAttrClusterLaunch:
    case cudaDevAttrIntegrated:
      fact = 0;
      break;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      fact = d.max_threads_per_sm / 64;
      break;
    default:
      return set_error(cudaErrorInvalidValue,
                       "device attribute " + std::to_string(attribute) + " is not emulated");
  }
  *value = static_cast<int>(fact);
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int index) {
  if (cudaSetDevice(index) != cudaSuccess) return cudaErrorInvalidDevice;
  const Device& d = device();
  *properties = {};
  snprintf(properties->name, sizeof properties->name, "CUDA on the CPU, sm_%d",
           static_cast<int>(d.compute_capability));
  properties->totalGlobalMem = static_cast<size_t>(d.global_bytes);
  properties->sharedMemPerBlock = 48 << 10;
  properties->regsPerBlock = properties->regsPerMultiprocessor =
      static_cast<int>(d.registers_per_sm);
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  const int largest_block[] = {1024, 1024, 64}, largest_grid[] = {0x7fffffff, 65535, 65535};
  memcpy(properties->maxThreadsDim, largest_block, sizeof largest_block);
  memcpy(properties->maxGridSize, largest_grid, sizeof largest_grid);
  properties->major = static_cast<int>(d.compute_capability / 10);
  properties->minor = static_cast<int>(d.compute_capability % 10);
  properties->multiProcessorCount = static_cast<int>(d.sm_count);
  properties->unifiedAddressing = 1;
  properties->l2CacheSize = static_cast<int>(d.l2_bytes);
  properties->maxThreadsPerMultiProcessor = static_cast<int>(d.max_threads_per_sm);
  properties->sharedMemPerMultiprocessor = static_cast<size_t>(d.shared_per_sm);
  properties->sharedMemPerBlockOptin = static_cast<size_t>(d.shared_per_block_optin);
  properties->reservedSharedMemPerBlock = static_cast<size_t>(d.reserved_shared_per_block);
  properties->cooperativeLaunch = 1;
  properties->maxBlocksPerMultiProcessor = static_cast<int>(d.max_threads_per_sm / 64);
  return cudaSuccess;
}

}  // extern "C"
