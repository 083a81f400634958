// SPDX-License-Identifier: BSD-3-Clause
#include "device.h"

#include <cuda_occupancy.h>

#include <algorithm>
#include <cstring>

#include "control_api.h"
#include "machine.h"
#include "race.h"

namespace cuda_on_cpu {

Device& device() {
  // Never destroyed: modules unregister themselves as the process ends.
  static Device* the_device = new Device;
  return *the_device;
}

cudaError_t set_error(cudaError_t error, const std::string& text, bool is_sticky) {
  Device& d = device();
  if (error == cudaSuccess || d.is_sticky) return error;
  d.error = error;
  d.is_sticky = is_sticky;
  d.error_text = text;
  return error;
}

int blocks_per_sm(const KernelInfo& kernel, int threads, size_t dynamic_shared_bytes,
                  size_t dynamic_shared_limit) {
  const Device& d = device();
  cudaOccDeviceProp properties = {};
  properties.computeMajor = static_cast<int>(d.compute_capability / 10);
  properties.computeMinor = static_cast<int>(d.compute_capability % 10);
  properties.maxThreadsPerBlock = 1024;
  properties.maxThreadsPerMultiprocessor = static_cast<int>(d.max_threads_per_sm);
  properties.regsPerBlock = static_cast<int>(d.registers_per_sm);
  properties.regsPerMultiprocessor = static_cast<int>(d.registers_per_sm);
  properties.warpSize = 32;
  properties.sharedMemPerBlock = 48 << 10;
  properties.sharedMemPerMultiprocessor = static_cast<size_t>(d.shared_per_sm);
  properties.numSms = static_cast<int>(d.sm_count);
  properties.sharedMemPerBlockOptin = static_cast<size_t>(d.shared_per_block_optin);
  properties.reservedSharedMemPerBlock = static_cast<size_t>(d.reserved_shared_per_block);
  cudaOccFuncAttributes attributes = {};
  attributes.maxThreadsPerBlock = kernel.max_threads ? static_cast<int>(kernel.max_threads) : 1024;
  attributes.numRegs = static_cast<int>(std::max(kernel.registers, 16u));
  attributes.sharedSizeBytes = kernel.static_shared_bytes;
  attributes.partitionedGCConfig = PARTITIONED_GC_OFF;
  attributes.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  attributes.maxDynamicSharedSizeBytes = dynamic_shared_limit;
  attributes.numBlockBarriers = 1;
  const cudaOccDeviceState state = {};
  cudaOccResult result = {};
  const cudaOccError error = cudaOccMaxActiveBlocksPerMultiprocessor(
      &result, &properties, &attributes, &state, threads, dynamic_shared_bytes);
  return error == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : 0;
}

Registration::Registration(const Module& module) : module_(module) {
  Device& d = device();
  d.modules.push_back(&module);
  for (uint32_t i = 0; i < module.variable_count; ++i) {
    const Variable& variable = module.variables[i];
    d.memory.add(variable.at, variable.bytes, variable.name, Owner::kCaller);
  }
}

Registration::~Registration() {
  Device& d = device();
  d.modules.erase(std::find(d.modules.begin(), d.modules.end(), &module_));
  for (uint32_t i = 0; i < module_.variable_count; ++i) d.memory.remove(module_.variables[i].at);
}

namespace {

struct Setting {
  const char* name;
  int64_t Device::* value;
};

constexpr Setting kSettings[] = {
    {"sm_count", &Device::sm_count},
    {"compute_capability", &Device::compute_capability},
    {"max_threads_per_sm", &Device::max_threads_per_sm},
    {"registers_per_sm", &Device::registers_per_sm},
    {"shared_per_sm", &Device::shared_per_sm},
    {"shared_per_block_optin", &Device::shared_per_block_optin},
    {"reserved_shared_per_block", &Device::reserved_shared_per_block},
    {"l2_bytes", &Device::l2_bytes},
    {"global_bytes", &Device::global_bytes},
    {"stream_sm_count", &Device::stream_sm_count},
    {"refuse_cooperative", &Device::refuse_cooperative},
    {"seed", &Device::seed},
    {"strict_memory", &Device::strict_memory},
    {"race_check", &Device::race_check},
    {"weak_memory", &Device::weak_memory},
    {"statistics", &Device::statistics},
    {"mutation", &Device::mutation},
    {"stall_block", &Device::stall_block},
    {"stall_after", &Device::stall_after},
    {"garble_copied", &Device::garble_copied},
    {"poll_round_ns", &Device::poll_round_ns},
    {"nanoseconds", &Device::nanoseconds},
    {"kernel_launches", &Device::kernel_launches},
    {"gemm_calls", &Device::gemm_calls},
    {"garbled_launches", &Device::garbled_launches},
};

const Setting* find_setting(const char* name) {
  for (const Setting& setting : kSettings) {
    if (strcmp(setting.name, name) == 0) return &setting;
  }
  return nullptr;
}

}  // namespace

}  // namespace cuda_on_cpu

using cuda_on_cpu::device;

int emu_set(const char* name, int64_t value) {
  const auto* setting = cuda_on_cpu::find_setting(name);
  if (setting == nullptr) return -1;
  device().*setting->value = value;
  device().mutation_hits = 0;
  return 0;
}

int64_t emu_get(const char* name) {
  const auto* setting = cuda_on_cpu::find_setting(name);
  return setting == nullptr ? -1 : device().*setting->value;
}

uint64_t emu_mutation_hits() { return device().mutation_hits; }

const char* emu_mutations() {
  static std::string text;
  text.clear();
  for (const auto* module : device().modules) {
    for (uint32_t i = 0; i < module->mutation_count; ++i) {
      const auto& m = module->mutations[i];
      text += std::to_string(m.number) + "\t" + module->name + "\t" +
              std::to_string(module->target) + "\t" + std::to_string(m.line) + "\t" + m.function +
              "\t" + m.kind + "\t" + m.text + "\n";
    }
  }
  return text.c_str();
}

void emu_register(const void* at, uint64_t bytes, const char* name) {
  device().memory.add(at, bytes, name, cuda_on_cpu::Owner::kCaller);
}

void emu_unregister(const void* at) { device().memory.remove(at); }

const char* emu_gemm_math_modes() {
  static std::string text;
  text.clear();
  for (const int mode : device().gemm_math_modes) text += std::to_string(mode) + " ";
  return text.c_str();
}

void emu_clear_gemm_math_modes() { device().gemm_math_modes.clear(); }

const char* emu_last_error() { return device().error_text.c_str(); }

void emu_clear_error() {
  device().error = cudaSuccess;
  device().is_sticky = false;
  device().error_text.clear();
}
