// SPDX-License-Identifier: BSD-3-Clause
// One row of results for each operation, to be compared with numpy's.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace {

__global__ void integer_kernel(const unsigned* a, const unsigned* b, const unsigned* c,
                               unsigned* out, int n) {
  const int i = threadIdx.x;
  const unsigned x = a[i], y = b[i], z = c[i];
  const int sx = static_cast<int>(x), sy = static_cast<int>(y), sz = static_cast<int>(z);
  int row = 0;
  const auto put = [&](unsigned value) { out[row++ * n + i] = value; };
  put(x + y);
  put(x * y + z);
  put(__umulhi(x, y));
  put(static_cast<unsigned>(__mulhi(sx, sy)));
  put(static_cast<unsigned>(__mul24(sx, sy)));
  put(__umul24(x, y));
  put(x / (y | 1));
  put(static_cast<unsigned>(sx % (sy | 1)));
  put(min(sx, sy));
  put(max(x, y));
  put(x << (y & 31));
  put(static_cast<unsigned>(sx >> (y & 31)));
  put(__brev(x));
  put(__clz(sx));
  put(__popc(x));
  put(__ffs(sx));
  put(__byte_perm(x, y, z & 0x7777));
  put(__funnelshift_l(x, y, z));
  put(__funnelshift_rc(x, y, z & 63));
  put(__usad(x, y, z));
  put(static_cast<unsigned>(__dp4a(sx, sy, sz)));
  put(__dp4a(x, y, z));
  unsigned value;
  asm("bfe.u32 %0, %1, 5, 9;" : "=r"(value) : "r"(x));
  put(value);
  asm("bfe.s32 %0, %1, 5, 9;" : "=r"(value) : "r"(x));
  put(value);
  asm("bfi.b32 %0, %1, %2, 7, 11;" : "=r"(value) : "r"(x), "r"(y));
  put(value);
  asm("lop3.b32 %0, %1, %2, %3, 0xca;" : "=r"(value) : "r"(x), "r"(y), "r"(z));
  put(value);
  asm("shl.b32 %0, %1, 40;" : "=r"(value) : "r"(x));
  put(value);
  asm("bfind.u32 %0, %1;" : "=r"(value) : "r"(x));
  put(value);
  const unsigned long long wide = (static_cast<unsigned long long>(x) << 32) | y;
  const unsigned long long high = __umul64hi(wide, wide);
  put(static_cast<unsigned>(high));
  put(static_cast<unsigned>(high >> 32));
  const unsigned __int128 whole = static_cast<unsigned __int128>(wide) * wide + wide;
  put(static_cast<unsigned>(whole >> 96));
  put(static_cast<unsigned>(whole >> 64));
  asm("{\n .reg .pred p, q;\n setp.lt.and.u32 p|q, %1, %2, 1;\n selp.u32 %0, 1, 0, p;\n"
      " @q add.u32 %0, %0, 2;\n}"
      : "=r"(value)
      : "r"(x), "r"(y));
  put(value);
}

__global__ void float_kernel(const float* a, const float* b, float* out, int n) {
  const int i = threadIdx.x;
  const float x = a[i], y = b[i];
  int row = 0;
  const auto put = [&](float value) { out[row++ * n + i] = value; };
  put(x + y);
  put(fmaf(x, y, x));
  put(x / y);
  put(sqrtf(fabsf(x)));
  put(__frcp_rn(y));
  put(fminf(x, y));
  put(fmaxf(x, y));
  put(copysignf(x, y));
  put(__saturatef(x));
  put(expf(x));
  put(tanhf(x));
  put(logf(fabsf(x) + 0.5f));
  put(sinf(x));
  put(__expf(x));
  float value;
  asm("tanh.approx.f32 %0, %1;" : "=f"(value) : "f"(x));
  put(value);
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
  put(value);
  put(rsqrtf(fabsf(y)));
  put(rintf(x));
  put(truncf(x));
  put(floorf(x));
  put(static_cast<float>(static_cast<int>(x * 1e9f)));
  put(static_cast<float>(static_cast<unsigned>(x * 1e9f)));
  put(static_cast<float>(static_cast<double>(x) * static_cast<double>(y)));
  put(__fadd_rz(x, y));
  put(__fadd_rd(x, y));
  put(__fmul_ru(x, y));
  put(__fdiv_rd(x, y));
  unsigned word;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(x));
  put(__uint_as_float(word));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(y));
  put(value);
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(y * 1e-39f));
  put(value);
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(fabsf(x) - 140.0f));
  put(value);
}

