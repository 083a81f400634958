// SPDX-License-Identifier: BSD-3-Clause
// Hops between blocks through L2: one block writes, another polls until it sees that, and answers.
// One way is half of a round trip. And groups of blocks that all wait for each other's flags, as a
// group of blocks does in each step of the recurrence.
#include <algorithm>

#include "micro.h"

namespace lstm_fused::micro {
namespace {

constexpr int kHops = 200, kSteps = 300, kSweeps = 300;
constexpr int kThreads = 256, kWarp = 32, kWarps = kThreads / kWarp;
constexpr size_t kSideBytes = 1 << 16;  // of memory for what one of the two blocks writes

// The ways to hand something over. `send` and `receive` are called by all threads of a block, with
// the number of the hop, from 1 on; `receive` gives false where nothing came.

struct Flag {
  static constexpr int kBlockThreads = 1;
  static __device__ void send(char* at, uint32_t hop) {
    store_release(reinterpret_cast<uint32_t*>(at), hop);
  }
  static __device__ bool receive(const char* at, uint32_t hop) {
    return wait_for([&] { return load_acquire(reinterpret_cast<const uint32_t*>(at)) == hop; });
  }
};

// A word of data with its own tag in 8 bytes, which arrive as one: a relaxed store will do, for
// nothing else is handed over.
struct TaggedWord {
  static constexpr int kBlockThreads = 1;
  static __device__ uint64_t word_of(uint32_t hop) { return uint64_t{hop} << 32 | hop; }
  static __device__ void send(char* at, uint32_t hop) {
    const uint64_t word = word_of(hop);
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(at + threadIdx.x * sizeof word),
                 "l"(word)
                 : "memory");
  }
  static __device__ bool receive(const char* at, uint32_t hop) {
    return wait_for([&] {
      uint64_t word;
      asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];"
                   : "=l"(word)
                   : "l"(at + threadIdx.x * sizeof word)
                   : "memory");
      return word == word_of(hop);  // NOTE: ptxas narrows a load of which half is looked at
    });
  }
};

// A tagged word of each lane of a warp goes there and back: 256 bytes.
struct TaggedWords : TaggedWord {
  static constexpr int kBlockThreads = kWarp;
  static __device__ bool receive(const char* at, uint32_t hop) {
    return __all_sync(0xffffffff, TaggedWord::receive(at, hop));
  }
};

// 4096 bytes of data by all threads, a flag by the first; there one warp polls, and all load.
struct AnnouncedData {
  static constexpr int kBlockThreads = kThreads;
  static __device__ void send(char* at, uint32_t hop) {
    reinterpret_cast<uint4*>(at + kSideBytes / 2)[threadIdx.x] = make_uint4(hop, hop, hop, hop);
    __syncthreads();
    if (threadIdx.x == 0) Flag::send(at, hop);
  }
  static __device__ bool receive(const char* at, uint32_t hop) {
    const bool came = threadIdx.x >= kWarp || Flag::receive(at, hop);
    if (!__syncthreads_and(came)) return false;
    uint4 data;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(data.x), "=r"(data.y), "=r"(data.z), "=r"(data.w)
                 : "l"(at + kSideBytes / 2 + threadIdx.x * sizeof data)
                 : "memory");
    return __syncthreads_and(data.x == hop && data.y == hop && data.z == hop && data.w == hop);
  }
};

// Blocks `first` and `second` of the grid play; the others are there so that each of them has an SM
// to itself.
template <typename Way>
__global__ void hop_kernel(int first, int second, char* memory, Result* result) {
  const int block = static_cast<int>(blockIdx.x);
  if (block != first && block != second) return;
  char* mine = memory + (block == first ? 0 : kSideBytes);
  const char* theirs = memory + (block == first ? kSideBytes : 0);
  const long long start = clock64();
  bool came = true;
  for (uint32_t hop = 1; hop <= kHops && came; ++hop) {
    if (block == first) Way::send(mine, hop);
    came = Way::receive(theirs, hop);
    if (block == second) Way::send(mine, hop);
  }
  if (threadIdx.x != 0) return;
  if (!came) result->gave_up = 1;
  if (block == first) result->cycles = clock64() - start;
}

// Launches so that all blocks are resident together, each on an SM of its own.
template <typename... Parameters, typename... Arguments>
void launch_resident(const Bench& bench, void (*kernel)(Parameters...), int blocks, int threads,
                     Arguments... arguments) {
  const auto shared = static_cast<int>(bench.device.sharedMemPerBlockOptin);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
        "cudaFuncSetAttribute");
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.attrs = &cooperative;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), "cudaLaunchKernelEx");
}

