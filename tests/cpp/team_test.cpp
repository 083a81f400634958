// SPDX-License-Identifier: BSD-3-Clause
// Team: phases in order, each partition once, whoever comes, whenever they come; and Parallel's
// loop. A team that hangs is ended by an alarm.
#include "cpu/runtime/team.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include "check.h"
#include "parallel.h"

namespace lstm_fused::test {
namespace {

using cpu::Team;

constexpr unsigned kSecondsUntilHung = 60;

// Work that notices disorder. Phase p reads what all partitions wrote in phase p - 1 and writes its
// own for phase p + 1. The cells are not atomic: ThreadSanitizer sees a missing release or
// acquire, and any build sees a phase that begins too early, or a partition that runs twice.
class Witness {
 public:
  Witness(int partitions, int64_t phases)
      : partitions_(partitions), phases_(phases), runs_(partitions * phases) {
    for (std::vector<Cell>& cells : cells_) cells.resize(partitions);
    for (Cell& cell : cells_[0]) cell.phase = 0;
  }

  void run(int64_t phase, int partition) {
    if (phase < 0 || phase >= phases_ || partition < 0 || partition >= partitions_) {
      CHECK(!"phase and partition are in range");
      return;
    }
    runs_[phase * partitions_ + partition].fetch_add(1, std::memory_order_relaxed);
    for (const Cell& cell : cells_[phase % 2]) {
      if (cell.phase != phase) CHECK_EQ(cell.phase, phase);
    }
    cells_[(phase + 1) % 2][partition].phase = phase + 1;
  }

  void check_complete() const {
    for (int64_t i = 0; i < static_cast<int64_t>(runs_.size()); ++i) {
      if (runs_[i].load() == 1) continue;
      const Scope scope("phase ", i / partitions_, ", partition ", i % partitions_);
      CHECK_EQ(runs_[i].load(), 1);
    }
  }

 private:
  struct alignas(64) Cell {
    int64_t phase = -1;
  };

