// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/runtime/huge_pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lstm_fused::cpu {
namespace {

// glibc's malloc keeps what is smaller (DEFAULT_MMAP_THRESHOLD_MAX).
[[maybe_unused]] constexpr int64_t kMinBytes = 32 << 20;

// Advice goes by whole pages; 4 KiB is the least that any has.
[[maybe_unused]] constexpr uintptr_t kPage = 4096;

}  // namespace

void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  if (bytes < kMinBytes) return;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  // NOTE: no more than advice: nothing is lost where it fails.
  static_cast<void>(madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE));
#endif
}

}  // namespace lstm_fused::cpu
