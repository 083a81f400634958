// SPDX-License-Identifier: BSD-3-Clause
// Stand-in for the CUDA runtime library: launches, and what is known of kernels.
#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

#include "control_api.h"
#include "device.h"
#include "functions.h"
#include "machine.h"
#include "race.h"
#include "statistics.h"
#include "store_buffer.h"
#include "streams.h"

namespace cuda_on_cpu {

namespace {

constexpr int kDefaultSharedLimit = 48 << 10;
uint64_t total_switches = 0;

std::string text_of(const dim3& d) {
  return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}

// An empty text where the sizes are in order.
std::string check_sizes(const dim3& grid, const dim3& block) {
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || threads == 0) return "an empty grid or block";
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) return "the grid is too large";
  if (threads > 1024 || block.x > 1024 || block.y > 1024 || block.z > 64) {
    return "the block is too large";
  }
  return "";
}

cudaError_t refuse(cudaError_t error, const HostFunction& function, const std::string& what) {
  return set_error(error, "launch of " + function.name + ": " + what);
}

// Turns the bits of the memory round, while it lives, that garble_copied is about.
class Garbling {
 public:
  Garbling() : at_(device().copied) {
    Device& d = device();
    if (d.garble_copied &&
        d.memory.check(reinterpret_cast<uint64_t>(at_), d.copied_bytes).empty()) {
      bytes_ = d.copied_bytes;
    }
    d.copied_bytes = 0;
    d.garbled_launches += bytes_ > 0;
    turn();
  }
  ~Garbling() { turn(); }
  Garbling(const Garbling&) = delete;
  Garbling& operator=(const Garbling&) = delete;

 private:
  void turn() {
    for (size_t i = 0; i < bytes_; ++i) at_[i] = static_cast<char>(~at_[i]);
  }

  char* const at_;
  size_t bytes_ = 0;
};

cudaError_t run(const Launch& what) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  Device& d = device();
  ++d.kernel_launches;
  Grid running(what);
  if (what.module->checked) {
    if (d.race_check || d.weak_memory) running.race = RaceChecker::create(d.race_check != 0);
    if (d.weak_memory) running.stores = StoreBuffers::create();
    if (d.statistics) running.statistics = Statistics::create(running);
  }
  const Failure failure = [&] {
    const Garbling garbling;
    return running.run();
  }();
  total_switches += running.switches;
  d.nanoseconds += static_cast<int64_t>(running.nanoseconds());
  RaceChecker::destroy(running.race);
  StoreBuffers::destroy(running.stores);
  Statistics::destroy(running.statistics, running);
  return set_error(failure.status, failure.text, true);
}

}  // namespace

size_t dynamic_shared_limit(const HostFunction& function, const KernelInfo& kernel) {
  if (function.max_dynamic_shared >= 0) return static_cast<size_t>(function.max_dynamic_shared);
  return kDefaultSharedLimit - std::min<size_t>(kernel.static_shared_bytes, kDefaultSharedLimit);
}

