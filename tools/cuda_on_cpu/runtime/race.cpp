// SPDX-License-Identifier: BSD-3-Clause
#include "race.h"

#include <set>

#include "control_api.h"
#include "device.h"

namespace cuda_on_cpu {

namespace {

constexpr uint8_t kWeak = 0;

uint8_t scope_of(uint32_t kind) {
  return kind & kStrong ? static_cast<uint8_t>((kind >> kScopeShift) + 1) : kWeak;
}
// Without clusters, the cluster's scope is the block's.
bool is_device_scope(uint8_t scope) { return scope > kCluster + 1; }

struct Found {
  std::set<std::string> known;  // pairs of instructions
  std::string text;
  uint64_t count = 0;
};
Found found;

uint64_t launches = 0;

// Strong operations on a flag do not race with each other, if the scope of both takes in both.
bool may_overlap(const Thread& th, uint8_t scope, Stamp other, uint8_t other_scope) {
  if (scope == kWeak || other_scope == kWeak) return false;
  const bool same_block = (other.thread - 1) / 1024 == th.block->index;
  return same_block || (is_device_scope(scope) && is_device_scope(other_scope));
}

}  // namespace

Stamp stamp_of(const Thread& th) {
  return {th.block->index * 1024 + th.index + 1, th.clock->epoch};
}

bool is_ordered(const Thread& th, Stamp stamp) {
  const uint32_t thread = stamp.thread - 1, block = thread / 1024;
  if (block == th.block->index && thread % 1024 == th.index) return true;
  const BlockEpochs* epochs = find_block(th.clock->view, block);
  return epochs != nullptr && (*epochs)[thread % 1024] >= stamp.epoch;
}

RaceChecker* RaceChecker::create(bool checks_accesses) { return new RaceChecker(checks_accesses); }
void RaceChecker::destroy(RaceChecker* checker) { delete checker; }
RaceChecker::RaceChecker(bool checks_accesses)
    : checks_accesses_(checks_accesses), launch_(++launches) {}

// A thread that starts knows nothing of the others.
void RaceChecker::start_block(Block& block) {
  auto state = std::make_unique<RaceBlock>();
  state->clocks.resize(block.threads.size());
  if (checks_accesses_) {
    state->shared.resize((block.threads[0].shared_bytes + kCellBytes - 1) / kCellBytes);
  }
  for (Thread& th : block.threads) th.clock = &state->clocks[th.index];
  block.race = state.get();
  // The block's shared memory may reuse the addresses of an ended block's flags.
  const auto begin = reinterpret_cast<uint64_t>(block.threads[0].shared);
  for (auto it = publications_.begin(); it != publications_.end();) {
    const bool is_own = it->first - begin < kSharedBase + block.threads[0].shared_bytes;
    it = is_own ? publications_.erase(it) : std::next(it);
  }
  blocks_.push_back(std::move(state));
}

void RaceChecker::end_block(Block& block) { std::vector<Cell>().swap(block.race->shared); }

// ---- What orders threads
// -------------------------------------------------------------------------

void RaceChecker::arrive_at_barrier(Thread& th, uint32_t barrier) {
  Clock& clock = *th.clock;
  th.block->race->barriers[barrier].add(clock, th.index);
  ++clock.epoch;
}

void RaceChecker::open_barrier(Block& block, uint32_t barrier,
                               const std::vector<Thread*>& waiting) {
  RaceBlock& state = *block.race;
  const View all = state.barriers[barrier].result(block.index, block.threads.size());
  state.barriers[barrier].clear();
  for (const Thread* th : waiting) {
    Clock& clock = state.clocks[th->index];
    clock.view = join(all, clock.view);
  }
}

void RaceChecker::join_lanes(Warp& warp, uint32_t lanes) {
  RaceBlock& state = *warp.block->race;
  Gathering gathering;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const uint32_t index = warp.index * 32 + static_cast<uint32_t>(__builtin_ctz(rest));
    gathering.add(state.clocks[index], index);
  }
  const View all = gathering.result(warp.block->index, warp.block->threads.size());
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    Clock& clock = state.clocks[warp.index * 32 + static_cast<uint32_t>(__builtin_ctz(rest))];
    clock.view = all;
    ++clock.epoch;
  }
}

void RaceChecker::fence(Thread& th, uint32_t scope) {
  Clock& clock = *th.clock;
  clock.view = join(clock.view, clock.pending);
  clock.pending = nullptr;
  Gathering own;
  own.add(clock, th.index);
  const View view = own.result(th.block->index, th.block->threads.size());
  clock.fenced_block = view;
  if (is_device_scope(static_cast<uint8_t>(scope + 1))) clock.fenced_device = view;
  ++clock.epoch;
}

