// SPDX-License-Identifier: BSD-3-Clause
// Within a cluster of blocks, from compute capability 9.0 on: how many clusters are resident
// together, barriers, loads from another block's shared memory, and an exchange of all with all by
// st.async, as a recurrence over a cluster needs in each step.
#include <algorithm>

#include "micro.h"

namespace lstm_fused::micro {
namespace {

constexpr int kSteps = 300, kThreads = 256, kWarp = 32;
constexpr int kMostBlocks = 16;          // of a cluster
constexpr int kSliceBytes = kWarp * 16;  // what a block sends to each other one, by one warp
// Bytes of shared memory that a block of a recurrence takes, and those left for the kernels' own.
constexpr int kWeightsBytes = 200 * 1024, kOwnBytes = 20 * 1024;
constexpr int kLoads = 256;

// The kernels' bodies are empty below sm_90, where nothing launches them.
#if __CUDA_ARCH__ >= 900
#define LSTM_MICRO_CLUSTERS 1
#endif

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

#ifdef LSTM_MICRO_CLUSTERS
__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ __forceinline__ uint32_t cluster_blocks() {
  uint32_t blocks;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
  return blocks;
}

__device__ __forceinline__ void cluster_barrier() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}

// The address, in the cluster's window, of what lies at `address` in the block of that rank.
__device__ __forceinline__ uint32_t address_in(uint32_t address, uint32_t rank) {
  uint32_t mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}

__device__ __forceinline__ void init_mbarrier(uint64_t* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}

// The phase ends when these bytes have come as well.
__device__ __forceinline__ void expect_bytes(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

__device__ __forceinline__ bool phase_is_over(uint64_t* barrier, uint32_t parity) {
  uint32_t over;
  asm volatile(
      "{\n\t.reg .pred over;\n\t"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 over, [%1], %2;\n\t"
      "selp.u32 %0, 1, 0, over;\n\t}"
      : "=r"(over)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return over != 0;
}

__device__ __forceinline__ void send_async(uint32_t address, uint4 data, uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(address),
      "r"(data.x), "r"(data.y), "r"(data.z), "r"(data.w), "r"(barrier)
      : "memory");
}
#endif

// In each step every block sends a slice to each other one, a warp a slice, and waits for theirs.
// Two buffers take turns. A block sends step s + 2 into the buffer of step s after all of step
// s + 1 has come, which the others send once they have read step s: so it overwrites nothing that
// is still to be read.
__global__ void all_to_all_kernel(Result* result) {
#ifdef LSTM_MICRO_CLUSTERS
  __shared__ uint4 buffer[2][kMostBlocks][kWarp];
  __shared__ uint64_t full[2];
  const uint32_t rank = cluster_rank(), blocks = cluster_blocks();
  const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const uint32_t bytes = (blocks - 1) * kSliceBytes;
  if (threadIdx.x == 0) {
    for (uint64_t& barrier : full) init_mbarrier(&barrier);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    for (uint64_t& barrier : full) expect_bytes(&barrier, bytes);
  }
  cluster_barrier();
  const long long start = clock64();
  uint32_t value = 1;
  bool came = true;
  for (uint32_t step = 0; step < kSteps && came; ++step) {
    const uint32_t half = step % 2;
    for (uint32_t peer = warp; peer < blocks; peer += kThreads / kWarp) {
      if (peer == rank) continue;
      send_async(address_in(shared_address(&buffer[half][rank][lane]), peer),
                 make_uint4(value, value, value, value),
                 address_in(shared_address(&full[half]), peer));
    }
    came = wait_for([&] { return phase_is_over(&full[half], step / 2 % 2); });
    if (threadIdx.x == 0) expect_bytes(&full[half], bytes);
    // The next step's data depends on this one's, as a recurrence's does.
    const uint4 received = buffer[half][(rank + 1) % blocks][lane];
    value = received.w + 1;
    const bool is_right =
        received.x == value - 1 && received.y == value - 1 && received.z == value - 1;
    came = __syncthreads_and(came && is_right && received.w == step + 1);
  }
  if (threadIdx.x == 0 && !came) result->gave_up = 1;
  if (threadIdx.x == 0 && blockIdx.x == 0) result->cycles = clock64() - start;
  cluster_barrier();  // nobody leaves while others still send to it
#endif
}

__global__ void cluster_barrier_kernel(Result* result) {
#ifdef LSTM_MICRO_CLUSTERS
  cluster_barrier();
  const long long start = clock64();
  for (int step = 0; step < kSteps; ++step) cluster_barrier();
  if (threadIdx.x == 0 && blockIdx.x == 0) result->cycles = clock64() - start;
#endif
}

// A chain of loads from the last block's shared memory, by one thread of the first.
__global__ void remote_load_kernel(Result* result, uint32_t* sink) {
#ifdef LSTM_MICRO_CLUSTERS
  __shared__ uint32_t next[kWarp];
  const uint32_t last = cluster_blocks() - 1;
  if (threadIdx.x < kWarp) {
    next[threadIdx.x] = address_in(shared_address(&next[(threadIdx.x + 1) % kWarp]), last);
  }
  cluster_barrier();
  if (threadIdx.x == 0 && cluster_rank() == 0) {
    uint32_t address = address_in(shared_address(&next[0]), last);
    const long long start = clock64();
#pragma unroll 32
    for (int i = 0; i < kLoads; ++i) {
      asm volatile("ld.shared::cluster.u32 %0, [%0];" : "+r"(address)::"memory");
    }
    *sink = address;
    result->cycles = clock64() - start;
  }
  cluster_barrier();
#endif
}

// One cluster of that many blocks; with as many clusters as there are, if all are to work at once.
struct Launch {
  cudaLaunchAttribute size{};
  cudaLaunchConfig_t config{};

  Launch(int blocks, int clusters, int shared_bytes) {
    size.id = cudaLaunchAttributeClusterDimension;
    size.val.clusterDim.x = blocks;
    size.val.clusterDim.y = 1;
    size.val.clusterDim.z = 1;
    config.gridDim = dim3(blocks * clusters);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = shared_bytes;
    config.attrs = &size;
    config.numAttrs = 1;
  }
  Launch(const Launch&) = delete;
};

template <typename Kernel>
void prepare(Kernel* kernel, int shared_bytes) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
        "cudaFuncSetAttribute");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
        "cudaFuncSetAttribute");
}

