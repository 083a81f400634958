// SPDX-License-Identifier: BSD-3-Clause
// Threads that wait in a loop, and grids that wait forever.
#include <map>

#include "device.h"
#include "machine.h"

namespace cuda_on_cpu {

namespace {

// Turns without progress after which another resident block starts: a few, so that blocks often run
// while others have not started, which is the order that finds most.
constexpr uint64_t kTurnsBeforeStart = 8;
// Turns without progress after which a grid is stuck: far more than a thread of a grid that works
// waits for its turn, which is drawn at random.
constexpr uint64_t kStuckTurns = 1000000, kStuckTurnsPerThread = 200;

void idle_turn(Thread& th) {
  Grid& g = *grid;
  const uint64_t threads = g.blocks.size() * th.block->threads.size();
  // The waiting threads may wait for a block that has not started.
  if (++g.idle_turns >= kTurnsBeforeStart && start_block()) return;
  if (g.idle_turns < kStuckTurns + kStuckTurnsPerThread * threads) return;
  abandon(cudaErrorLaunchTimeout, describe_deadlock("all that run are waiting in loops"));
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

void spin(ThreadState& state, const char* at, uint64_t value, uint32_t site) {
  Thread& th = self(state);
  if (th.spin_at == at && th.spin_value != value) progress();
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
  if (!changed) idle_turn(th);
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