  const int partitions_;
  const int64_t phases_;
  std::vector<Cell> cells_[2];
  std::vector<std::atomic<int>> runs_;
};

void pause_for(int microseconds) {
  if (microseconds > 0) std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
}

// Threads join as the given workers after the given delays; others never do.
struct Worker {
  int number;
  int delay_us = 0;
};

// `slow_partition` takes its time in some phases: the others must wait for it.
void check_workers(int partitions, int64_t phases, const std::vector<Worker>& workers,
                   int slow_partition = -1) {
  const Scope scope(partitions, " partitions, ", phases, " phases, ", workers.size(), " workers");
  Team team(partitions);
  Witness witness(partitions, phases);
  std::vector<std::thread> threads;
  for (const Worker& worker : workers) {
    threads.emplace_back([&, worker] {
      pause_for(worker.delay_us);
      team.work(worker.number, phases, [&](int64_t phase, int partition) {
        if (partition == slow_partition && phase % 16 == 7) pause_for(200);
        witness.run(phase, partition);
      });
    });
  }
  for (std::thread& thread : threads) thread.join();
  witness.check_complete();
}

void test_serial() {
  for (int partitions : {1, 2, 3, 8}) {
    for (int64_t phases : {0, 1, 2, 100}) {
      for (bool reversed : {false, true}) {
        const Scope scope(partitions, " partitions, ", phases, " phases, one thread");
        Team team(partitions);
        Witness witness(partitions, phases);
        for (int i = 0; i < partitions; ++i) {
          team.work(reversed ? partitions - 1 - i : i, phases,
                    [&](int64_t phase, int partition) { witness.run(phase, partition); });
          witness.check_complete();  // the first one to come has done it all
        }
      }
    }
  }
}

// A worker alone goes through its phases in order, its own partition first.
void test_order() {
  constexpr int kPartitions = 3;
  Team team(kPartitions);
  std::vector<int64_t> seen;
  team.work(1, 4,
            [&](int64_t phase, int partition) { seen.push_back(phase * kPartitions + partition); });
  CHECK_EQ(seen.size(), size_t{4 * kPartitions});
  for (size_t i = 0; i < seen.size(); ++i) {
    CHECK_EQ(seen[i], static_cast<int64_t>(i / kPartitions * kPartitions + (i + 1) % kPartitions));
  }
}

void test_threads() {
  check_workers(1, 1000, {{0}});
  check_workers(2, 5000, {{0}, {1}});
  check_workers(3, 3000, {{0}, {1}, {2}});
  // Never: the partitions of workers that do not come are done by those that do.
  check_workers(3, 1000, {{0}, {2}});
  check_workers(8, 500, {{5}});
  check_workers(8, 500, {{1}, {6}});
  // Late: in mid-work, and when all is done.
  check_workers(2, 2000, {{0}, {1, 300}});
  check_workers(3, 2000, {{0, 500}, {1}, {2, 200}});
  check_workers(4, 50, {{0}, {1}, {2}, {3, 20000}});
  // More workers than partitions.
  check_workers(2, 1000, {{0}, {1}, {2}, {3}});
  check_workers(1, 1000, {{0}, {0}, {0}});
  // A partition that is being worked on by a worker that was suspended.
  check_workers(2, 200, {{0}, {1}}, 1);
  check_workers(3, 200, {{0}, {1}, {2}}, 0);
  check_workers(3, 200, {{1}, {2, 1000}}, 0);
}

// Many more threads than processors.
void test_stress() {
  std::vector<Worker> many;
  for (int i = 0; i < 16; ++i) many.push_back({i, i % 3 * 100});
  check_workers(16, 200, many);
  check_workers(5, 300, many);
  for (int round = 0; round < 50; ++round) {
    check_workers(2 + round % 3, 20, {{0, round % 5 * 20}, {1}, {2, round % 7 * 15}});
  }
}

// Several teams on one pool, as the layer has them: groups never wait for one another.
void check_teams(const Pool& pool) {
  const Scope scope(pool.name);
  constexpr int kTeams = 3, kPartitions = 2;
  constexpr int64_t kPhases = 60;
  std::vector<std::unique_ptr<Team>> teams;
  std::vector<std::unique_ptr<Witness>> witnesses;
  for (int i = 0; i < kTeams; ++i) {
    teams.push_back(std::make_unique<Team>(kPartitions));
    witnesses.push_back(std::make_unique<Witness>(kPartitions, kPhases));
  }
  pool.parallel.for_each(kTeams * kPartitions, [&](int64_t i) {
    teams[i / kPartitions]->work(
        static_cast<int>(i % kPartitions), kPhases,
        [&](int64_t phase, int partition) { witnesses[i / kPartitions]->run(phase, partition); });
  });
  for (const auto& witness : witnesses) witness->check_complete();
}

void check_for_each(const Pool& pool) {
  const Scope scope(pool.name);
  for (int64_t n : {0, 1, 2, 3, 7, 20}) {
    std::vector<std::atomic<int>> runs(n);
    pool.parallel.for_each(n, [&](int64_t i) { ++runs.at(i); });
    for (const std::atomic<int>& count : runs) CHECK_EQ(count.load(), 1);
  }
}

// Denormal numbers are flushed in the loop's functions and nowhere else, whoever calls them and
// however they end.
void check_denormals(const Pool& pool, bool throws) {
  const Scope scope(pool.name);
  const auto body = [&](int64_t i) {
    CHECK(!keeps_denormals());
    Parallel{}.for_each(1, [](int64_t) { CHECK(!keeps_denormals()); });
    CHECK(!keeps_denormals());
    if (throws && i == 2) throw i;
  };
  for (int64_t n : {1, 5}) {
    try {
      pool.parallel.for_each(n, body);
    } catch (int64_t) {
    }
    CHECK(keeps_denormals());
  }
  // Who flushes them on its own account goes on doing so.
  const cpu::FlushDenormals mine;
  Parallel{}.for_each(5, [](int64_t) {});
  CHECK(!keeps_denormals());
}

}  // namespace
}  // namespace lstm_fused::test

int main() {
  using namespace lstm_fused::test;
  alarm(kSecondsUntilHung);
  test_serial();
  test_order();
  test_threads();
  test_stress();
  for (const auto& pools : {serial_pools(), threaded_pools()}) {
    for (const Pool& pool : pools) {
      check_for_each(pool);
      check_denormals(pool, /*throws=*/false);
      check_teams(pool);
    }
  }
  for (const Pool& pool : serial_pools()) check_denormals(pool, /*throws=*/true);
  return exit_status();
}
