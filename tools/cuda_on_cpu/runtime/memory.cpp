// SPDX-License-Identifier: BSD-3-Clause
#include "memory.h"

#include <sys/mman.h>

#include "device.h"
#include "machine.h"
#include "race.h"
#include "statistics.h"

namespace cuda_on_cpu {

Memory::Memory() = default;
Memory::~Memory() = default;

void Memory::add(const void* at, uint64_t bytes, const std::string& name, Owner owner) {
  const auto begin = reinterpret_cast<uint64_t>(at);
  Allocation& allocation = allocations_[begin];
  allocation = Allocation();
  allocation.begin = begin;
  allocation.bytes = bytes;
  allocation.name = name;
  allocation.owner = owner;
}

bool Memory::remove(const void* at) {
  return allocations_.erase(reinterpret_cast<uint64_t>(at)) != 0;
}

Allocation* Memory::find(uint64_t address) {
  auto after = allocations_.upper_bound(address);
  // A registered view may lie within a larger allocation: look at those that begin before.
  for (int tries = 0; after != allocations_.begin() && tries < 4; ++tries) {
    --after;
    Allocation& found = after->second;
    if (address - found.begin < found.bytes) return &found;
  }
  return nullptr;
}

std::string Memory::check(uint64_t address, uint64_t bytes) {
  const Allocation* found = find(address);
  if (found != nullptr && bytes <= found->bytes - (address - found->begin)) return "";
  return describe(reinterpret_cast<const void*>(address));
}

std::string Memory::describe(const void* at) {
  const auto address = reinterpret_cast<uint64_t>(at);
  if (const Allocation* found = find(address)) {
    return "'" + found->name + "' + " + std::to_string(address - found->begin) + " of " +
           std::to_string(found->bytes) + " bytes";
  }
  const Allocation* nearest = nullptr;
  uint64_t distance = UINT64_MAX;
  std::string where;
  const auto after = allocations_.upper_bound(address);
  if (after != allocations_.end()) {
    nearest = &after->second;
    distance = nearest->begin - address;
    where = " bytes before '";
  }
  if (after != allocations_.begin()) {
    const Allocation& before = std::prev(after)->second;
    if (address - (before.begin + before.bytes) < distance) {
      nearest = &before;
      distance = address - (before.begin + before.bytes);
      where = " bytes past the end of '";
    }
  }
  if (nearest == nullptr) return "memory of no allocation";
  return std::to_string(distance) + where + nearest->name + "' (" + std::to_string(nearest->bytes) +
         " bytes)";
}

namespace {

std::string hex(uint64_t value) {
  char text[32];
  snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

void check_alignment(ThreadState& th, uint64_t address, uint32_t bytes, uint32_t site,
                     const char* space) {
  if (address % bytes == 0) return;
  std::string what = "misaligned access to " + std::to_string(bytes) + " bytes of " + space +
                     " memory at " + hex(address);
  if (space[0] == 'g') {
    what += ", " + device().memory.describe(reinterpret_cast<const void*>(address));
  }
  fail(th, cudaErrorMisalignedAddress, what, site);
}

bool is_within(const char* begin, const char* end, uint64_t address, uint32_t bytes) {
  const auto first = reinterpret_cast<uint64_t>(begin);
  const auto last = reinterpret_cast<uint64_t>(end);
  return address >= first && address + bytes <= last;
}

}  // namespace

namespace {

// As find_global, at any alignment.
char* find_global_bytes(ThreadState& th, uint64_t address, uint32_t bytes, uint32_t site) {
  Allocation* found = device().memory.find(address);
  if (found != nullptr && bytes <= found->bytes - (address - found->begin)) {
    th.spans[site] = {found->begin, found->bytes};
    return reinterpret_cast<char*>(address);
  }
  char* const at = reinterpret_cast<char*>(address);
  const Grid& g = *grid;
  const bool is_workspace =
      is_within(g.workspace, g.workspace + sizeof g.workspace, address, bytes);
  // Memory of nobody passes where it is not asked for otherwise; null never does.
  if (is_workspace || (found == nullptr && !device().strict_memory && address >= 65536)) return at;
  fail(th, cudaErrorIllegalAddress,
       "out-of-bounds access to " + std::to_string(bytes) + " bytes of global memory at " +
           hex(address) + ", " + device().memory.describe(at),
       site);
}

}  // namespace

char* find_global(ThreadState& th, uint64_t address, uint32_t bytes, uint32_t site) {
  check_alignment(th, address, bytes, site, "global");
  return find_global_bytes(th, address, bytes, site);
}

bool is_global(const Thread& th, const char* at) {
  const auto lies_in = [at](const char* begin, uint64_t bytes) {
    return static_cast<uint64_t>(at - begin) < bytes;
  };
  const Block& block = *th.block;
  return !lies_in(th.shared, kSharedBase + th.shared_bytes) &&
         !lies_in(block.stacks, grid->stack_bytes * block.threads.size());
}

char* find_copy_source(ThreadState& th, uint64_t address, uint32_t taken, uint32_t size,
                       uint32_t site) {
  check_alignment(th, address, size, site, "global");
  const Span span = th.spans[site];
  if (address - span.begin < span.bytes && taken <= span.bytes - (address - span.begin)) {
    return reinterpret_cast<char*>(address);
  }
  return find_global_bytes(th, address, taken, site);
}

char* find_local(ThreadState& state, uint64_t address, uint32_t bytes, uint32_t site) {
  check_alignment(state, address, bytes, site, "local");
  const Thread& th = self(state);
  if (is_within(th.stack_low, th.stack_top, address, bytes)) {
    return reinterpret_cast<char*>(address);
  }
  fail(state, cudaErrorIllegalAddress,
       "out-of-bounds access to " + std::to_string(bytes) + " bytes of local memory at " +
           hex(address),
       site);
}

char* find_generic(ThreadState& state, uint64_t address, uint32_t bytes, uint32_t site) {
  const Thread& th = self(state);
  char* const at = reinterpret_cast<char*>(address);
  const uint64_t offset = address - reinterpret_cast<uint64_t>(th.shared);
  if (offset < kSharedBase + th.shared_bytes) {
    // Check the address as one of shared memory.
    if (offset < kSharedBase || offset + bytes > kSharedBase + th.shared_bytes ||
        offset % bytes != 0) {
      bad_shared(state, offset, bytes, site);
    }
    return at;
  }
  const Launch& launch = grid->launch;
  const char* parameters_end = launch.parameters + launch.kernel->parameter_bytes;
  if (is_within(th.stack_low, th.stack_top, address, bytes) ||
      is_within(launch.parameters, parameters_end, address, bytes)) {
    check_alignment(state, address, bytes, site, "local");
    return at;
  }
  return find_global(state, address, bytes, site);
}

void bad_shared(ThreadState& th, uint64_t address, uint32_t bytes, uint32_t site) {
  const uint64_t offset = address - kSharedBase;
  if (offset < th.shared_bytes && bytes <= th.shared_bytes - offset) {
    check_alignment(th, address, bytes, site, "shared");
  }
  fail(th, cudaErrorIllegalAddress,
       "out-of-bounds access to " + std::to_string(bytes) + " bytes of shared memory at " +
           hex(address) + ", offset " + std::to_string(static_cast<int64_t>(offset)) + " of " +
           std::to_string(th.shared_bytes) + " bytes",
       site);
}

}  // namespace cuda_on_cpu
