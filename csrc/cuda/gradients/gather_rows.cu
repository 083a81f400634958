// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/device/row_grid.cuh"
#include "cuda/gradients/gather_rows.h"
#include "cuda/status.h"

namespace lstm_fused::cuda {
namespace {

// A thread moves one Chunk of bytes.
template <typename Chunk>
__global__ void __launch_bounds__(kRowThreads)
    gather_rows_kernel(const __grid_constant__ GatherRows args) {
  const int64_t row = grid_row(), column = grid_column<1>();
  const int64_t chunks = args.row_bytes / static_cast<int64_t>(sizeof(Chunk));
  const int64_t stride = args.stride_bytes / static_cast<int64_t>(sizeof(Chunk));
  if (row >= args.steps * args.batch || column >= chunks) return;
  const int64_t t = row / args.batch, n = row % args.batch;
  const int64_t length = row_length(args.lengths, n, args.steps);
  Chunk chunk = {};
  if (t < length && !is_reset(args.reset_mask, t, n, args.batch)) {
    const bool first = args.shift != 0 && t == (args.shift < 0 ? 0 : length - 1);
    chunk = first ? static_cast<const Chunk*>(args.first_rows)[n * chunks + column]
                  : static_cast<const Chunk*>(
                        args.rows)[(row + args.shift * args.batch) * stride + column];
  }
  static_cast<Chunk*>(args.out)[row * chunks + column] = chunk;
}

// Launches with Chunk if all addresses allow it.
template <typename Chunk>
bool launch_gather_rows(const GatherRows& args, cudaStream_t stream) {
  constexpr int64_t kBytes = sizeof(Chunk);
  if (args.row_bytes % kBytes != 0 || args.stride_bytes % kBytes != 0 ||
      !is_aligned(args.rows, kBytes) || !is_aligned(args.first_rows, kBytes) ||
      !is_aligned(args.out, kBytes)) {
    return false;
  }
  const RowGrid launch = row_grid(args.steps * args.batch, args.row_bytes / kBytes, 1, 1);
  if (launch.empty) return true;
  gather_rows_kernel<Chunk><<<launch.grid, launch.block, 0, stream>>>(args);
  check_launch("gather_rows_kernel");
  return true;
}

}  // namespace

void gather_rows(const GatherRows& gather, cudaStream_t stream) {
  const bool launched =
      launch_gather_rows<uint4>(gather, stream) || launch_gather_rows<uint2>(gather, stream) ||
      launch_gather_rows<uint32_t>(gather, stream) || launch_gather_rows<uint16_t>(gather, stream);
  LSTM_CHECK(launched, "rows must be aligned to their elements, got ", gather.row_bytes,
             " bytes a row");
}

}  // namespace lstm_fused::cuda
