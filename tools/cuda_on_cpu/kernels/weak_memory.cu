// SPDX-License-Identifier: BSD-3-Clause
// What blocks see of each other's stores: messages, orders, and an exchange of tagged words.
#include <cuda_runtime.h>

#include <cstdint>

namespace {

__device__ unsigned load_relaxed(const unsigned* at) {
  unsigned value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
  return value;
}
__device__ unsigned load_acquire(const unsigned* at) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
  return value;
}
__device__ void store_relaxed(unsigned* at, unsigned value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}
__device__ void store_release(unsigned* at, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}
__device__ uint4 load_relaxed(const uint4* at) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(at)
               : "memory");
  return v;
}
__device__ void store_relaxed(uint4* at, uint4 v) {
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(v.x), "r"(v.y),
               "r"(v.z), "r"(v.w)
               : "memory");
}
__device__ uint64_t timer() {
  uint64_t value;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(value));
  return value;
}

enum class Order { kNone, kRelease, kFence, kAtomic, kBlockFence };

// Block 0 sends block 1 the data of all its threads by a flag.
template <Order kOrder>
__global__ void message_kernel(unsigned* data, unsigned* flag, unsigned* out) {
  const int t = threadIdx.x;
  if (blockIdx.x == 0) {
    data[t] = 100 + t;
    out[64 + t] = data[t];  // its own stores it always sees
    __syncthreads();
    if (t != 0) return;
    if (kOrder == Order::kFence || kOrder == Order::kAtomic) __threadfence();
    if (kOrder == Order::kBlockFence) __threadfence_block();
    if (kOrder == Order::kAtomic) {
      atomicAdd(flag, 1u);
    } else if (kOrder == Order::kRelease) {
      store_release(flag, 1);
    } else {
      store_relaxed(flag, 1);
    }
  } else {
    if (t == 0) {
      while ((kOrder == Order::kRelease ? load_acquire(flag) : load_relaxed(flag)) == 0) {
      }
      if (kOrder == Order::kFence || kOrder == Order::kAtomic) __threadfence();
    }
    __syncthreads();
    out[t] = data[t];
  }
}

// Block 0 stores to words 0 and 64, then four words at once; block 1 notes what it saw alone: bit i
// for word i of the first two, bit 2 + i for word i of the four.
__global__ void orders_kernel(unsigned* x, unsigned* seen) {
  auto* const four = reinterpret_cast<uint4*>(x + 128);
  if (blockIdx.x == 0) {
    store_relaxed(x, 1);
    store_relaxed(x + 64, 1);
    store_relaxed(four, make_uint4(1, 1, 1, 1));
  } else {
    unsigned found = 0;
    while (true) {
      const unsigned b = load_relaxed(x + 64), a = load_relaxed(x), again = load_relaxed(x + 64);
      // Word 64 was there first; word 0 was there, and word 64 is still not.
      if (b == 1 && a == 0) found |= 2;
      if (a == 1 && again == 0) found |= 1;
      const uint4 v = load_relaxed(four);
      const unsigned words = v.x | v.y << 1 | v.z << 2 | v.w << 3;
      if (words != 15) found |= words << 2;
      if (a == 1 && again == 1 && words == 15) break;
    }
    *seen = found;
  }
}

// Block 0 counts up in one word; block 1 counts the values that it sees, and steps back among them.
__global__ void upward_kernel(unsigned* x, unsigned* out, unsigned last) {
  if (blockIdx.x == 0) {
    for (unsigned i = 1; i <= last; ++i) {
      store_relaxed(x, i);
      if (load_relaxed(x) != i) out[2] = i;
    }
  } else {
    unsigned old = 0, values = 0, steps_back = 0;
    while (old != last) {
      const unsigned value = load_relaxed(x);
      values += value != old;
      steps_back += value < old;
      old = value;
    }
    out[0] = values;
    out[1] = steps_back;
  }
}

// What threads of one block see of each other's stores: rows of what a load, an asynchronous copy
// and an atomic operation find.
__global__ void own_kernel(unsigned* x, unsigned* out) {
  __shared__ unsigned copied[64];
  const int t = threadIdx.x, other = 63 - t;
  x[t] = 100 + t;
  x[t] += 1;
  __syncthreads();
  out[t] = x[other];
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(&copied[t]));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(x + other) : "memory");
  asm volatile("cp.async.wait_all;" ::: "memory");
  out[64 + t] = copied[t];
  out[128 + t] = atomicAdd(x + other, 1u);
}

enum class Exchange { kRight, kNoTag, kOneBuffer, kWeakStores };
constexpr int kWords = 32, kMostBlocks = 8;
constexpr uint64_t kLimit = 2000000000;