// Rows of 16-bit results, for bfloat16 or half.
template <class E, class E2>
__device__ void put_halves(const E2* a, const E2* b, E2* out, int n) {
  const int i = threadIdx.x;
  const E2 x = a[i], y = b[i];
  int row = 0;
  const auto put = [&](E2 value) { out[row++ * n + i] = value; };
  put(__hadd2(x, y));
  put(__hsub2(x, y));
  put(__hmul2(x, y));
  put(__hfma2(x, y, x));
  put(__hneg2(x));
  put(__habs2(x));
  put(__hmax2(x, y));
  put(__hmin2(x, y));
  put(E2{__hadd(x.x, y.y), __hmul(x.y, y.x)});
  put(E2{__hfma(x.x, y.y, x.y), __hlt(x.x, y.x) ? x.x : y.x});
}

__global__ void half_kernel(const __half2* a, const __half2* b, __half2* out, int n) {
  put_halves<__half>(a, b, out, n);
}
__global__ void bfloat_kernel(const __nv_bfloat162* a, const __nv_bfloat162* b, __nv_bfloat162* out,
                              int n) {
  put_halves<__nv_bfloat16>(a, b, out, n);
}

__global__ void convert_kernel(const float* a, __nv_bfloat162* bf, __half2* half, int n) {
  const int i = threadIdx.x;
  const float x = a[i], y = a[(i + 1) % n];
  bf[i] = __floats2bfloat162_rn(x, y);
  bf[n + i] = __nv_bfloat162{__float2bfloat16_rz(x), __float2bfloat16(y)};
  half[i] = __floats2half2_rn(x, y);
  half[n + i] = __half2{__float2half_rz(x), __double2half(static_cast<double>(y))};
}

__global__ void double_kernel(const double* a, const double* b, double* out, int n) {
  const int i = threadIdx.x;
  const double x = a[i], y = b[i];
  int row = 0;
  const auto put = [&](double value) { out[row++ * n + i] = value; };
  put(x * y + x);
  put(x / y);
  put(sqrt(fabs(x)));
  put(exp(x));
  put(tanh(x));
  put(fmin(x, y));
  put(static_cast<double>(static_cast<long long>(x * 1e15)));
  put(rint(x));
  put(__dadd_ru(x, y));
}

}  // namespace

extern "C" int run_integer(const unsigned* a, const unsigned* b, const unsigned* c, unsigned* out,
                           int n) {
  integer_kernel<<<1, n>>>(a, b, c, out, n);
  return cudaGetLastError();
}
extern "C" int run_float(const float* a, const float* b, float* out, int n) {
  float_kernel<<<1, n>>>(a, b, out, n);
  return cudaGetLastError();
}
extern "C" int run_half(const void* a, const void* b, void* out, int n) {
  half_kernel<<<1, n>>>(static_cast<const __half2*>(a), static_cast<const __half2*>(b),
                        static_cast<__half2*>(out), n);
  return cudaGetLastError();
}
extern "C" int run_bfloat(const void* a, const void* b, void* out, int n) {
  bfloat_kernel<<<1, n>>>(static_cast<const __nv_bfloat162*>(a),
                          static_cast<const __nv_bfloat162*>(b), static_cast<__nv_bfloat162*>(out),
                          n);
  return cudaGetLastError();
}
extern "C" int run_convert(const float* a, void* bf, void* half, int n) {
  convert_kernel<<<1, n>>>(a, static_cast<__nv_bfloat162*>(bf), static_cast<__half2*>(half), n);
  return cudaGetLastError();
}
extern "C" int run_double(const double* a, const double* b, double* out, int n) {
  double_kernel<<<1, n>>>(a, b, out, n);
  return cudaGetLastError();
}
