// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/options/recurrent_inputs.h"
#include "cuda/options/values.cuh"
#include "cuda/status.h"

namespace lstm_fused::cuda {
namespace {

struct RecurrentInputArgs : OptionStepArgs {
  bool reverse = false;
  const void* h_0 = nullptr;
  const void* y = nullptr;
  const void* reset_h = nullptr;
  const void* h_mask = nullptr;
  void* out = nullptr;
};

template <typename Storage>
__global__ void __launch_bounds__(kRowThreads)
    option_recurrent_inputs_kernel(const __grid_constant__ RecurrentInputArgs args) {
  const int64_t i = grid_row(), p = grid_column<1>();
  if (i >= args.steps * args.batch || p >= args.output_size) return;
  const RowOfStep row(args, i / args.batch, i % args.batch, args.reverse);
  const int64_t unit = row.n * args.output_size + p;
  Accumulator<Storage> value = 0;
  if (row.active) {
    const int64_t before = i + (args.reverse ? args.batch : -args.batch);
    value = row.reset   ? element_or_zero<Storage>(args.reset_h, unit)
            : row.first ? element<Storage>(args.h_0, unit)
                        : element<Storage>(args.y, before * args.directions * args.output_size + p);
    if (args.h_mask != nullptr) value *= element<Storage>(args.h_mask, unit);
  }
  put<Storage>(args.out, i * args.output_size + p, value);
}

}  // namespace

void recurrent_inputs(const RecurrentInputCall& call) {
  const LstmShape& s = call.shape;
  RecurrentInputArgs args;
  args.steps = s.steps;
  args.batch = s.batch;
  args.output_size = s.output_size;
  args.directions = s.directions;
  args.lengths = call.lengths;
  args.reset_mask = call.reset_mask;
  args.reverse = call.reverse;
  args.h_0 = call.h_0;
  args.y = call.y;
  args.reset_h = call.options.reset_h;
  args.h_mask = call.options.h_mask;
  args.out = call.out;
  const RowGrid launch = row_grid(s.steps * s.batch, s.output_size, 1, 1);
  if (launch.empty) return;
  dispatch_storage(call.dtype, [&](auto storage) {
    option_recurrent_inputs_kernel<decltype(storage)>
        <<<launch.grid, launch.block, 0, call.stream>>>(args);
  });
  check_launch("option_recurrent_inputs_kernel");
}

}  // namespace lstm_fused::cuda
