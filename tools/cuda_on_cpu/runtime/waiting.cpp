// SPDX-License-Identifier: BSD-3-Clause
// Threads that wait in a loop, and grids that wait forever.
#include <algorithm>
#include <map>

#include "device.h"
#include "machine.h"
#include "store_buffer.h"

namespace cuda_on_cpu {

namespace {

// Turns without progress after which another resident block starts: a few, so that blocks often run
// while others have not started, which is the order that finds most.
constexpr uint64_t kTurnsBeforeStart = 8;
// Turns without progress after which a grid is stuck: far more than a thread of a grid that works
// waits for its turn, which is drawn at random.
constexpr uint64_t kStuckTurns = 1000000, kStuckTurnsPerThread = 200;
// Where the kernel reads the timer, its waits may be bounded: it has many more turns, but no more
// rounds than this, in which the timer gains a quarter of an hour.
constexpr uint64_t kTurnsFactor = 64, kStuckRounds = 1000;
// A thread waits in a loop, and does not just read one value after another, once it has polled so
// often and nothing has changed.
constexpr uint32_t kVainPolls = 32;
constexpr uint64_t kLongestRound = 1000000000;  // nanoseconds

bool is_stuck(const Grid& g, uint64_t threads) {
  const uint64_t turns = kStuckTurns + kStuckTurnsPerThread * threads;
  if (!g.launch.kernel->reads_timer) return g.idle_turns >= turns;
  return g.vain_rounds >= kStuckRounds || g.idle_turns >= kTurnsFactor * turns;
}

void idle_turn(Thread& th) {
  Grid& g = *grid;
  const uint64_t threads = g.blocks.size() * th.block->threads.size();
  // The waiting threads may wait for a block that has not started.
  if (++g.idle_turns >= kTurnsBeforeStart && start_block()) return;
  if (!is_stuck(g, threads)) return;
  abandon(cudaErrorLaunchTimeout, describe_deadlock("all that run are waiting in loops"));
}

// Every thread that can run has polled in vain: only time can change anything. It goes by the
// faster the longer this lasts, so that a wait of some seconds is over in about a hundred rounds.
void end_round(Grid& g) {
  if (g.stores && g.stores->has_strong()) return;  // they are on their way
  const auto least = static_cast<uint64_t>(device().poll_round_ns);
  const uint64_t gain = std::max(least, std::min(g.vain_nanoseconds / 16, kLongestRound));
  g.vain_nanoseconds += gain;
  g.idle_nanoseconds += gain;
  ++g.vain_rounds;
  ++g.round;
  g.round_threads = 0;
}

void note_vain_poll(Thread& th) {
  Grid& g = *grid;
  if (th.progress_seen != g.progress_number) {
    th.progress_seen = g.progress_number;
    th.vain_polls = 0;
    th.round_counted = 0;
  }
  if (++th.vain_polls < kVainPolls || th.round_counted == g.round) return;
  th.round_counted = g.round;
  if (++g.round_threads == g.runnable) end_round(g);
}

std::string describe_wait(const Thread& th) {
  switch (th.wait) {
    case Wait::kBarrier: {
      const Barrier& barrier = th.block->barriers[th.wait_barrier];
      const uint32_t wanted = barrier.threads == kWholeBlock ? th.block->live : barrier.threads;
      return "at barrier " + std::to_string(th.wait_barrier) + ", where " +
             std::to_string(barrier.arrived) + " of " + std::to_string(wanted) +
             " threads have arrived [" + site_text(th.wait_site) + "]";
    }
    case Wait::kWarp:
      return "for lanes of their warp [" + site_text(th.wait_site) + "]";
    case Wait::kSpin: {
      char text[64];
      snprintf(text, sizeof text, "%p, which holds 0x%llx", static_cast<const void*>(th.spin_at),
               static_cast<unsigned long long>(th.spin_value));
      return "in a loop for " + device().memory.describe(th.spin_at) + " at " + text + " [" +
             site_text(th.wait_site) + "]";
    }
    default:
      return "for nothing known: they can run, or loop";
  }
}

}  // namespace

std::string describe_deadlock(const char* why) {
  constexpr size_t kBlocksNamed = 8;
  const Grid& g = *grid;
  std::string text = "deadlock in kernel " + grid->name + ": " + why + ".";
  for (size_t i = 0; i < g.blocks.size() && i < kBlocksNamed; ++i) {
    const Block& block = *g.blocks[i];
    if (block.is_stalled) {
      text += "\n  block " + std::to_string(block.index) + ": stalled, as stall_block has it";
      continue;
    }
    std::map<std::string, std::pair<uint32_t, uint32_t>> waits;  // what -> count, first thread
    for (const Thread& th : block.threads) {
      if ((block.warps[th.warp].live >> th.lane & 1) == 0) continue;
      auto& entry = waits.try_emplace(describe_wait(th), 0, th.index).first->second;
      ++entry.first;
    }
    text += "\n  block (" + std::to_string(block.id.x) + ", " + std::to_string(block.id.y) + ", " +
            std::to_string(block.id.z) + "):";
    for (const auto& [what, entry] : waits) {
      text += "\n    " + std::to_string(entry.first) + " threads (the first is " +
              std::to_string(entry.second) + ") wait " + what;
    }
  }
  if (g.blocks.size() > kBlocksNamed) {
    text += "\n  and " + std::to_string(g.blocks.size() - kBlocksNamed) + " more blocks";
  }
  if (const size_t waiting = g.order.size() - g.next_block; waiting != 0) {
    text += "\n  " + std::to_string(waiting) + " of " + std::to_string(g.order.size()) +
            " blocks have not started: " + std::to_string(g.launch.capacity) +
            " are resident at a time";
  }
  return text;
}

void progress() {
  Grid& g = *grid;
  ++g.progress_number;
  g.idle_turns = g.round_threads = g.vain_rounds = g.vain_nanoseconds = 0;
}

void spin(ThreadState& state, const char* at, uint64_t value, uint32_t site) {
  Thread& th = self(state);
  if (th.spin_at == at && th.spin_value != value) progress();
  note_vain_poll(th);
  th.spin_at = at;
  th.spin_value = value;
  th.wait_site = site;
  th.wait = Wait::kSpin;
  idle_turn(th);
  yield(th);
  th.wait = Wait::kNothing;
}

void atomic_done(ThreadState& state, const char* at, bool changed, uint32_t site) {
  if (changed) progress();
  Thread& th = self(state);
  th.spin_at = at;
  th.spin_value = 0;
  th.wait_site = site;
  th.wait = Wait::kSpin;
  if (!changed) {
    note_vain_poll(th);
    idle_turn(th);
  }
  yield(th);
  th.wait = Wait::kNothing;
}

uint32_t preempt(ThreadState& state) {
  Thread& th = self(state);
  idle_turn(th);
  yield(th);
  return 1 + random_below(8192);
}

void sleep(ThreadState& state) {
  Thread& th = self(state);
  idle_turn(th);
  yield(th);
}

}  // namespace cuda_on_cpu
