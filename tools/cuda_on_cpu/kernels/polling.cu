// SPDX-License-Identifier: BSD-3-Clause
// Words that carry their own readiness, waits that end by the timer, and barriers of other kinds.
#include <cuda_runtime.h>

#include <cstdint>

namespace {

__device__ uint64_t timer() {
  uint64_t value;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(value));
  return value;
}
__device__ unsigned load_relaxed(const unsigned* at) {
  unsigned value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
  return value;
}
__device__ void store_relaxed(unsigned* at, unsigned value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}

// Copies a row of four words a thread by each form of strong vector access.
#define COPY_4(load, store, from, to)                                                              \
  {                                                                                                \
    unsigned a, b, c, d;                                                                           \
    asm volatile(load ".v4.u32 {%0, %1, %2, %3}, [%4];"                                            \
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d)                                              \
                 : "l"(from)                                                                       \
                 : "memory");                                                                      \
    asm volatile(store ".v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(a), "r"(b), "r"(c), "r"(d) \
                 : "memory");                                                                      \
  }
#define COPY_2(load, store, from, to)                                                       \
  {                                                                                         \
    unsigned a, b;                                                                          \
    asm volatile(load ".v2.u32 {%0, %1}, [%2];" : "=r"(a), "=r"(b) : "l"(from) : "memory"); \
    asm volatile(store ".v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(a), "r"(b) : "memory");     \
  }

__global__ void vectors_kernel(const unsigned* x, unsigned* y, int n) {
  const int t = 4 * threadIdx.x;
  COPY_4("ld.relaxed.gpu.global", "st.relaxed.gpu.global", x + t, y + t);
  COPY_4("ld.relaxed.sys.global", "st.relaxed.sys.global", x + t, y + n + t);
  COPY_4("ld.volatile.global", "st.volatile.global", x + t, y + 2 * n + t);
  COPY_4("ld.relaxed.gpu", "st.relaxed.gpu", x + t, y + 3 * n + t);
  COPY_2("ld.relaxed.gpu.global", "st.relaxed.gpu.global", x + t, y + 4 * n + t);
  COPY_2("ld.relaxed.sys.global", "st.volatile.global", x + t + 2, y + 4 * n + t + 2);
  for (int i = t; i < t + 4; ++i) store_relaxed(y + 5 * n + i, load_relaxed(x + i));
}

// Two of every three threads count themselves, by compare-and-swap.
__global__ void swap_kernel(unsigned* count, unsigned long long* wide) {
  if (threadIdx.x % 3 == 0) return;
  unsigned old = 0, seen;
  do {
    seen = old;
    asm volatile("atom.relaxed.gpu.global.cas.b32 %0, [%1], %2, %3;"
                 : "=r"(old)
                 : "l"(count), "r"(seen), "r"(seen + 1)
                 : "memory");
  } while (old != seen);
  unsigned long long found = 0, expected;
  do {
    expected = found;
    asm volatile("atom.acq_rel.sys.global.cas.b64 %0, [%1], %2, %3;"
                 : "=l"(found)
                 : "l"(wide), "l"(expected), "l"(expected + (1ull << 32))
                 : "memory");
  } while (found != expected);
}

// Warps 0 and 1 vote by barriers of their own; warp 2 hands warp 3 a value by a named barrier.
__global__ void barriers_kernel(unsigned* out) {
  __shared__ unsigned handed[32];
  const int t = threadIdx.x, lane = t % 32;
  unsigned result = 0;
  if (t < 64) {
    unsigned count, any, all, uniform;
    asm volatile(
        "{\n .reg .pred p, q, r;\n"
        " setp.eq.u32 p, %4, 40;\n"
        " barrier.cta.red.popc.u32 %0, 5, 64, p;\n"
        " barrier.cta.red.or.pred q, 5, 64, p;\n selp.u32 %1, 1, 0, q;\n"
        " bar.red.and.pred q, 5, 64, p;\n selp.u32 %2, 1, 0, q;\n"
        " setp.lt.u32 p, %4, 32;\n"
        " vote.sync.uni.pred r, p, 0xffffffff;\n selp.u32 %3, 1, 0, r;\n}"
        : "=r"(count), "=r"(any), "=r"(all), "=r"(uniform)
        : "r"(t)
        : "memory");
    result = count | any << 4 | all << 8 | uniform << 12;
  } else if (t < 96) {
    handed[lane] = 1000 + lane;
    asm volatile("barrier.cta.arrive 7, 64;" ::: "memory");
    asm volatile("barrier.cta.sync 8, 64;" ::: "memory");
    result = handed[31 - lane];
  } else {
    asm volatile("bar.sync 7, 64;" ::: "memory");
    const unsigned value = handed[31 - lane];
    __syncwarp();
    handed[lane] = value + 1;
    asm volatile("bar.arrive 8, 64;" ::: "memory");
    result = value;
  }
  // A block that leaves together, if any of its threads wants to.
  result |= static_cast<unsigned>(__syncthreads_or(t == 100)) << 31;
  out[t] = result;
}

// Waits for the flag, looking at the timer every few polls.
__device__ bool wait_until(const unsigned* flag, unsigned value, uint64_t limit_ns) {
  const uint64_t begin = timer();
  for (unsigned polls = 1; load_relaxed(flag) != value; ++polls) {
    if (polls % 16 == 0 && timer() - begin > limit_ns) return false;
    __nanosleep(20);
  }
  return true;
}

// Block 0 waits for a flag that no one sets; the other blocks end at once, or wait for block 0.
__global__ void bounded_kernel(unsigned* flags, unsigned long long* waited, uint64_t limit_ns) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
  const uint64_t begin = timer();
  const bool came = wait_until(flags + blockIdx.x, 1, limit_ns);
  if (threadIdx.x == 0) waited[blockIdx.x] = came ? 0 : timer() - begin;
}

// Blocks pass a token round, each after some work; every wait is bounded, and a block that waits in
// vain leaves.
__global__ void token_kernel(unsigned* token, unsigned long long* late, unsigned rounds, int work,
                             uint64_t limit_ns) {
  for (unsigned r = 0; r < rounds; ++r) {
    const unsigned turn = r * gridDim.x + blockIdx.x;
    if (__syncthreads_or(!wait_until(token, turn, limit_ns))) {
      if (threadIdx.x == 0) atomicAdd(late, 1ull);
      return;
    }
    float x = 1;
#pragma unroll 1
    for (int i = 0; i < work; ++i) x = x * 0.5f + 1.0f;
    if (threadIdx.x == 0) store_relaxed(token, turn + (x > 0 ? 1 : 2));
  }
}

// Block 0 publishes a value by the third of four flags, which block 1 reads at once.
__global__ void flags_kernel(unsigned* x, unsigned* flags) {
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 0) {
    x[0] = 5;
    __threadfence();
    store_relaxed(flags + 2, 1);
  } else {
    unsigned a, b, c = 0, d;
    while (c == 0) {
      asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                   : "l"(flags)
                   : "memory");
    }
    __threadfence();
    x[1] = x[0] + a + b + d;
  }
}

