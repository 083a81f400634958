// SPDX-License-Identifier: BSD-3-Clause
// Memory of every kind, atomics, warps, calls, and what must be reported as an error.
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <cassert>

namespace {

__device__ int counter = 5;
__constant__ float table[4] = {1, 2, 3, 4};

__device__ __noinline__ float sum_of(const float* x, int n) {
  float local[8];
  for (int i = 0; i < 8; ++i) local[i] = x[i];
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += local[(i * 3) & 7];
  return sum;
}

__device__ __noinline__ void add_to(float* generic, float value) { *generic += value; }

struct Parameters {
  const float* x;
  float* out;
  int n;
  float weights[4];
};

__global__ void spaces_kernel(const __grid_constant__ Parameters p) {
  __shared__ float s[32];
  const int t = threadIdx.x;
  s[t] = p.x[t];
  __syncthreads();
  float own = 1;
  add_to(&own, p.weights[t & 3]);
  add_to(&s[t ^ 1], table[t & 3]);
  __syncthreads();
  float value = s[t] + own + sum_of(p.x, p.n + (t & 7));
  switch (t & 7) {
    case 0:
      value += 10;
      break;
    case 1:
      value *= 2;
      break;
    case 2:
      value -= p.x[3];
      break;
    case 3:
      value = -value;
      break;
    case 4:
      value += p.x[4] * p.x[5];
      break;
    case 5:
      value = value * value;
      break;
    default:
      value += static_cast<float>(t);
  }
  p.out[t] = value;
}

__global__ void vectors_kernel(const float4* x, float4* y, const uchar4* bytes, uchar4* more) {
  const int t = threadIdx.x;
  float4 v = __ldg(x + t);
  float4 w;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(w.x), "=f"(w.y), "=f"(w.z), "=f"(w.w)
               : "l"(x + t));
  const float2 z = __ldcg(reinterpret_cast<const float2*>(x + t));
  y[t] = make_float4(v.x + w.y, v.z, w.w + z.x, z.y);
  const uchar4 b = bytes[t];
  more[t] =
      make_uchar4(b.y + 1, b.x, static_cast<unsigned char>(static_cast<signed char>(b.z) / 2), b.w);
}

__global__ void atomics_kernel(unsigned* u, int* s, float* f, double* d, unsigned long long* l) {
  const unsigned t = threadIdx.x;
  atomicAdd(&u[0], t);
  atomicMax(&u[1], t * 7 % 61);
  atomicMin(&s[0], static_cast<int>(t) - 40);
  atomicAnd(&u[2], ~(1u << (t & 15)));
  atomicOr(&u[3], 1u << (t & 31));
  atomicXor(&u[4], t);
  atomicInc(&u[5], 40);
  atomicDec(&u[6], 50);
  atomicAdd(&f[0], 0.5f);
  atomicAdd(&d[0], 0.25);
  atomicAdd(&l[0], 1ull << 33);
  atomicAdd(&counter, 2);
  unsigned old = u[7], seen;
  do {
    seen = old;
    old = atomicCAS(&u[7], seen, seen + 3);
  } while (old != seen);
  if (atomicExch(&u[8], t + 1) == 0) atomicAdd(&u[9], 1u);
}

__global__ void warps_kernel(const unsigned* a, unsigned* out, int n) {
  const int t = threadIdx.x;
  const unsigned x = a[t];
  int row = 0;
  const auto put = [&](unsigned value) { out[row++ * n + t] = value; };
  put(__shfl_sync(~0u, x, (t + 5) & 31));
  put(__shfl_up_sync(~0u, x, 3));
  put(__shfl_down_sync(~0u, x, 2, 8));
  put(__shfl_xor_sync(~0u, x, 6));
  put(__ballot_sync(~0u, x & 1));
  put(__any_sync(~0u, x == 7));
  put(__all_sync(~0u, x < 1000));
  put(__match_any_sync(~0u, x & 3));
  put(__reduce_add_sync(~0u, x));
  put(__reduce_max_sync(~0u, x));
  put(static_cast<unsigned>(__reduce_min_sync(~0u, static_cast<int>(x) - 50)));
  put(__reduce_xor_sync(~0u, x));
  if (t % 32 < 16) {
    put(__shfl_xor_sync(0xffffu, x, 1));
  } else {
    put(__shfl_xor_sync(0xffff0000u, x, 2));
  }
  put(static_cast<unsigned>(__syncthreads_count(x & 1)));
  put(static_cast<unsigned>(__syncthreads_or(x == 7)));
  put(static_cast<unsigned>(__syncthreads_and(x < 1000)));
  put(__activemask() >> (t & 31) & 1);
}

