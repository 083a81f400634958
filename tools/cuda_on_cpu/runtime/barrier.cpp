// SPDX-License-Identifier: BSD-3-Clause
// How threads synchronise: barriers of a block, and collectives of a warp.
#include <cstring>

#include "machine.h"
#include "race.h"

namespace cuda_on_cpu {

namespace {

bool is_complete(const Barrier& barrier, const Block& block) {
  const uint32_t wanted = barrier.threads == kWholeBlock ? block.live : barrier.threads;
  return barrier.threads != 0 && barrier.arrived >= wanted && barrier.arrived != 0;
}

void open_barrier(Barrier& barrier, Block& block, uint32_t id) {
  if (grid->race) grid->race->open_barrier(block, id, barrier.waiting);
  for (Thread* th : barrier.waiting) {
    th->true_count = barrier.true_count;
    th->arrived = barrier.arrived;
    // The one that arrived last has not stopped.
    if (th != grid->current) resume(*th);
  }
  barrier.waiting.clear();
  barrier.threads = barrier.arrived = barrier.true_count = 0;
  progress();
}

void arrive(Thread& th, uint32_t id, uint32_t threads, bool predicate, bool waits, uint32_t site) {
  if (id >= kBarriers) {
    fail(th, cudaErrorLaunchFailure, "barrier " + std::to_string(id) + ", wanted 0 to 15", site);
  }
  if (threads != kWholeBlock && (threads == 0 || threads % 32 != 0)) {
    fail(th, cudaErrorLaunchFailure,
         "a barrier of " + std::to_string(threads) + " threads, wanted a multiple of 32", site);
  }
  Block& block = *th.block;
  Barrier& barrier = block.barriers[id];
  if (barrier.threads != 0 && barrier.threads != threads) {
    fail(th, cudaErrorLaunchFailure,
         "barrier " + std::to_string(id) + " is in use with another thread count", site);
  }
  barrier.threads = threads;
  ++barrier.arrived;
  barrier.true_count += predicate;
  if (grid->race) grid->race->arrive_at_barrier(th, id);
  if (waits) barrier.waiting.push_back(&th);
  if (is_complete(barrier, block)) {
    open_barrier(barrier, block, id);
  } else if (waits) {
    th.wait = Wait::kBarrier;
    th.wait_site = site;
    th.wait_barrier = id;
    suspend(th);
  }
}

WarpSync& warp_sync_of(Warp& warp, uint32_t mask) {
  for (auto& sync : warp.syncs) {
    if (sync->mask == mask) return *sync;
  }
  warp.syncs.push_back(std::make_unique<WarpSync>());
  warp.syncs.back()->mask = mask;
  return *warp.syncs.back();
}

// Lets the lanes that wait at `sync` go on. `here`: the lane that arrived last, which runs already;
// or null.
void complete(WarpSync& sync, Warp& warp, const Thread* here) {
  Exchange& exchange = sync.exchanges[sync.phase];
  if (sync.compute) sync.compute(exchange, sync.arrived, sync.argument);
  if (grid->race && sync.what == nullptr) grid->race->join_lanes(warp, sync.arrived);
  for (uint32_t lanes = sync.arrived; lanes != 0; lanes &= lanes - 1) {
    Thread& th = warp.block->threads[warp.index * 32 + __builtin_ctz(lanes)];
    if (&th != here) resume(th);
  }
  sync.arrived = 0;
  sync.phase ^= 1;
  progress();
}

}  // namespace

void barrier_sync(ThreadState& th, uint32_t id, uint32_t threads, uint32_t site) {
  arrive(self(th), id, threads, false, true, site);
}

void barrier_arrive(ThreadState& th, uint32_t id, uint32_t threads, uint32_t site) {
  arrive(self(th), id, threads, false, false, site);
}

uint32_t barrier_popc(ThreadState& th, uint32_t id, uint32_t threads, bool predicate,
                      uint32_t* arrived, uint32_t site) {
  arrive(self(th), id, threads, predicate, true, site);
  *arrived = self(th).arrived;
  return self(th).true_count;
}

void leave_barriers(Thread& th) {
  for (uint32_t id = 0; id < kBarriers; ++id) {
    Barrier& barrier = th.block->barriers[id];
    if (barrier.threads == kWholeBlock && is_complete(barrier, *th.block)) {
      open_barrier(barrier, *th.block, id);
    }
  }
}

void leave_warp_syncs(Thread& th) {
  Warp& warp = th.block->warps[th.warp];
  for (auto& sync : warp.syncs) {
    if (sync->arrived != 0 && sync->arrived == (sync->mask & warp.live)) {
      complete(*sync, warp, nullptr);
    }
  }
}

Exchange& exchange_lanes(ThreadState& state, uint32_t mask, const char* what, const void* in,
                         uint32_t bytes, Collective compute, uint32_t argument, uint32_t site) {
  Thread& th = self(state);
  Warp& warp = th.block->warps[th.warp];
  if ((mask >> th.lane & 1) == 0) {
    fail(th, cudaErrorLaunchFailure, "the mask leaves out the lane itself", site);
  }
  WarpSync& sync = warp_sync_of(warp, mask);
  if (sync.arrived == 0) {
    sync.what = what;
    sync.compute = compute;
    sync.argument = argument;
  } else if (sync.what != what || sync.argument != argument) {
    fail(th, cudaErrorLaunchFailure, "other lanes of the mask wait at another instruction", site);
  }
  Exchange& exchange = sync.exchanges[sync.phase];
  if (bytes != 0) memcpy(exchange.in[th.lane], in, bytes);
  sync.arrived |= 1u << th.lane;
  if (sync.arrived == (mask & warp.live)) {
    complete(sync, warp, &th);
  } else {
    th.wait = Wait::kWarp;
    th.wait_site = site;
    suspend(th);
  }
  return exchange;
}

void warp_sync(ThreadState& th, uint32_t mask, uint32_t site) {
  exchange_lanes(th, mask, nullptr, nullptr, 0, nullptr, 0, site);
}

uint32_t live_lanes(ThreadState& th) {
  // The hardware decides which lanes run together. One alone is always a right answer, and the
  // hardest for a kernel that expects more.
  return 1u << th.lane;
}

}  // namespace cuda_on_cpu