// Looks at the timer, but waits forever.
__global__ void unbounded_kernel(const unsigned* flag, unsigned long long* last) {
  while (load_relaxed(flag) == 0) *last = timer();
}

__device__ void copy_16(void* to, const void* from, int taken) {
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(at), "l"(from),
               "r"(taken)
               : "memory");
}

// Copies n floats by two groups of copies, the last of a part, and reads the second too early.
__global__ void tail_kernel(const float* x, float* out, int n) {
  __shared__ __align__(16) float s[64];
  const int t = threadIdx.x;  // 0 to 7
  const auto copy = [&](int at) {
    const int left = 4 * (n - at);
    copy_16(&s[at], x + at, left < 0 ? 0 : left < 16 ? left : 16);
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  copy(4 * t);
  copy(32 + 4 * t);
  asm volatile("cp.async.wait_group 1;" ::: "memory");
  for (int i = 0; i < 8; ++i) out[i / 4 * 32 + 4 * t + i % 4] = s[i / 4 * 32 + 4 * t + i % 4];
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  for (int i = 0; i < 8; ++i) out[64 + i / 4 * 32 + 4 * t + i % 4] = s[i / 4 * 32 + 4 * t + i % 4];
}

}  // namespace

extern "C" int run_vector_words(const unsigned* x, unsigned* y, int n) {
  vectors_kernel<<<1, n / 4>>>(x, y, n);
  return cudaGetLastError();
}
extern "C" int run_swap(unsigned* count, unsigned long long* wide) {
  swap_kernel<<<2, 96>>>(count, wide);
  return cudaGetLastError();
}
extern "C" int run_barriers(unsigned* out) {
  barriers_kernel<<<1, 128>>>(out);
  return cudaGetLastError();
}
extern "C" int run_bounded(unsigned* flags, unsigned long long* waited, int blocks,
                           unsigned limit_ms) {
  bounded_kernel<<<blocks, 64>>>(flags, waited, limit_ms * 1000000ull);
  return cudaGetLastError();
}
extern "C" int run_token(unsigned* token, unsigned long long* late, int blocks, unsigned rounds,
                         int work, unsigned limit_ms) {
  token_kernel<<<blocks, 64>>>(token, late, rounds, work, limit_ms * 1000000ull);
  return cudaGetLastError();
}
extern "C" int run_flags(unsigned* x, unsigned* flags) {
  flags_kernel<<<2, 32>>>(x, flags);
  return cudaGetLastError();
}
extern "C" int run_unbounded(const unsigned* flag, unsigned long long* last) {
  unbounded_kernel<<<2, 32>>>(flag, last);
  return cudaGetLastError();
}
extern "C" int run_tail(const float* x, float* out, int n) {
  tail_kernel<<<1, 8>>>(x, out, n);
  return cudaGetLastError();
}
