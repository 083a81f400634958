// SPDX-License-Identifier: BSD-3-Clause
// Stand-in for the CUDA runtime library: what nvcc's host objects call as they are loaded, and the
// registry that these calls fill.
#include <dlfcn.h>

#include <map>
#include <vector>

#include "device.h"
#include "functions.h"

namespace cuda_on_cpu {

namespace {

struct HostVariable {
  std::string name;
  void** fat_binary;
};

struct Registry {
  std::map<const void*, HostFunction> functions;
  std::map<const void*, HostVariable> variables;
};

Registry& registry() {
  static Registry* the_registry = new Registry;
  return *the_registry;
}

// The library that an address belongs to. Host code and translated kernels of a library find each
// other by it, so that libraries with kernels of the same name may be loaded together.
const void* library_of(const void* at) {
  Dl_info info;
  return dladdr(at, &info) != 0 ? info.dli_fbase : nullptr;
}

}  // namespace

HostFunction* find_function(const void* stub) {
  auto& functions = registry().functions;
  const auto found = functions.find(stub);
  if (found != functions.end()) return &found->second;
  set_error(cudaErrorInvalidDeviceFunction, "a kernel that was never registered");
  return nullptr;
}

Translated find_translated(const HostFunction& function) {
  const void* library = library_of(function.stub);
  const auto capability = static_cast<uint32_t>(device().compute_capability);
  Translated best;
  bool is_known = false;
  for (const Module* module : device().modules) {
    if (library_of(module) != library) continue;
    for (uint32_t i = 0; i < module->kernel_count; ++i) {
      if (function.name != module->kernels[i].name) continue;
      is_known = true;
      if (module->target > capability) continue;
      if (best.module == nullptr || module->target > best.module->target) {
        best = {module, &module->kernels[i]};
      }
    }
  }
  if (best.kernel == nullptr) {
    set_error(is_known ? cudaErrorNoKernelImageForDevice : cudaErrorInvalidDeviceFunction,
              "kernel " + function.name +
                  (is_known ? ": no translation for this compute capability, " +
                                  std::to_string(capability)
                            : ": not among the translated kernels of its library"));
  }
  return best;
}

namespace {

// The memory of a variable of device code, and its size.
const Variable* find_variable(const void* symbol) {
  const auto found = registry().variables.find(symbol);
  if (found == registry().variables.end()) {
    set_error(cudaErrorInvalidSymbol, "a variable that was never registered");
    return nullptr;
  }
  const void* library = library_of(symbol);
  for (const Module* module : device().modules) {
    if (library_of(module) != library) continue;
    for (uint32_t i = 0; i < module->variable_count; ++i) {
      if (found->second.name == module->variables[i].name) return &module->variables[i];
    }
  }
  set_error(cudaErrorInvalidSymbol, "variable " + found->second.name + " is not in device code");
  return nullptr;
}

}  // namespace

}  // namespace cuda_on_cpu

using cuda_on_cpu::registry;
using cuda_on_cpu::set_error;

extern "C" {

void** __cudaRegisterFatBinary(void* image) { return new void*(image); }

void __cudaRegisterFatBinaryEnd(void**) {}

void __cudaUnregisterFatBinary(void** handle) {
  const auto forget = [handle](auto& entries) {
    for (auto entry = entries.begin(); entry != entries.end();) {
      entry = entry->second.fat_binary == handle ? entries.erase(entry) : std::next(entry);
    }
  };
  forget(registry().functions);
  forget(registry().variables);
  delete handle;
}

char __cudaInitModule(void**) { return 1; }

void __cudaRegisterFunction(void** handle, const char* stub, char*, const char* name, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  cuda_on_cpu::HostFunction& function = registry().functions[stub];
  function.name = name;
  function.stub = stub;
  function.fat_binary = handle;
}

void __cudaRegisterVar(void** handle, char* symbol, char*, const char* name, int, size_t, int,
                       int) {
  registry().variables[symbol] = {name, handle};
}

cudaError_t cudaGetSymbolAddress(void** at, const void* symbol) {
  const auto* variable = cuda_on_cpu::find_variable(symbol);
  if (variable == nullptr) return cudaErrorInvalidSymbol;
  *at = variable->at;
  return cudaSuccess;
}

cudaError_t cudaGetSymbolSize(size_t* bytes, const void* symbol) {
  const auto* variable = cuda_on_cpu::find_variable(symbol);
  if (variable == nullptr) return cudaErrorInvalidSymbol;
  *bytes = variable->bytes;
  return cudaSuccess;
}

cudaError_t cudaMemcpyToSymbol(const void* symbol, const void* from, size_t count, size_t offset,
                               cudaMemcpyKind kind) {
  void* at = nullptr;
  const cudaError_t error = cudaGetSymbolAddress(&at, symbol);
  return error ? error : cudaMemcpy(static_cast<char*>(at) + offset, from, count, kind);
}

cudaError_t cudaMemcpyFromSymbol(void* to, const void* symbol, size_t count, size_t offset,
                                 cudaMemcpyKind kind) {
  void* at = nullptr;
  const cudaError_t error = cudaGetSymbolAddress(&at, symbol);
  return error ? error : cudaMemcpy(to, static_cast<char*>(at) + offset, count, kind);
}

}  // extern "C"
