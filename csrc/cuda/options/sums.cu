// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/options/sums.h"
#include "cuda/options/values.cuh"
#include "cuda/status.h"

namespace lstm_fused::cuda {
namespace {

constexpr int kSumColumns = 32;  // a block's columns, one for each lane of a warp
constexpr int kSumWarps = 8;     // a block's warps, each of which takes every eighth row

struct RowSumArgs {
  int64_t rows = 0, columns = 0;
  const void* sums = nullptr;
  void* out[2] = {};
};

template <typename Storage>
__global__ void __launch_bounds__(kSumColumns* kSumWarps)
    option_sum_kernel(const __grid_constant__ RowSumArgs args) {
  using Sum = Accumulator<Storage>;
  __shared__ Sum parts[kSumWarps][kSumColumns];
  const int64_t column = int64_t{blockIdx.x} * kSumColumns + threadIdx.x;
  Sum sum = 0;
  if (column < args.columns) {
    for (int64_t row = threadIdx.y; row < args.rows; row += kSumWarps) {
      sum += accumulator<Storage>(args.sums, row * args.columns + column);
    }
  }
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= args.columns) return;
  for (int warp = 1; warp < kSumWarps; ++warp) sum += parts[warp][threadIdx.x];
  for (void* out : args.out) {
    if (out != nullptr) put<Storage>(out, column, sum);
  }
}

struct RoundArgs {
  int64_t count = 0;
  const void* values = nullptr;
  void* out = nullptr;
};

template <typename Storage>
__global__ void __launch_bounds__(kRowThreads)
    option_round_kernel(const __grid_constant__ RoundArgs args) {
  const int64_t i = grid_row();
  if (i < args.count) put<Storage>(args.out, i, accumulator<Storage>(args.values, i));
}

}  // namespace

void sum_rows(DType dtype, const void* sums, int64_t rows, int64_t columns, void* out, void* twin,
              cudaStream_t stream) {
  if (out == nullptr && twin == nullptr) return;
  const RowSumArgs args = {rows, columns, sums, {out, twin}};
  const dim3 grid(static_cast<unsigned>(ceil_div(columns, kSumColumns)));
  dispatch_storage(dtype, [&](auto storage) {
    option_sum_kernel<decltype(storage)><<<grid, dim3(kSumColumns, kSumWarps), 0, stream>>>(args);
  });
  check_launch("option_sum_kernel");
}

void round_values(DType dtype, const void* values, int64_t count, void* out, cudaStream_t stream) {
  const RowGrid launch = row_grid(count, 1, 1, 1);
  if (out == nullptr || launch.empty) return;
  const RoundArgs args = {count, values, out};
  dispatch_storage(dtype, [&](auto storage) {
    option_round_kernel<decltype(storage)><<<launch.grid, launch.block, 0, stream>>>(args);
  });
  check_launch("option_round_kernel");
}

}  // namespace lstm_fused::cuda
