// SPDX-License-Identifier: BSD-3-Clause
#include "torch/torch_parallel.h"

#include <torch/csrc/stable/ops.h>

namespace lstm_fused {
namespace {

void run_on_torch_pool(int64_t n, cpu::Parallel::Body body, void* context) {
  torch::stable::parallel_for(0, n, 1,
                              [=](int64_t begin, int64_t end) { body(begin, end, context); });
}

}  // namespace

cpu::Parallel torch_parallel() {
  return {static_cast<int>(torch::stable::get_num_threads()), run_on_torch_pool};
}

}  // namespace lstm_fused