// A recurrence over the words of all blocks. Each word carries its phase in its lowest bit: that of
// the use of its buffer, counted from 1. A wait that takes too long ends the kernel.
template <Exchange kKind>
__global__ void exchange_kernel(unsigned* area, unsigned* abort, unsigned* out, int steps) {
  __shared__ unsigned words[kMostBlocks * kWords];
  const int t = threadIdx.x, n = gridDim.x * kWords, id = blockIdx.x * kWords + t;
  constexpr int kBuffers = kKind == Exchange::kOneBuffer ? 1 : 2;
  unsigned value = id;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    unsigned* const buffer = area + step % kBuffers * n;
    const unsigned tag = (step / kBuffers + 1) & 1;
    // Publish the block's words: one by one, or four at a time.
    if (t < kWords) {
      const unsigned word = value << 1 | tag;
      const uint4 four = {__shfl_sync(~0u, word, t & ~3), __shfl_sync(~0u, word, (t & ~3) + 1),
                          __shfl_sync(~0u, word, (t & ~3) + 2),
                          __shfl_sync(~0u, word, (t & ~3) + 3)};
      if (kKind == Exchange::kWeakStores) {
        buffer[id] = word;
      } else if (blockIdx.x % 2 == 0) {
        store_relaxed(buffer + id, word);
      } else if (t % 4 == 0) {
        store_relaxed(reinterpret_cast<uint4*>(buffer + id), four);
      }
    }
    // Poll the words of all blocks until they are of this step.
    bool is_late = false;
    for (int i = 4 * t; i < n && !is_late; i += 4 * blockDim.x) {
      const uint64_t begin = timer();
      for (unsigned polls = 1; !is_late; ++polls) {
        const uint4 v = load_relaxed(reinterpret_cast<const uint4*>(buffer + i));
        const bool is_ready =
            ((v.x & v.y & v.z & v.w & 1) == tag) && ((v.x | v.y | v.z | v.w) & 1) == tag;
        if (is_ready || kKind == Exchange::kNoTag) {
          words[i] = v.x >> 1;
          words[i + 1] = v.y >> 1;
          words[i + 2] = v.z >> 1;
          words[i + 3] = v.w >> 1;
          break;
        }
        if (polls % 16 == 0) is_late = load_relaxed(abort) != 0 || timer() - begin > kLimit;
      }
    }
    if (is_late) store_relaxed(abort, 1);
    if (__syncthreads_or(is_late)) return;
    // Sum them up.
    if (t < kWords) {
      for (int i = 0; i < n; ++i) value += words[i] * (i + 1);
      value = (value + step) & 0xffff;
    }
    __syncthreads();
  }
  if (t < kWords) out[id] = value;
}

template <Exchange kKind>
int run_exchange(unsigned* area, unsigned* abort, unsigned* out, int blocks, int steps) {
  exchange_kernel<kKind><<<blocks, 64>>>(area, abort, out, steps);
  return cudaGetLastError();
}

template <Order kOrder>
int run_message(unsigned* data, unsigned* flag, unsigned* out) {
  message_kernel<kOrder><<<2, 64>>>(data, flag, out);
  return cudaGetLastError();
}

}  // namespace

extern "C" int run_message_none(unsigned* data, unsigned* flag, unsigned* out) {
  return run_message<Order::kNone>(data, flag, out);
}
extern "C" int run_message_release(unsigned* data, unsigned* flag, unsigned* out) {
  return run_message<Order::kRelease>(data, flag, out);
}
extern "C" int run_message_fence(unsigned* data, unsigned* flag, unsigned* out) {
  return run_message<Order::kFence>(data, flag, out);
}
extern "C" int run_message_atomic(unsigned* data, unsigned* flag, unsigned* out) {
  return run_message<Order::kAtomic>(data, flag, out);
}
extern "C" int run_message_block_fence(unsigned* data, unsigned* flag, unsigned* out) {
  return run_message<Order::kBlockFence>(data, flag, out);
}
extern "C" int run_own(unsigned* x, unsigned* out) {
  own_kernel<<<1, 64>>>(x, out);
  return cudaGetLastError();
}
extern "C" int run_orders(unsigned* x, unsigned* seen) {
  orders_kernel<<<2, 1>>>(x, seen);
  return cudaGetLastError();
}
extern "C" int run_upward(unsigned* x, unsigned* out, unsigned last) {
  upward_kernel<<<2, 1>>>(x, out, last);
  return cudaGetLastError();
}
extern "C" int run_exchange_right(unsigned* area, unsigned* abort, unsigned* out, int blocks,
                                  int steps) {
  return run_exchange<Exchange::kRight>(area, abort, out, blocks, steps);
}
extern "C" int run_exchange_no_tag(unsigned* area, unsigned* abort, unsigned* out, int blocks,
                                   int steps) {
  return run_exchange<Exchange::kNoTag>(area, abort, out, blocks, steps);
}
extern "C" int run_exchange_one_buffer(unsigned* area, unsigned* abort, unsigned* out, int blocks,
                                       int steps) {
  return run_exchange<Exchange::kOneBuffer>(area, abort, out, blocks, steps);
}
extern "C" int run_exchange_weak_stores(unsigned* area, unsigned* abort, unsigned* out, int blocks,
                                        int steps) {
  return run_exchange<Exchange::kWeakStores>(area, abort, out, blocks, steps);
}