cudaError_t launch(const void* stub, dim3 grid_size, dim3 block, void** arguments,
                   size_t dynamic_shared_bytes, cudaStream_t stream, bool is_cooperative) {
  Device& d = device();
  if (d.is_sticky) return d.error;
  const HostFunction* function = find_function(stub);
  if (function == nullptr) return d.error;
  const Translated translated = find_translated(*function);
  if (translated.kernel == nullptr) return d.error;
  const KernelInfo& kernel = *translated.kernel;
  if (const std::string what = check_sizes(grid_size, block); !what.empty()) {
    return refuse(cudaErrorInvalidConfiguration, *function,
                  what + ": grid " + text_of(grid_size) + ", block " + text_of(block));
  }
  const uint32_t threads = block.x * block.y * block.z;
  const uint64_t blocks = uint64_t(grid_size.x) * grid_size.y * grid_size.z;
  const size_t limit = dynamic_shared_limit(*function, kernel);
  if (dynamic_shared_bytes > limit) {
    return refuse(cudaErrorInvalidValue, *function,
                  std::to_string(dynamic_shared_bytes) + " bytes of dynamic shared memory, but " +
                      std::to_string(limit) + " allowed");
  }
  const int per_sm = blocks_per_sm(kernel, static_cast<int>(threads), dynamic_shared_bytes, limit);
  if (per_sm == 0 || (kernel.max_threads != 0 && threads > kernel.max_threads)) {
    return refuse(cudaErrorLaunchOutOfResources, *function,
                  "a block of " + std::to_string(threads) + " threads, " +
                      std::to_string(kernel.registers) + " registers each, fits on no SM");
  }
  const int64_t sm_count = d.stream_sm_count != 0 ? d.stream_sm_count : d.sm_count;
  const uint64_t capacity = static_cast<uint64_t>(per_sm) * static_cast<uint64_t>(sm_count);
  if (is_cooperative && blocks > capacity) {
    return refuse(cudaErrorCooperativeLaunchTooLarge, *function,
                  std::to_string(blocks) + " blocks, but " + std::to_string(capacity) +
                      " are resident at a time");
  }
  if (is_cooperative && d.refuse_cooperative) {
    return refuse(cudaErrorCooperativeLaunchTooLarge, *function,
                  std::to_string(blocks) + " blocks, refused by the setting refuse_cooperative");
  }
  std::vector<uint64_t> parameters(kernel.parameter_bytes / sizeof(uint64_t) + 2);
  char* const bytes = reinterpret_cast<char*>(parameters.data());
  for (uint32_t i = 0; i < kernel.parameter_count; ++i) {
    memcpy(bytes + kernel.parameters[i].offset, arguments[i], kernel.parameters[i].bytes);
  }
  const Launch what = {translated.module,
                       &kernel,
                       {grid_size.x, grid_size.y, grid_size.z},
                       {block.x, block.y, block.z},
                       static_cast<uint32_t>(dynamic_shared_bytes),
                       static_cast<uint32_t>(std::min<uint64_t>(capacity, UINT32_MAX)),
                       nullptr};
  return submit(stream, "kernel", [what, parameters] {
    Launch with_parameters = what;
    with_parameters.parameters = reinterpret_cast<const char*>(parameters.data());
    return run(with_parameters);
  });
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

uint64_t emu_switches() { return total_switches; }

namespace {

struct Configuration {
  dim3 grid, block;
  size_t dynamic_shared_bytes;
  cudaStream_t stream;
};
thread_local std::vector<Configuration> configurations;

}  // namespace

extern "C" {

unsigned __cudaPushCallConfiguration(dim3 grid_size, dim3 block, size_t dynamic_shared_bytes,
                                     cudaStream_t stream) {
  configurations.push_back({grid_size, block, dynamic_shared_bytes, stream});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid_size, dim3* block, size_t* dynamic_shared_bytes,
                                       void* stream) {
  if (configurations.empty()) return set_error(cudaErrorMissingConfiguration, "no configuration");
  const Configuration& last = configurations.back();
  *grid_size = last.grid;
  *block = last.block;
  *dynamic_shared_bytes = last.dynamic_shared_bytes;
  *static_cast<cudaStream_t*>(stream) = last.stream;
  configurations.pop_back();
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* stub) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(stub));
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid_size, dim3 block, void** arguments,
                               size_t dynamic_shared_bytes, cudaStream_t stream) {
  return launch(kernel, grid_size, block, arguments, dynamic_shared_bytes, stream, false);
}

cudaError_t cudaLaunchKernel(const void* stub, dim3 grid_size, dim3 block, void** arguments,
                             size_t dynamic_shared_bytes, cudaStream_t stream) {
  return launch(stub, grid_size, block, arguments, dynamic_shared_bytes, stream, false);
}

