// SPDX-License-Identifier: BSD-3-Clause
// mma, ldmatrix and stmatrix, with fragments laid out as the PTX manual has them: A is row-major, B
// column-major, one warp.
#include <cuda_runtime.h>

namespace {

using Word = unsigned;

// 16-bit types: a row of A has k/2 words, a column of B too.
#define MMA_16(NAME, SHAPE, K, TYPE)                                                               \
  __global__ void NAME(const Word* a, const Word* b, const float* c, float* d) {                   \
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;                                            \
    Word x[4], y[2];                                                                               \
    for (int r = 0; r < K / 4; ++r) x[r] = a[(g + 8 * (r % 2)) * (K / 2) + t + 4 * (r / 2)];       \
    for (int r = 0; r < K / 8; ++r) y[r] = b[g * (K / 2) + t + 4 * r];                             \
    const float* cr = c + g * 8 + 2 * t;                                                           \
    float* dr = d + g * 8 + 2 * t;                                                                 \
    if (K == 16) {                                                                                 \
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE                          \
                   ".f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"                   \
                   : "=f"(dr[0]), "=f"(dr[1]), "=f"(dr[64]), "=f"(dr[65])                          \
                   : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]), "f"(cr[0]), \
                     "f"(cr[1]), "f"(cr[64]), "f"(cr[65]));                                        \
    } else {                                                                                       \
      asm volatile("mma.sync.aligned.m16n8k8.row.col.f32." TYPE "." TYPE                           \
                   ".f32 {%0,%1,%2,%3},{%4,%5},{%6},{%7,%8,%9,%10};"                               \
                   : "=f"(dr[0]), "=f"(dr[1]), "=f"(dr[64]), "=f"(dr[65])                          \
                   : "r"(x[0]), "r"(x[1]), "r"(y[0]), "f"(cr[0]), "f"(cr[1]), "f"(cr[64]),         \
                     "f"(cr[65]));                                                                 \
    }                                                                                              \
  }
MMA_16(bf16_16_kernel, "m16n8k16", 16, "bf16")
MMA_16(f16_16_kernel, "m16n8k16", 16, "f16")
MMA_16(bf16_8_kernel, "m16n8k8", 8, "bf16")
MMA_16(f16_8_kernel, "m16n8k8", 8, "f16")
#undef MMA_16

template <int kK>
__global__ void tf32_kernel(const Word* a, const Word* b, const float* c, float* d) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  Word x[4], y[2];
  for (int r = 0; r < kK / 2; ++r) x[r] = a[(g + 8 * (r % 2)) * kK + t + 4 * (r / 2)];
  for (int r = 0; r < kK / 4; ++r) y[r] = b[g * kK + t + 4 * r];
  const float* cr = c + g * 8 + 2 * t;
  float* dr = d + g * 8 + 2 * t;
  if (kK == 8) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},"
        "{%8,%9},{%10,%11,%12,%13};"
        : "=f"(dr[0]), "=f"(dr[1]), "=f"(dr[64]), "=f"(dr[65])
        : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]), "f"(cr[0]), "f"(cr[1]),
          "f"(cr[64]), "f"(cr[65]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5},{%6},"
        "{%7,%8,%9,%10};"
        : "=f"(dr[0]), "=f"(dr[1]), "=f"(dr[64]), "=f"(dr[65])
        : "r"(x[0]), "r"(x[1]), "r"(y[0]), "f"(cr[0]), "f"(cr[1]), "f"(cr[64]), "f"(cr[65]));
  }
}

__global__ void f64_kernel(const double* a, const double* b, const double* c, double* d) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  double* dr = d + g * 8 + 2 * t;
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1},{%2},{%3},{%4,%5};"
               : "=d"(dr[0]), "=d"(dr[1])
               : "d"(a[g * 4 + t]), "d"(b[g * 4 + t]), "d"(c[g * 8 + 2 * t]),
                 "d"(c[g * 8 + 2 * t + 1]));
}

// Four 8x8 matrices of 16 bits, one after another: out holds each lane's words, of x4, x4
// transposed, x2 and x1.
__global__ void ldmatrix_kernel(const Word* in, Word* out) {
  __shared__ __align__(16) Word s[128];
  const int l = threadIdx.x;
  for (int i = l; i < 128; i += 32) s[i] = in[i];
  __syncwarp();
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(&s[4 * l]));
  Word x[4], y[4], z[2], w;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(at)
               : "memory");
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(y[0]), "=r"(y[1]), "=r"(y[2]), "=r"(y[3])
               : "r"(at)
               : "memory");
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(z[0]), "=r"(z[1])
               : "r"(at)
               : "memory");
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(w)
               : "r"(at)
               : "memory");
  for (int m = 0; m < 4; ++m) {
    out[m * 32 + l] = x[m];
    out[(4 + m) * 32 + l] = y[m];
  }
  out[8 * 32 + l] = z[0];
  out[9 * 32 + l] = z[1];
  out[10 * 32 + l] = w;
}

// Stores what ldmatrix loads: the matrices come back, the last two transposed.
__global__ void stmatrix_kernel(const Word* in, Word* out) {
#if __CUDA_ARCH__ >= 900
  __shared__ __align__(16) Word s[128], q[128];
  const int l = threadIdx.x;
  for (int i = l; i < 128; i += 32) s[i] = in[i];
  __syncwarp();
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(&s[4 * l]));
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(&q[4 * l]));
  const unsigned rest = static_cast<unsigned>(__cvta_generic_to_shared(&q[64 + 4 * (l & 15)]));
  Word x[4];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(at)
               : "memory");
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(x[0]),
               "r"(x[1]), "r"(x[2]), "r"(x[3])
               : "memory");
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1,%2};" ::"r"(rest),
               "r"(x[2]), "r"(x[3])
               : "memory");
  __syncwarp();
  for (int i = l; i < 128; i += 32) out[i] = q[i];
#endif
}

}  // namespace

extern "C" int run_mma(int kind, const void* a, const void* b, const void* c, void* d) {
  const auto* wa = static_cast<const Word*>(a);
  const auto* wb = static_cast<const Word*>(b);
  const auto* fc = static_cast<const float*>(c);
  auto* fd = static_cast<float*>(d);
  switch (kind) {
    case 0:
      bf16_16_kernel<<<1, 32>>>(wa, wb, fc, fd);
      break;
    case 1:
      f16_16_kernel<<<1, 32>>>(wa, wb, fc, fd);
      break;
    case 2:
      bf16_8_kernel<<<1, 32>>>(wa, wb, fc, fd);
      break;
    case 3:
      f16_8_kernel<<<1, 32>>>(wa, wb, fc, fd);
      break;
    case 4:
      tf32_kernel<8><<<1, 32>>>(wa, wb, fc, fd);
      break;
    case 5:
      tf32_kernel<4><<<1, 32>>>(wa, wb, fc, fd);
      break;
    default:
      f64_kernel<<<1, 32>>>(static_cast<const double*>(a), static_cast<const double*>(b),
                            static_cast<const double*>(c), static_cast<double*>(d));
  }
  return cudaGetLastError();
}
extern "C" int run_ldmatrix(const Word* in, Word* out) {
  ldmatrix_kernel<<<1, 32>>>(in, out);
  return cudaGetLastError();
}
extern "C" int run_stmatrix(const Word* in, Word* out) {
  stmatrix_kernel<<<1, 32>>>(in, out);
  return cudaGetLastError();
}