template <int kBytes>
__device__ void copy_async(void* to, const void* from, int taken) {
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(at), "l"(from), "n"(kBytes),
               "r"(taken)
               : "memory");
}

// Rows: 16 bytes a thread; 8 with 4 taken; 4 with none. With is_early, row 3: read before the wait.
__global__ void copies_kernel(const float* x, float* out) {
  __shared__ __align__(16) float s[4][128];
  const int t = threadIdx.x;
  copy_async<16>(&s[0][4 * t], &x[4 * t], 16);
  if (t < 32) {
    copy_async<8>(&s[1][2 * t], &x[2 * t], 4);
    copy_async<4>(&s[2][t], &x[t], 0);
    out[3 * 128 + t] = *(volatile float*)&s[0][4 * t];
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  for (int row = 0; row < 3; ++row) {
    for (int i = t; i < 128; i += 32) out[row * 128 + i] = s[row][i];
  }
}

// Errors, by number.
__global__ void errors_kernel(float* x, int kind, int n) {
  __shared__ float s[32];
  extern __shared__ float dynamic[];
  const int t = threadIdx.x;
  s[t] = static_cast<float>(t);
  __syncthreads();
  switch (kind) {
    case 0:
      if (t == 5) x[n] = s[t];
      break;
    case 1:
      if (t == 6) x[0] = x[-1];
      break;
    case 2:
      if (t == 7) x[0] = *reinterpret_cast<float*>(reinterpret_cast<char*>(x) + 2);
      break;
    case 3:
      if (t == 8) x[0] = dynamic[n];
      break;
    case 4:
      if (t == 9) asm volatile("st.shared.u32 [%0], 1;" ::"r"(1026) : "memory");
      break;
    case 5:
      assert(t != 3);
      break;
    case 6:
      if (t == 4) __trap();
      break;
    case 7:
      if (t != 3) __syncthreads();
      if (t == 3) {
        while (*(volatile float*)x != 123.0f) {
        }
      }
      break;
    case 8:
      asm volatile("discard.global.L2 [%0], 128;" ::"l"(x) : "memory");
      break;
    case 9:
      x[t] = dynamic[t];
      break;
    default:
      asm volatile("st.shared.u32 [%0], 1;" ::"r"(0) : "memory");
  }
}

}  // namespace

extern "C" int run_spaces(const float* x, float* out, int n) {
  const Parameters p = {x, out, n, {0.5f, 1.5f, 2.5f, 3.5f}};
  spaces_kernel<<<1, 32>>>(p);
  return cudaGetLastError();
}
extern "C" int run_vectors(const void* x, void* y, const void* bytes, void* more) {
  vectors_kernel<<<1, 32>>>(static_cast<const float4*>(x), static_cast<float4*>(y),
                            static_cast<const uchar4*>(bytes), static_cast<uchar4*>(more));
  return cudaGetLastError();
}
extern "C" int run_atomics(unsigned* u, int* s, float* f, double* d, unsigned long long* l,
                           int* count) {
  const int five = 5;
  cudaError_t error = cudaMemcpyToSymbol(counter, &five, sizeof five);
  if (error) return error;
  atomics_kernel<<<1, 64>>>(u, s, f, d, l);
  error = cudaGetLastError();
  return error ? error : cudaMemcpyFromSymbol(count, counter, sizeof *count);
}
extern "C" int run_warps(const unsigned* a, unsigned* out, int n) {
  warps_kernel<<<1, n>>>(a, out, n);
  return cudaGetLastError();
}
extern "C" int run_copies(const float* x, float* out) {
  copies_kernel<<<1, 32>>>(x, out);
  return cudaGetLastError();
}
extern "C" int run_errors(float* x, int kind, int n) {
  errors_kernel<<<2, 32, 256>>>(x, kind, n);
  return cudaGetLastError();
}
