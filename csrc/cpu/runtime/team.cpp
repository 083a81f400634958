// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/runtime/team.h"

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

// A pause is 10 to 140 cycles, so that these are some 40 microseconds. A worker that runs is seen
// within them, if not at once, then before one that sleeps would be woken. One that does not run is
// preempted, on a busy machine, and gets its core back in milliseconds.
// NOTE: to yield while waiting would give this core to the other program for as long, and again in
// each phase; a thread that slept is scheduled as soon as it is woken. Measured beside two busy
// processes, N=1 H=256: 6.9 ms with yields, 0.87 ms with sleep.
constexpr int kSpins = 2000;

}  // namespace

void Team::arrive(int64_t phase) {
  // Releases this partition's writes to whoever sees the phase done. It and the load are
  // sequentially consistent, as those of sleep_past: either the sleeper sees this partition, or
  // this the sleeper.
  const int64_t done = done_.fetch_add(1) + 1;
  if (done < (phase + 1) * partitions_ || sleepers_.load() == 0) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  phase_done_.notify_all();
}

int64_t Team::wait_past(int64_t phase) {
  const int64_t end = (phase + 1) * partitions_;
  for (int spins = 0; done_.load(std::memory_order_acquire) < end; ++spins) {
    if (spins < kSpins) {
      pause();
    } else {
      sleep_past(phase);
    }
  }
  return done_.load(std::memory_order_acquire) / partitions_;
}

void Team::sleep_past(int64_t phase) {
  std::unique_lock<std::mutex> lock(mutex_);
  sleepers_.fetch_add(1);
  phase_done_.wait(lock, [&] { return done_.load() >= (phase + 1) * partitions_; });
  sleepers_.fetch_sub(1);
}

}  // namespace lstm_fused::cpu
