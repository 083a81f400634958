// SPDX-License-Identifier: BSD-3-Clause
// Buffer and release_scratch: what is kept, given out again and freed, on one thread, after threads
// have ended, and while others use their buffers.
#include "cpu/runtime/scratch.h"

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "check.h"

namespace lstm_fused::test {
namespace {

using cpu::Buffer;
using cpu::release_scratch;

constexpr int64_t kSmall = 1 << 10, kLarge = 1 << 20;

void use(int64_t bytes) { std::memset(Buffer(bytes).get(), 1, bytes); }

void test_one_thread() {
  release_scratch();
  CHECK_EQ(release_scratch(), 0);
  // Small buffers go back to malloc, large ones are kept until they are released.
  use(kSmall);
  CHECK_EQ(release_scratch(), 0);
  use(kLarge);
  CHECK_EQ(release_scratch(), kLarge);
  CHECK_EQ(release_scratch(), 0);
  // Buffers in use are not kept.
  {
    const Buffer buffer(kLarge);
    std::memset(buffer.get(), 7, kLarge);
    use(2 * kLarge);
    CHECK_EQ(release_scratch(), 2 * kLarge);
    const char* bytes = static_cast<const char*>(buffer.get());
    CHECK(bytes[0] == 7 && bytes[kLarge - 1] == 7);
  }
  CHECK_EQ(release_scratch(), kLarge);
  // What is more than a thread may keep is not kept.
  use(64 * kLarge);
  CHECK_EQ(release_scratch(), 0);
  for (int i = 1; i <= 40; ++i) use(kLarge + i * 64);
  const int64_t kept = release_scratch();
  CHECK(16 * kLarge < kept && kept <= 32 * kLarge);
  // A block is given out again at its own size.
  void* first = Buffer(kLarge).get();
  CHECK(Buffer(kLarge).get() == first);
}

// Blocks of threads that wait are released, those of threads that have ended are gone.
void test_idle_threads() {
  release_scratch();
  constexpr int kThreads = 5;
  std::atomic<int> idle{0};
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      use(kLarge);
      ++idle;
      while (!stop) std::this_thread::yield();
    });
  }
  while (idle < kThreads) std::this_thread::yield();
  CHECK_EQ(release_scratch(), kThreads * kLarge);
  stop = true;
  for (std::thread& thread : threads) thread.join();
  for (int round = 0; round < 20; ++round) {
    std::thread([] { use(kLarge); }).join();
    CHECK_EQ(release_scratch(), 0);
  }
}

// Threads that take, fill and give back buffers do not notice.
void test_busy_threads() {
  constexpr int kThreads = 3, kRounds = 400;
  std::atomic<int> done{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      for (int round = 0; round < kRounds; ++round) {
        const int64_t bytes = (1 + (i + round) % 3) * (32 << 10);
        const Buffer first(bytes), second(bytes);
        std::memset(first.get(), i, bytes);
        std::memset(second.get(), i + 1, bytes);
        const char* a = static_cast<const char*>(first.get());
        const char* b = static_cast<const char*>(second.get());
        for (int64_t at = 0; at < bytes; at += 64) CHECK(a[at] == i && b[at] == i + 1);
      }
      ++done;
    });
  }
  while (done < kThreads) release_scratch();
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(release_scratch(), 0);
}

}  // namespace
}  // namespace lstm_fused::test

int main() {
  lstm_fused::test::test_one_thread();
  lstm_fused::test::test_idle_threads();
  lstm_fused::test::test_busy_threads();
  return lstm_fused::test::exit_status();
}
