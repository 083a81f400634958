// SPDX-License-Identifier: BSD-3-Clause
#include "torch/torch_parallel.h"

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <exception>

namespace lstm_fused {
namespace {

// Brings the first exception of the pool's threads to the caller. NOTE: torch would, but for what
// it says, which is lost on the way through the stable ABI.
class Work {
 public:
  Work(cpu::Parallel::Body body, void* context) : body_(body), context_(context) {}

  void run(int64_t begin, int64_t end) {
    try {
      body_(begin, end, context_);
    } catch (...) {
      if (!has_failed_.test_and_set()) exception_ = std::current_exception();
    }
  }
  void rethrow() const {
    if (exception_) std::rethrow_exception(exception_);
  }

 private:
  const cpu::Parallel::Body body_;
  void* const context_;
  std::atomic_flag has_failed_ = ATOMIC_FLAG_INIT;
  std::exception_ptr exception_;
};

void run_on_torch_pool(int64_t n, cpu::Parallel::Body body, void* context) {
  Work work(body, context);
  torch::stable::parallel_for(0, n, 1,
                              [&work](int64_t begin, int64_t end) { work.run(begin, end); });
  work.rethrow();
}

}  // namespace

cpu::Parallel torch_parallel() {
  return {static_cast<int>(torch::stable::get_num_threads()), run_on_torch_pool};
}

}  // namespace lstm_fused