cudaError_t cudaLaunchCooperativeKernel(const void* stub, dim3 grid_size, dim3 block,
                                        void** arguments, size_t dynamic_shared_bytes,
                                        cudaStream_t stream) {
  return launch(stub, grid_size, block, arguments, dynamic_shared_bytes, stream, true);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* stub,
                                void** arguments) {
  bool is_cooperative = false;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    switch (attribute.id) {
      case cudaLaunchAttributeIgnore:
      case cudaLaunchAttributePriority:
      case cudaLaunchAttributeProgrammaticStreamSerialization:
      case cudaLaunchAttributeAccessPolicyWindow:
        break;
      case cudaLaunchAttributeCooperative:
        is_cooperative = attribute.val.cooperative != 0;
        break;
      case cudaLaunchAttributeClusterDimension: {
        const auto& size = attribute.val.clusterDim;
        if (size.x * size.y * size.z == 1) break;
        return set_error(cudaErrorNotSupported, "clusters are not emulated");
      }
      default:
        return set_error(cudaErrorNotSupported,
                         "launch attribute " + std::to_string(attribute.id) + " is not emulated");
    }
  }
  return launch(stub, config->gridDim, config->blockDim, arguments, config->dynamicSmemBytes,
                config->stream, is_cooperative);
}

cudaError_t cudaFuncSetAttribute(const void* stub, cudaFuncAttribute attribute, int value) {
  HostFunction* function = find_function(stub);
  if (function == nullptr) return device().error;
  const Translated translated = find_translated(*function);
  if (translated.kernel == nullptr) return device().error;
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) {
    return set_error(cudaErrorNotSupported, "this attribute of a function is not emulated");
  }
  const int64_t most = device().shared_per_block_optin - translated.kernel->static_shared_bytes;
  if (value < 0 || value > most) {
    return refuse(cudaErrorInvalidValue, *function,
                  std::to_string(value) + " bytes of dynamic shared memory, wanted at most " +
                      std::to_string(most));
  }
  function->max_dynamic_shared = value;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* stub) {
  const HostFunction* function = find_function(stub);
  if (function == nullptr) return device().error;
  const Translated translated = find_translated(*function);
  if (translated.kernel == nullptr) return device().error;
  const KernelInfo& kernel = *translated.kernel;
  *attributes = {};
  attributes->sharedSizeBytes = kernel.static_shared_bytes;
  attributes->localSizeBytes = kernel.local_bytes;
  attributes->numRegs = static_cast<int>(kernel.registers);
  const auto fit = device().registers_per_sm / std::max<int64_t>(kernel.registers, 1) / 32 * 32;
  const int64_t bound = kernel.max_threads ? kernel.max_threads : 1024;
  attributes->maxThreadsPerBlock = static_cast<int>(std::min({bound, fit, int64_t(1024)}));
  attributes->ptxVersion = static_cast<int>(translated.module->target);
  attributes->binaryVersion = static_cast<int>(translated.module->target);
  attributes->maxDynamicSharedSizeBytes = static_cast<int>(dynamic_shared_limit(*function, kernel));
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* stub,
                                                                   int threads,
                                                                   size_t dynamic_shared_bytes,
                                                                   unsigned) {
  const HostFunction* function = find_function(stub);
  if (function == nullptr) return device().error;
  const Translated translated = find_translated(*function);
  if (translated.kernel == nullptr) return device().error;
  if (threads <= 0) return set_error(cudaErrorInvalidValue, "occupancy of an empty block");
  const size_t limit = dynamic_shared_limit(*function, *translated.kernel);
  *blocks = dynamic_shared_bytes > limit
                ? 0
                : blocks_per_sm(*translated.kernel, threads, dynamic_shared_bytes, limit);
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* stub,
                                                          int threads,
                                                          size_t dynamic_shared_bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, stub, threads,
                                                                dynamic_shared_bytes, 0);
}

cudaError_t cudaFuncGetName(const char** name, const void* stub) {
  const HostFunction* function = find_function(stub);
  if (function == nullptr) return device().error;
  *name = function->name.c_str();
  return cudaSuccess;
}

}  // extern "C"
