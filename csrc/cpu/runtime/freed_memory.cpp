// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/runtime/freed_memory.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>

namespace lstm_fused::cpu {
namespace {

// No freed block above 32 MiB, with its head and up to whole pages, raises the threshold
// (DEFAULT_MMAP_THRESHOLD_MAX).
[[maybe_unused]] constexpr int64_t kMaxBlock = (32 << 20) - (8 << 10);

}  // namespace

void keep_freed_memory([[maybe_unused]] int64_t bytes) {
#if defined(__GLIBC__)
  // At the end of its heap glibc keeps twice the largest block that it took from the system by
  // itself and that was freed (mallopt(3), "dynamic mmap threshold"). The sums over a loop's steps
  // are freed beside the gradients of its steps: by blocks of 2 * bytes some faults remain.
  static std::atomic<int64_t> largest_block{0};
  const int64_t block = std::min(3 * bytes, kMaxBlock);
  if (block <= largest_block.load(std::memory_order_relaxed)) return;
  largest_block.store(block, std::memory_order_relaxed);
  // Never touched, so it takes address space and no memory. Volatile, lest the compiler sees that
  // nobody uses it.
  void* volatile never_used = std::malloc(static_cast<size_t>(block));
  std::free(never_used);
#endif
}

}  // namespace lstm_fused::cpu
