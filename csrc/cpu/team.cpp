// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/team.h"

#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lstm_fused::cpu {
namespace {

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// A pause is 10 to 140 cycles. A phase is a few microseconds, so a partner that runs is seen
// within this; one that does not run needs our core, and gets it by the yield.
constexpr int kSpins = 400;

}  // namespace

int64_t Team::wait_past(int64_t phase) {
  int64_t done = done_.load(std::memory_order_acquire);
  for (int spins = 0; done < (phase + 1) * shares_; ++spins) {
    if (spins < kSpins) {
      pause();
    } else {
      std::this_thread::yield();
    }
    done = done_.load(std::memory_order_acquire);
  }
  return done / shares_;
}

}  // namespace lstm_fused::cpu
