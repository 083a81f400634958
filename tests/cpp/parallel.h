// SPDX-License-Identifier: BSD-3-Clause
// Thread pools of every temper that cpu::Parallel allows. A kernel must give the same bits on all.
#pragma once

#include <chrono>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/runtime/team.h"

namespace lstm_fused::test {

using cpu::Parallel;

// Whether this thread computes with denormal numbers, or flushes them.
inline bool keeps_denormals() {
  const volatile float small = 0x1p-120f, factor = 0x1p-20f;
  const float product = small * factor;
  int32_t bits;
  std::memcpy(&bits, &product, sizeof(bits));
  return bits != 0;
}

// All of [0, n) in one call on the caller's thread.
// NOTE: every pool checks its caller: threads that it starts would flush denormals as that one
// does.
inline void run_at_once(int64_t n, Parallel::Body body, void* context) {
  CHECK(keeps_denormals());
  body(0, n, context);
}

inline void run_in_reverse(int64_t n, Parallel::Body body, void* context) {
  CHECK(keeps_denormals());
  for (int64_t i = n; i-- > 0;) body(i, i + 1, context);
}

// A thread for each index, which ends before the next begins.
inline void run_in_turn(int64_t n, Parallel::Body body, void* context) {
  CHECK(keeps_denormals());
  for (int64_t i = 0; i < n; ++i) std::thread(body, i, i + 1, context).join();
}

// kThreads threads with a range each; thread `late`, if any, begins when the others are under way
// or done. The caller's is thread 0, as in torch's pool.
template <int kThreads>
void run_in_threads(int64_t n, Parallel::Body body, void* context, int late) {
  CHECK(keeps_denormals());
  const auto work = [&](int thread) {
    if (thread == late) std::this_thread::sleep_for(std::chrono::microseconds(300));
    const int64_t begin = n * thread / kThreads, end = n * (thread + 1) / kThreads;
    if (begin < end) body(begin, end, context);
  };
  std::vector<std::thread> threads;
  for (int thread = 1; thread < kThreads; ++thread) threads.emplace_back(work, thread);
  work(0);
  for (std::thread& thread : threads) thread.join();
}

template <int kThreads>
void run_concurrently(int64_t n, Parallel::Body body, void* context) {
  run_in_threads<kThreads>(n, body, context, -1);
}

template <int kThreads, int kLate>
void run_with_latecomer(int64_t n, Parallel::Body body, void* context) {
  run_in_threads<kThreads>(n, body, context, kLate);
}

struct Pool {
  const char* name;
  Parallel parallel;
};

inline const Pool kOneThread = {"one thread", {1, nullptr}};

inline const std::vector<Pool>& serial_pools() {
  static const std::vector<Pool> pools = {
      kOneThread,
      {"at once", {2, run_at_once}},
      {"in reverse", {3, run_in_reverse}},
  };
  return pools;
}

inline const std::vector<Pool>& threaded_pools() {
  static const std::vector<Pool> pools = {
      {"2 threads", {2, run_concurrently<2>}},
      {"4 threads", {4, run_concurrently<4>}},
      {"3 threads, the first late", {3, run_with_latecomer<3, 0>}},
      {"2 threads, the second late", {2, run_with_latecomer<2, 1>}},
      {"in turn", {4, run_in_turn}},
  };
  return pools;
}

// Pools in turn, so that over the cases every kind meets every kind. Those with threads of their
// own come rarely: starting these takes longer than the work does.
inline const Pool& next_pool() {
  static size_t count = 0;
  constexpr size_t kPeriod = 199;  // prime to the number of runs in a case
  const size_t i = count++ % kPeriod;
  const std::vector<Pool>& pools = i < threaded_pools().size() ? threaded_pools() : serial_pools();
  return pools[i % pools.size()];
}

}  // namespace lstm_fused::test