// 0 where the device has no cluster of that many blocks, which it answers by an error.
int active_clusters(int blocks, int shared_bytes) {
  int clusters = 0;
  const Launch launch(blocks, 1, shared_bytes);
  if (cudaOccupancyMaxActiveClusters(&clusters, all_to_all_kernel, &launch.config) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return clusters;
}

}  // namespace

void measure_clusters(Bench& bench) {
  if (bench.device.major < 9) return;
  const int shared_bytes =
      std::min(kWeightsBytes, static_cast<int>(bench.device.sharedMemPerBlockOptin) - kOwnBytes);
  prepare(all_to_all_kernel, shared_bytes);
  prepare(cluster_barrier_kernel, shared_bytes);
  prepare(remote_load_kernel, shared_bytes);
  auto* sink = reinterpret_cast<uint32_t*>(bench.memory);
  for (int blocks = 2; blocks <= kMostBlocks; blocks *= 2) {
    const std::string size = std::to_string(blocks);
    const int clusters = active_clusters(blocks, shared_bytes);
    print_value("max_active_clusters_" + size,
                "clusters of blocks of " + std::to_string(shared_bytes) + " bytes of shared memory",
                "count", clusters);
    if (clusters == 0) continue;
    const Launch one(blocks, 1, shared_bytes), all(blocks, clusters, shared_bytes);
    measure(bench, "cluster_barrier_" + size, "barrier.cluster arrive and wait, 8 warps a block",
            kSteps, [&] {
              check(cudaLaunchKernelEx(&one.config, cluster_barrier_kernel, bench.result),
                    "cudaLaunchKernelEx");
            });
    measure(bench, "remote_shared_load_" + size + "_latency",
            "ld.shared::cluster from the last block by the first", kLoads, [&] {
              check(cudaLaunchKernelEx(&one.config, remote_load_kernel, bench.result, sink),
                    "cudaLaunchKernelEx");
            });
    measure(bench, "all_to_all_" + size,
            "512 bytes by st.async to each other block, until all have come; one cluster", kSteps,
            [&] {
              check(cudaLaunchKernelEx(&one.config, all_to_all_kernel, bench.result),
                    "cudaLaunchKernelEx");
            });
    measure(bench, "all_to_all_" + size + "_all_clusters",
            "the same by as many clusters as are resident together", kSteps, [&] {
              check(cudaLaunchKernelEx(&all.config, all_to_all_kernel, bench.result),
                    "cudaLaunchKernelEx");
            });
  }
}

}  // namespace lstm_fused::micro
