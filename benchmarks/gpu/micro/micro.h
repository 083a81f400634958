// SPDX-License-Identifier: BSD-3-Clause
// What the microbenchmarks share: how a kernel tells its cycles, and how they become a line of
// JSON.
//
// A kernel measures itself by its SM's clock, in one thread, over many operations one after
// another. The host launches it some times and takes the median. Every wait has an end: a peer that
// never answers is told, and hangs nothing.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace lstm_fused::micro {

// What a kernel leaves for the host.
struct Result {
  long long cycles;  // of all its operations
  int gave_up;       // a wait came to its end
};

// Ends a wait after a second or so.
constexpr int kMostPolls = 1 << 20;

struct Bench {
  cudaDeviceProp device{};
  Result* result = nullptr;  // on the device
  char* memory = nullptr;    // on the device, kMemoryBytes, cleared before each launch
  bool failed = false;
};

constexpr size_t kMemoryBytes = size_t{1} << 22;

// Ends the program with a message unless the status is cudaSuccess.
void check(cudaError_t status, const char* what);

Bench make_bench();

// Measures and prints one line. `launch` launches the kernel once; it makes `operations` of those
// that the line is about, so many cycles each. Names are what tools that read the output know.
void measure(Bench& bench, const std::string& name, const std::string& what, double operations,
             const std::function<void()>& launch);

// Measures several launches that differ, as those of pairs of SMs, and prints the median over all.
void measure_all(Bench& bench, const std::string& name, const std::string& what, double operations,
                 const std::vector<std::function<void()>>& launches);

// Prints a line that has a count, or microseconds, in the place of cycles.
void print_value(const std::string& name, const std::string& what, const char* unit, double value);

void measure_arithmetic(Bench& bench);  // latencies and rates of instructions
void measure_memory(Bench& bench);      // loads, fences
void measure_exchange(Bench& bench);    // hops between blocks, through L2
void measure_clusters(Bench& bench);    // within a cluster; nothing below compute capability 9.0
void measure_launches(Bench& bench);    // from a kernel's end to the next one's start

#ifdef __CUDACC__
__device__ __forceinline__ uint32_t load_acquire(const uint32_t* address) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}

__device__ __forceinline__ void store_release(uint32_t* address, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

__device__ __forceinline__ void fence_gpu() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// Calls `done` until it gives true; false if it never did.
template <typename Done>
__device__ __forceinline__ bool wait_for(const Done& done) {
  for (int poll = 0; poll < kMostPolls; ++poll) {
    if (done()) return true;
  }
  return false;
}
#endif

}  // namespace lstm_fused::micro
