// SPDX-License-Identifier: BSD-3-Clause
// The device's memory: which host addresses kernels may touch.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace cuda_on_cpu {

struct ShadowPage;

enum class Owner { kCaller, kDevice, kHost };  // none of ours, cudaMalloc, cudaHostAlloc

struct Allocation {
  uint64_t begin = 0, bytes = 0;
  std::string name;
  Owner owner = Owner::kCaller;
  std::vector<std::unique_ptr<ShadowPage>> shadow;  // the race checker's
};

class Memory {
 public:
  Memory();
  ~Memory();
  void add(const void* at, uint64_t bytes, const std::string& name, Owner owner);
  // Returns false if no allocation begins there.
  bool remove(const void* at);
  // The allocation that holds the address, or null.
  Allocation* find(uint64_t address);
  // Whether the bytes lie in one allocation; a message if not.
  std::string check(uint64_t address, uint64_t bytes);
  // "'name' + 16", or the nearest allocation.
  std::string describe(const void* at);

 private:
  std::map<uint64_t, Allocation> allocations_;  // by begin
};

}  // namespace cuda_on_cpu