// A strong operation: what it publishes to those who read it, and what it learns. Each word of a
// vector is a flag of its own.
void RaceChecker::synchronise(Thread& th, const char* at, uint32_t bytes, uint32_t kind) {
  const auto first = reinterpret_cast<uint64_t>(at);
  if (kind & kRead) {
    for (uint64_t word = first; word < first + bytes; word += kWordBytes) learn(th, word, kind);
  }
  if ((kind & kWrite) == 0) return;
  const bool is_device = is_device_scope(scope_of(kind));
  const uint32_t block = th.block->index;
  Clock& clock = *th.clock;
  View own_device = clock.fenced_device, own_block = clock.fenced_block;
  if (kind & kRelease) {
    Gathering own;
    own.add(clock, th.index);
    own_block = own.result(block, th.block->threads.size());
    if (is_device) own_device = own_block;
    ++clock.epoch;
  }
  for (uint64_t word = first; word < first + bytes; word += kWordBytes) {
    Publication& published = publications_[word];
    // A read-modify-write carries on what it read; any other write ends it.
    if ((kind & kRead) == 0) published = Publication();
    if (is_device) published.device_view = join(published.device_view, own_device);
    if (published.block != block) published.block_view = nullptr;
    published.block = block;
    published.block_view = join(published.block_view, own_block);
  }
}

void RaceChecker::learn(Thread& th, uint64_t word, uint32_t kind) {
  const auto place = publications_.find(word);
  if (place == publications_.end()) return;
  const Publication& published = place->second;
  View learnt;
  if (is_device_scope(scope_of(kind))) learnt = published.device_view;
  if (published.block == th.block->index) learnt = join(learnt, published.block_view);
  Clock& clock = *th.clock;
  View& known = kind & kAcquire ? clock.view : clock.pending;
  known = join(known, learnt);
}

// ---- Accesses
// ------------------------------------------------------------------------------------

Cell* RaceChecker::find_cells(const Thread& th, const char* at) {
  if (!checks_accesses_) return nullptr;
  const uint64_t offset = static_cast<uint64_t>(at - th.shared) - kSharedBase;
  if (offset < th.shared_bytes) {
    return &th.block->race->shared[offset / kCellBytes];
  }
  const auto address = reinterpret_cast<uint64_t>(at);
  Allocation* allocation = device().memory.find(address);
  if (allocation == nullptr) return nullptr;
  constexpr uint64_t kPageBytes = kPageCells * kCellBytes;
  // Pages begin at multiples of their size, so that no access crosses from one to the next.
  const uint64_t page = address / kPageBytes - allocation->begin / kPageBytes;
  if (allocation->shadow.empty()) {
    const uint64_t end = allocation->begin + allocation->bytes - 1;
    allocation->shadow.resize(end / kPageBytes - allocation->begin / kPageBytes + 1);
  }
  auto& shadow = allocation->shadow[page];
  if (!shadow || shadow->launch != launch_) {
    shadow = std::make_unique<ShadowPage>();
    shadow->launch = launch_;
  }
  return &shadow->cells[address % kPageBytes / kCellBytes];
}

void RaceChecker::access(Thread& th, const char* at, uint32_t bytes, uint32_t kind, uint32_t site) {
  const uint64_t first = reinterpret_cast<uint64_t>(at) / kCellBytes;
  const uint32_t odd = reinterpret_cast<uint64_t>(at) % kCellBytes;
  const auto cell_bytes = static_cast<uint8_t>(bytes == 1 ? 1u << odd : 3u);
  const Access access = {&th, at, kind, site, cell_bytes};
  // Memory that nobody registered has no cells; flags in it synchronise all the same.
  if (Cell* cells = find_cells(th, at)) {
    for (uint32_t i = 0; i < (bytes + kCellBytes - 1) / kCellBytes; ++i) {
      check(access, cells[i], first + i);
    }
  }
  if (kind & kStrong) {
    synchronise(th, at, bytes, kind);
  } else if (kind & kWrite && !publications_.empty()) {
    // A weak write to a flag publishes nothing, and hides what was published.
    const auto first_word = reinterpret_cast<uint64_t>(at);
    for (uint32_t i = 0; i < bytes; i += kWordBytes) publications_.erase(first_word + i);
  }
}