template <typename Way>
void measure_hop(Bench& bench, const char* name, const char* what) {
  const int blocks = bench.device.multiProcessorCount;
  std::vector<std::function<void()>> launches;
  for (int second = 1; second < blocks; second += 3) {
    launches.push_back([&bench, blocks, second] {
      launch_resident(bench, hop_kernel<Way>, blocks, Way::kBlockThreads, 0, second, bench.memory,
                      bench.result);
    });
  }
  measure_all(bench, name, what, 2 * kHops, launches);
}

// The flags of all blocks lie side by side, 32 in a line; lane l of a warp reads every 32nd.
__device__ bool all_flags_reach(const uint32_t* flags, int blocks, uint32_t step) {
  bool reached = true;
  for (int i = static_cast<int>(threadIdx.x) % kWarp; i < blocks; i += kWarp) {
    reached &= load_acquire(flags + i) >= step;
  }
  return __all_sync(0xffffffff, reached);
}

// Each block tells all that it has reached a step, and waits until all have; so many warps poll.
__global__ void flag_barrier_kernel(uint32_t* flags, int polling_warps, Result* result) {
  const int blocks = static_cast<int>(gridDim.x);
  const bool polls = static_cast<int>(threadIdx.x) / kWarp < polling_warps;
  long long start = 0;
  bool came = true;
  for (uint32_t step = 1; step <= kSteps + 1 && came; ++step) {
    if (threadIdx.x == 0) store_release(flags + blockIdx.x, step);
    came = !polls || wait_for([&] { return all_flags_reach(flags, blocks, step); });
    came = __syncthreads_and(came);
    if (step == 1) start = clock64();  // all blocks have begun
  }
  if (threadIdx.x != 0) return;
  if (!came) result->gave_up = 1;
  if (blockIdx.x == 0) result->cycles = clock64() - start;
}

// The warps that poll in the kernel above read their flags once more, and nobody writes them.
__global__ void poll_kernel(uint32_t* flags, int polling_warps, Result* result) {
  const int blocks = static_cast<int>(gridDim.x);
  if (threadIdx.x == 0) store_release(flags + blockIdx.x, 1);
  const bool came = __syncthreads_and(wait_for([&] { return all_flags_reach(flags, blocks, 1); }));
  if (static_cast<int>(threadIdx.x) / kWarp >= polling_warps) return;
  const long long start = clock64();
  bool reached = came;
  for (int sweep = 0; sweep < kSweeps; ++sweep) reached &= all_flags_reach(flags, blocks, 1);
  if (threadIdx.x != 0) return;
  if (!reached) result->gave_up = 1;
  if (blockIdx.x == 0) result->cycles = clock64() - start;
}

}  // namespace

void measure_exchange(Bench& bench) {
  measure_hop<Flag>(bench, "flag_hop", "st.release.gpu, seen by ld.acquire.gpu of another SM");
  measure_hop<TaggedWord>(bench, "tagged_word_hop",
                          "8 bytes that carry their tag: st.relaxed.gpu, seen by ld.relaxed.gpu");
  measure_hop<TaggedWords>(bench, "tagged_256_bytes_hop", "the same by each lane of a warp");
  measure_hop<AnnouncedData>(bench, "announced_4096_bytes_hop",
                             "stores of 8 warps, bar.sync, st.release.gpu; there ld.acquire.gpu by "
                             "a warp, bar.sync, loads, bar.sync");
  auto* flags = reinterpret_cast<uint32_t*>(bench.memory);
  for (const int blocks : {2, 8, 16, 32, 48, 64, 96, 128}) {
    if (blocks > bench.device.multiProcessorCount) break;
    for (const int warps : {1, kWarps}) {
      const std::string suffix =
          "_" + std::to_string(blocks) + "_blocks_" + std::to_string(warps) + "_warps";
      measure(bench, "flag_barrier" + suffix, "every block's flag, until all have seen all", kSteps,
              [&] {
                launch_resident(bench, flag_barrier_kernel, blocks, kThreads, flags, warps,
                                bench.result);
              });
      measure(bench, "flag_poll" + suffix, "one reading of all flags, which nobody writes", kSweeps,
              [&] {
                launch_resident(bench, poll_kernel, blocks, kThreads, flags, warps, bench.result);
              });
    }
  }
}

}  // namespace lstm_fused::micro
