// SPDX-License-Identifier: BSD-3-Clause
// Threads: who runs the work, and how a few of them go through a sequence of phases in step.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "cpu/runtime/flush_denormals.h"

namespace lstm_fused::cpu {

// A thread pool: calls body(begin, end, context) for disjoint ranges that cover [0, n), on any
// threads, one after the other or at once, and returns when all are done.
struct Parallel {
  using Body = void (*)(int64_t begin, int64_t end, void* context);
  using For = void (*)(int64_t n, Body body, void* context);
  int threads = 1;
  For run = nullptr;

  // Calls function(i) for every i in [0, n), denormal numbers being flushed to zero meanwhile;
  // hence the function must not call for_each of a pool with threads (see FlushDenormals).
  template <typename Function>
  void for_each(int64_t n, const Function& function) const {
    const auto body = [](int64_t begin, int64_t end, void* context) {
      const FlushDenormals flush;
      for (int64_t i = begin; i < end; ++i) (*static_cast<const Function*>(context))(i);
    };
    if (n == 1 || threads == 1) {
      body(0, n, const_cast<Function*>(&function));
    } else {
      run(n, body, const_cast<Function*>(&function));
    }
  }
};

// Work that goes in phases with a barrier after each, all cut into the same number of partitions.
// Workers prefer the partition of their own number, whose data is in their cache, and take any
// other that nobody has claimed when theirs is done. So the team neither hangs nor waits when a
// worker comes late, or never, or when one thread is all workers in turn: its barrier only ever
// waits for partitions that another thread is working on.
class Team {
 public:
  explicit Team(int partitions) : partitions_(partitions), claims_(new Claim[partitions]) {}

  // Joins as `worker`; returns when all phases are done. run(phase, partition) must not throw.
  template <typename Run>
  void work(int worker, int64_t phases, const Run& run) {
    int64_t phase = done_.load(std::memory_order_acquire) / partitions_;
    while (phase < phases) {
      for (int i = 0; i < partitions_; ++i) {
        const int partition = (worker + i) % partitions_;
        if (!claim(partition, phase)) continue;
        run(phase, partition);
        arrive(phase);
      }
      phase = wait_past(phase);
    }
  }

 private:
  struct alignas(64) Claim {  // a cache line each
    std::atomic<int64_t> next_phase{0};
  };

  bool claim(int partition, int64_t phase) {
    std::atomic<int64_t>& next = claims_[partition].next_phase;
    int64_t expected = phase;
    return next.load(std::memory_order_relaxed) == phase &&
           next.compare_exchange_strong(expected, phase + 1, std::memory_order_relaxed);
  }

  // The barrier: a partition of `phase` is done.
  void arrive(int64_t phase);
  // Waits until `phase` is done; returns the phase that is open then.
  int64_t wait_past(int64_t phase);
  void sleep_past(int64_t phase);

  const int partitions_;
  std::unique_ptr<Claim[]> claims_;
  alignas(64) std::atomic<int64_t> done_{0};  // partitions done since the start
  // Workers that wait for one that does not run. In a cache line that is read, seldom written.
  alignas(64) std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable phase_done_;
};

}  // namespace lstm_fused::cpu
