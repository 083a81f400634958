// SPDX-License-Identifier: BSD-3-Clause
// All inline PTX, one wrapper for each instruction. Sections are those of the PTX ISA manual 9.0.
#pragma once

#include <cmath>
#include <cstdint>

namespace lstm_fused::cuda::ptx {

// mma.sync (section 9.7.14.5.14): d += a·b over one warp, a (16, K) row-major, b (K, 8)
// column-major, d (16, 8) float. In lane l, with g = l / 4 and t = l % 4:
//   d[0], d[1]: row g, columns 2t and 2t + 1;  d[2], d[3]: row g + 8.
//   16-bit, K = 16: a0 row g, columns 2t, 2t + 1; a1 row g + 8; a2, a3 as a0, a1, 8 columns on;
//                   b0 column g, rows 2t, 2t + 1; b1 8 rows on.
//   tf32, K = 8:    a0 row g, column t; a1 row g + 8; a2, a3 as a0, a1, 4 columns on;
//                   b0 column g, row t; b1 4 rows on.

// sm_80.
__device__ __forceinline__ void mma_bf16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                         uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// sm_80.
__device__ __forceinline__ void mma_f16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                        uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// sm_80. Operands are float bits already rounded by round_to_tf32.
__device__ __forceinline__ void mma_tf32(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                         uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// cvt.rna.tf32.f32 (section 9.7.9.21), sm_80: to nearest, ties away from zero.
__device__ __forceinline__ float round_to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}

// ex2.approx.ftz.f32 (section 9.7.3.21): 2^x, to 2 ulp. On the host, for functions that are both.
__host__ __device__ __forceinline__ float exp2(float x) {
#ifdef __CUDA_ARCH__
  float result;
  asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return exp2f(x);
#endif
}

// rcp.approx.ftz.f32 (section 9.7.3.13): 1/x, to 1 ulp.
__host__ __device__ __forceinline__ float reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float result;
  asm volatile("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return 1.0f / x;
#endif
}

// ld.relaxed.gpu (section 9.7.9.8), sm_70: each of the four words is as some thread of the device
// stored it, sooner or later the latest one.
__device__ __forceinline__ uint4 load_relaxed(const uint4* address) {
  uint4 value;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address)
               : "memory");
  return value;
}
__device__ __forceinline__ uint32_t load_relaxed(const uint32_t* address) {
  uint32_t value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}

// st.relaxed.gpu (section 9.7.9.12), sm_70: is seen by load_relaxed of other blocks. Nothing is
// said of what else they see by then.
__device__ __forceinline__ void store_relaxed(uint32_t* address, uint32_t value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}
__device__ __forceinline__ void store_relaxed(uint2* address, uint2 value) {
  asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(address), "r"(value.x),
               "r"(value.y)
               : "memory");
}

// Two words of 64 bits, each of which is loaded whole.
__device__ __forceinline__ uint4 load_relaxed_pairs(const uint4* address) {
  uint64_t first, second;
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
               : "=l"(first), "=l"(second)
               : "l"(address)
               : "memory");
  return make_uint4(static_cast<uint32_t>(first), static_cast<uint32_t>(first >> 32),
                    static_cast<uint32_t>(second), static_cast<uint32_t>(second >> 32));
}
__device__ __forceinline__ void store_relaxed(uint64_t* address, uint64_t value) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
}

// An address in shared memory as its instructions take it, and ld.shared at one. NOTE: for a place
// that is far from all others: of a pointer the compiler makes the address anew each time.
__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
__device__ __forceinline__ uint32_t load_shared(uint32_t address) {
  uint32_t value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}