void RaceChecker::check(const Access& access, Cell& cell, uint64_t name) {
  const Thread& th = *access.th;
  const uint8_t scope = scope_of(access.kind);
  if (cell.is_copy_pending) {
    report(access, "touches what a cp.async is still writing", cell.write, cell.write_site);
    cell.is_copy_pending = false;
  } else if (cell.write_bytes & access.bytes && !is_ordered(th, cell.write) &&
             !may_overlap(th, scope, cell.write, cell.write_scope)) {
    report(access, access.kind & kWrite ? "writes what is written" : "reads what is written",
           cell.write, cell.write_site);
  }
  if ((access.kind & kWrite) == 0) return note_read(access, cell, name, scope);
  const auto check_read = [&](const Read& read) {
    if (read.bytes & access.bytes && !is_ordered(th, read.stamp) &&
        !may_overlap(th, scope, read.stamp, read.scope)) {
      report(access, "writes what is read", read.stamp, read.site);
    }
  };
  check_read({cell.read, cell.read_site, cell.read_scope, cell.read_bytes});
  if (cell.has_more_reads) {
    for (const Read& read : more_reads_[name]) check_read(read);
    more_reads_.erase(name);
    cell.has_more_reads = false;
  }
  cell.write = stamp_of(th);
  cell.write_site = access.site;
  cell.write_scope = scope;
  cell.write_bytes = access.bytes;
  cell.read = {};
  cell.read_bytes = 0;
}

// Keeps the last read of each warp, unless it is known to be over.
void RaceChecker::note_read(const Access& access, Cell& cell, uint64_t name, uint8_t scope) {
  const Thread& th = *access.th;
  const Stamp stamp = stamp_of(th);
  const auto warp_of = [](Stamp s) { return (s.thread - 1) / 32; };
  const bool replaces =
      cell.read.thread == 0 || warp_of(cell.read) == warp_of(stamp) || is_ordered(th, cell.read);
  if (!replaces) {
    auto& more = more_reads_[name];
    cell.has_more_reads = true;
    const Read old = {cell.read, cell.read_site, cell.read_scope, cell.read_bytes};
    bool is_kept = false;
    for (Read& read : more) {
      if (warp_of(read.stamp) != warp_of(old.stamp)) continue;
      read = old;
      is_kept = true;
      break;
    }
    if (!is_kept) more.push_back(old);
  }
  cell.read = stamp;
  cell.read_site = access.site;
  cell.read_scope = scope;
  cell.read_bytes = access.bytes;
}

// ---- cp.async
// ------------------------------------------------------------------------------------

void RaceChecker::start_copy(Thread& th, const AsyncCopy& copy) {
  Cell* cells = find_cells(th, copy.to);
  if (cells == nullptr) return;
  for (uint32_t i = 0; i < copy.bytes / kCellBytes; ++i) cells[i].is_copy_pending = true;
}

void RaceChecker::land_copy(Thread& th, const AsyncCopy& copy) {
  Cell* cells = find_cells(th, copy.to);
  for (uint32_t i = 0; cells != nullptr && i < copy.bytes / kCellBytes; ++i) {
    if (!cells[i].is_copy_pending) continue;
    cells[i].is_copy_pending = false;
    cells[i].write = stamp_of(th);
    cells[i].write_site = copy.site;
    cells[i].write_scope = kWeak;
    cells[i].write_bytes = 3;
  }
  // The source is read until now.
  if (copy.from_bytes != 0) access(th, copy.from, copy.from_bytes, kRead, copy.site);
}

// ---- Reports
// -------------------------------------------------------------------------------------

void RaceChecker::report(const Access& access, const char* what, Stamp other, uint32_t other_site) {
  ++found.count;
  const Thread& th = *access.th;
  const std::string& kernel = grid->name;
  const std::string pair =
      kernel + std::to_string(access.site) + " " + std::to_string(other_site) + what;
  if (!found.known.insert(pair).second) return;
  const uint64_t offset = static_cast<uint64_t>(access.at - th.shared) - kSharedBase;
  const std::string where = offset < th.shared_bytes ? "shared memory + " + std::to_string(offset)
                                                     : device().memory.describe(access.at);
  const auto place = [](uint32_t block, uint32_t thread) {
    return "block " + std::to_string(block) + " thread " + std::to_string(thread);
  };
  const uint32_t thread = other.thread - 1;
  found.text += "race in " + kernel + " on " + where + ": " + place(th.block->index, th.index) +
                " " + what + " by " + place(thread / 1024, thread % 1024) + ", unordered [" +
                site_text(access.site) + "] [" + site_text(other_site) + "]\n";
}

}  // namespace cuda_on_cpu

const char* emu_races() { return cuda_on_cpu::found.text.c_str(); }
uint64_t emu_race_count() { return cuda_on_cpu::found.count; }
void emu_clear_races() { cuda_on_cpu::found = {}; }
