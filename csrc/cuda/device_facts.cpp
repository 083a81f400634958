// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/device_facts.h"

#include <cuda_runtime_api.h>

#include "cuda/status.h"

namespace lstm_fused::cuda {

DeviceFacts query_device_facts(int device) {
  const auto attribute = [device](cudaDeviceAttr which) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
    return value;
  };
  DeviceFacts facts;
  facts.major = attribute(cudaDevAttrComputeCapabilityMajor);
  facts.minor = attribute(cudaDevAttrComputeCapabilityMinor);
  facts.sm_count = attribute(cudaDevAttrMultiProcessorCount);
  facts.shared_per_sm = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  facts.shared_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  facts.registers_per_sm = attribute(cudaDevAttrMaxRegistersPerMultiprocessor);
  facts.max_threads_per_sm = attribute(cudaDevAttrMaxThreadsPerMultiProcessor);
  facts.l2_bytes = attribute(cudaDevAttrL2CacheSize);
  return facts;
}

}  // namespace lstm_fused::cuda