// Accesses of the lanes whose condition holds, by a predicate. NOTE: of an `if` around some of them
// the compiler makes a branch, which costs a warp more than they do, and tears its code in pieces
// that ptxas cannot mix. They are ordered with no other accesses: for arrays that a thread does not
// read and write alike.
__device__ __forceinline__ void load_if(bool condition, float& value, const float* address) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.s32 p, %2, 0;\n@p ld.global.f32 %0, [%1];\n}"
               : "+f"(value)
               : "l"(address), "r"(static_cast<int>(condition)));
}
__device__ __forceinline__ void load_if(bool condition, float& first, float& second,
                                        const float* address) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.s32 p, %3, 0;\n@p ld.global.v2.f32 {%0, %1}, [%2];\n}"
               : "+f"(first), "+f"(second)
               : "l"(address), "r"(static_cast<int>(condition)));
}
__device__ __forceinline__ void load_if(bool condition, uint32_t& value, const uint32_t* address) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.s32 p, %2, 0;\n@p ld.global.u32 %0, [%1];\n}"
               : "+r"(value)
               : "l"(address), "r"(static_cast<int>(condition)));
}
__device__ __forceinline__ void load_if(bool condition, uint16_t& value, const uint16_t* address) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.s32 p, %2, 0;\n@p ld.global.u16 %0, [%1];\n}"
               : "+h"(value)
               : "l"(address), "r"(static_cast<int>(condition)));
}
__device__ __forceinline__ void store_if(bool condition, float* address, float value) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.s32 p, %2, 0;\n@p st.global.f32 [%0], %1;\n}" ::"l"(address),
      "f"(value), "r"(static_cast<int>(condition)));
}
__device__ __forceinline__ void store_if(bool condition, float* address, float first,
                                         float second) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.s32 p, %3, 0;\n@p st.global.v2.f32 [%0], {%1, %2};\n}" ::"l"(
          address),
      "f"(first), "f"(second), "r"(static_cast<int>(condition)));
}
__device__ __forceinline__ void store_if(bool condition, uint32_t* address, uint32_t value) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.s32 p, %2, 0;\n@p st.global.u32 [%0], %1;\n}" ::"l"(address),
      "r"(value), "r"(static_cast<int>(condition)));
}
__device__ __forceinline__ void store_if(bool condition, uint16_t* address, uint16_t value) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.s32 p, %2, 0;\n@p st.global.u16 [%0], %1;\n}" ::"l"(address),
      "h"(value), "r"(static_cast<int>(condition)));
}

// cp.async (section 9.7.9.25.3.1), sm_80: copies four bytes from global to shared memory, behind
// the thread's back until it waits. NOTE: no memory clobber: a volatile asm keeps its place among
// the others, and what is copied is read after wait_for_copies only.
__device__ __forceinline__ void copy_async(float* shared, const float* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(shared)),
               "l"(global));
}
// cp.async.wait_all: all copies of this thread have arrived, and it may read them.
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// st.relaxed.sys: seen by the host, in memory that is mapped to it.
__device__ __forceinline__ void store_for_host(uint4* address, uint4 value) {
  asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(value.x),
               "r"(value.y), "r"(value.z), "r"(value.w)
               : "memory");
}

// %globaltimer (section 10): nanoseconds, in steps of up to a millisecond.
__device__ __forceinline__ uint64_t global_timer() {
  uint64_t nanoseconds;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds));
  return nanoseconds;
}

// No instruction: hides from the compiler where a value came from. NOTE: it would otherwise compute
// the addresses of a long unrolled load ahead of time, or keep those of a kernel's beginning for
// its end, and run out of registers.
template <typename T>
__device__ __forceinline__ T* opaque(T* pointer) {
  asm volatile("" : "+l"(pointer));
  return pointer;
}
__device__ __forceinline__ int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
__device__ __forceinline__ uint32_t opaque(uint32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}
__device__ __forceinline__ float opaque(float x) {
  asm volatile("" : "+f"(x));
  return x;
}
__device__ __forceinline__ int64_t opaque(int64_t x) {
  asm volatile("" : "+l"(x));
  return x;
}

}  // namespace lstm_fused::cuda::ptx
