// SPDX-License-Identifier: BSD-3-Clause
// cp.async. The data lands when its thread waits for it, and not before: what reads it too early
// reads NaN.
#include <cstring>

#include "machine.h"
#include "race.h"

namespace cuda_on_cpu {

namespace {

void land(Thread& th, const AsyncCopy& copy) {
  memset(copy.to, 0, copy.bytes);
  char seen[16];
  if (copy.from_bytes != 0) {
    const char* from = copy.from;
    if (th.holds_stores) from = seen_words(th, from, copy.from_bytes, seen);
    memcpy(copy.to, from, copy.from_bytes);
  }
  if (grid->race) grid->race->land_copy(th, copy);
}

}  // namespace

void cp_async(ThreadState& state, char* to, const char* from, uint32_t bytes, uint32_t from_bytes,
              uint32_t site) {
  Thread& th = self(state);
  if (from_bytes > bytes) {
    fail(th, cudaErrorLaunchFailure, "cp.async of more bytes than its size", site);
  }
  const AsyncCopy copy = {to, from, bytes, from_bytes, site};
  if (grid->race || grid->statistics) {
    if (from_bytes != 0) on_access(th, from, from_bytes, kRead, site);
    on_access(th, to, bytes, kWrite, site);
  }
  if (grid->race) grid->race->start_copy(th, copy);
  memset(to, 0xff, bytes);
  th.copies.back().push_back(copy);
}

void cp_async_commit(ThreadState& th) { self(th).copies.emplace_back(); }

void cp_async_wait(ThreadState& state, uint32_t groups_left, bool all) {
  auto& groups = self(state).copies;
  const size_t keep = all ? 0 : groups_left + 1;
  while (groups.size() > keep) {
    for (const AsyncCopy& copy : groups.front()) land(self(state), copy);
    groups.erase(groups.begin());
  }
  if (groups.empty()) groups.emplace_back();
}

}  // namespace cuda_on_cpu
