// SPDX-License-Identifier: BSD-3-Clause
#include <cxxabi.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "device.h"
#include "machine.h"
#include "race.h"
#include "store_buffer.h"

namespace cuda_on_cpu {

using boost::context::detail::jump_fcontext;
using boost::context::detail::make_fcontext;
using boost::context::detail::transfer_t;

Grid* grid = nullptr;

namespace {

constexpr uint64_t kPage = 4096;
// Blocks that start at once. More start when those all wait: a kernel whose blocks never wait for
// each other does not need the memory of all resident blocks.
constexpr uint32_t kEagerBlocks = 4;
// Lanes that run before another warp does. Long enough for the stacks of a warp to stay in cache.
constexpr int kLeastBudget = 16, kBudgetRange = 112;

// Stacks are kept from launch to launch: fresh pages cost more than all else.
std::multimap<uint64_t, char*> free_stacks;

char* take_stacks(uint64_t bytes) {
  if (const auto found = free_stacks.find(bytes); found != free_stacks.end()) {
    char* stacks = found->second;
    free_stacks.erase(found);
    return stacks;
  }
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, kFlags, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return static_cast<char*>(memory);
}

void give_stacks(char* stacks, uint64_t bytes) {
  constexpr size_t kKept = 64;
  if (free_stacks.size() < kKept) {
    free_stacks.emplace(bytes, stacks);
  } else {
    munmap(stacks, bytes);
  }
}

std::string demangle(const char* mangled) {
  int status = 0;
  const std::unique_ptr<char, decltype(&free)> name(
      abi::__cxa_demangle(mangled, nullptr, nullptr, &status), free);
  return name ? name.get() : mangled;
}

uint32_t thread_count(const Dim3& d) { return d.x * d.y * d.z; }

void switch_to(Thread& next) {
  Thread* const from = grid->current;
  grid->current = &next;
  ++grid->switches;
  const transfer_t arrival = jump_fcontext(next.context, from);
  static_cast<Thread*>(arrival.data)->context = arrival.fctx;
}

// The next ready lane of the current warp after the last one, round the clock.
Thread* take_lane() {
  Warp& warp = *grid->current_warp;
  const uint32_t after = warp.ready & ~((2u << grid->last_lane) - 1);
  const uint32_t lane = static_cast<uint32_t>(__builtin_ctz(after ? after : warp.ready));
  warp.ready &= ~(1u << lane);
  grid->last_lane = lane;
  return &warp.block->threads[warp.index * 32 + lane];
}

void leave_warp() {
  Warp* warp = grid->current_warp;
  grid->current_warp = nullptr;
  if (warp != nullptr && warp->ready != 0 && !warp->is_queued) {
    warp->is_queued = true;
    grid->queue.push_back(warp);
  }
}

// The thread whose turn it is; the host's when the grid has ended or cannot go on.
Thread* next_thread() {
  Grid& g = *grid;
  if (g.stores) g.stores->take_turn();
  if (g.current_warp != nullptr && g.current_warp->ready != 0 && --g.budget > 0) return take_lane();
  leave_warp();
  while (g.queue.empty()) {
    if (start_block()) continue;
    if (g.ended_blocks + g.stalled_blocks < g.order.size()) {
      g.failure = {cudaErrorLaunchTimeout, describe_deadlock("no thread can go on")};
    }
    return &g.host;
  }
  const uint32_t pick = random_below(static_cast<uint32_t>(g.queue.size()));
  std::swap(g.queue[pick], g.queue.back());
  g.current_warp = g.queue.back();
  g.current_warp->is_queued = false;
  g.queue.pop_back();
  g.budget = kLeastBudget + static_cast<int>(random_below(kBudgetRange));
  g.last_lane = random_below(32);
  return take_lane();
}

void end_block(Block& block) {
  Grid& g = *grid;
  ++g.ended_blocks;
  if (g.race) g.race->end_block(block);
  if (g.last_ended) give_stacks(g.last_ended->stacks, g.stack_bytes * g.last_ended->threads.size());
  for (auto& held : g.blocks) {
    if (held.get() != &block) continue;
    g.last_ended = std::move(held);
    held = std::move(g.blocks.back());
    g.blocks.pop_back();
    break;
  }
  if (g.current_warp->block == &block) g.current_warp = nullptr;
}

[[noreturn]] void run_thread(transfer_t arrival) {
  static_cast<Thread*>(arrival.data)->context = arrival.fctx;
  Thread& th = *grid->current;
  grid->launch.kernel->entry(th, grid->launch.parameters);
  progress();
  cp_async_wait(th, 0, true);
  Block& block = *th.block;
  block.warps[th.warp].live &= ~(1u << th.lane);
  --block.live;
  --grid->runnable;
  leave_warp_syncs(th);
  leave_barriers(th);
  if (block.live == 0) end_block(block);
  switch_to(*next_thread());
  __builtin_unreachable();
}

void prepare(Thread& th, Block& block, uint32_t index) {
  const Grid& g = *grid;
  const Dim3& n = g.launch.block;
  th.tid = {index % n.x, index / n.x % n.y, index / (n.x * n.y)};
  th.ctaid = block.id;
  th.ntid = n;
  th.nctaid = g.launch.grid;
  th.lane = index % 32;
  th.warp = index / 32;
  th.index = index;
  th.block = &block;
  th.shared = block.shared.get() + (-reinterpret_cast<uint64_t>(block.shared.get()) & 1023);
  th.shared_bytes = g.launch.kernel->static_shared_bytes + g.launch.dynamic_shared_bytes;
  th.dynamic_shared_bytes = g.launch.dynamic_shared_bytes;
  th.spans = const_cast<Span*>(g.spans.data());
  th.mutation = static_cast<uint32_t>(device().mutation);
  th.mutation_hits = &device().mutation_hits;
  th.holds_stores = g.stores != nullptr;
  th.block_counts = g.statistics ? const_cast<uint64_t*>(g.block_counts.data()) : nullptr;
  th.stack_low = block.stacks + index * g.stack_bytes;
  // Stacks that lie a power of two apart would all share a few cache lines.
  th.stack_top = th.stack_low + g.stack_bytes - index % 31 * 128;
  th.context =
      make_fcontext(th.stack_top, static_cast<size_t>(th.stack_top - th.stack_low), run_thread);
  th.copies.assign(1, {});
  Warp& warp = block.warps[th.warp];
  warp.live |= 1u << th.lane;
  warp.ready |= 1u << th.lane;
}

}  // namespace

Grid::Grid(const Launch& given) : launch(given), name(demangle(given.kernel->name)) {
  spans.assign(given.module->site_count, Span{0, 0});
  block_counts.assign(given.module->block_count, 0);
  random = 0x9e3779b97f4a7c15ull * (device().seed + 1);
  order.resize(thread_count(given.grid));
  for (uint32_t i = 0; i < order.size(); ++i) order[i] = i;
  stack_bytes = (given.kernel->stack_bytes + kPage - 1) / kPage * kPage + kPage;
}

Grid::~Grid() {
  if (last_ended) give_stacks(last_ended->stacks, stack_bytes * last_ended->threads.size());
  for (auto& block : blocks) give_stacks(block->stacks, stack_bytes * block->threads.size());
}

Failure Grid::run() {
  grid = this;
  if (device().seed != 0) {
    for (size_t i = order.size(); i > 1; --i) {
      std::swap(order[i - 1], order[random_below(static_cast<uint32_t>(i))]);
    }
  }
  current = &host;
  for (uint32_t i = 0; i < kEagerBlocks && start_block(); ++i) {
  }
  switch_to(*next_thread());
  if (stores) stores->deliver_all();
  grid = nullptr;
  return failure;
}

bool start_block() {
  Grid& g = *grid;
  if (g.next_block == g.order.size() || g.blocks.size() >= g.launch.capacity) return false;
  auto block = std::make_unique<Block>();
  const Dim3& n = g.launch.grid;
  const uint32_t threads = thread_count(g.launch.block);
  block->index = g.order[g.next_block++];
  block->id = {block->index % n.x, block->index / n.x % n.y, block->index / (n.x * n.y)};
  block->live = threads;
  block->threads.resize(threads);
  g.runnable += threads;
  block->warps.resize((threads + 31) / 32);
  block->stacks = take_stacks(g.stack_bytes * threads);
  const size_t bytes = g.launch.kernel->static_shared_bytes + g.launch.dynamic_shared_bytes;
  const size_t total = bytes + 3 * kSharedBase;
  block->shared.reset(new char[total]);
  memset(block->shared.get(), 0xff, total);
  for (uint32_t i = 0; i < block->warps.size(); ++i) {
    block->warps[i].block = block.get();
    block->warps[i].index = i;
  }
  for (uint32_t i = 0; i < threads; ++i) prepare(block->threads[i], *block, i);
  for (Warp& warp : block->warps) {
    warp.is_queued = true;
    g.queue.push_back(&warp);
  }
  if (g.race) g.race->start_block(*block);
  g.blocks.push_back(std::move(block));
  progress();
  return true;
}

void stall_block(Thread& th) {
  Grid& g = *grid;
  Block& block = *th.block;
  block.is_stalled = true;
  ++g.stalled_blocks;
  for (const Thread& other : block.threads) {
    const bool is_live = block.warps[other.warp].live >> other.lane & 1;
    const bool is_waiting = other.wait == Wait::kBarrier || other.wait == Wait::kWarp;
    g.runnable -= is_live && !is_waiting;
  }
  for (Warp& warp : block.warps) warp.ready = 0;
  const auto is_own = [&block](const Warp* warp) { return warp->block == &block; };
  g.queue.erase(std::remove_if(g.queue.begin(), g.queue.end(), is_own), g.queue.end());
  switch_to(*next_thread());
  __builtin_unreachable();
}

uint32_t random_below(uint32_t end) {
  uint64_t& x = grid->random;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return static_cast<uint32_t>(((x >> 32) * end) >> 32);
}

void suspend(Thread&) {
  --grid->runnable;
  switch_to(*next_thread());
}

void resume(Thread& th) {
  ++grid->runnable;
  th.wait = Wait::kNothing;
  make_ready(th);
}

void yield(Thread& th) {
  make_ready(th);
  Thread* next = next_thread();
  if (next != &th) switch_to(*next);
}

void make_ready(Thread& th) {
  Warp& warp = th.block->warps[th.warp];
  warp.ready |= 1u << th.lane;
  if (&warp != grid->current_warp && !warp.is_queued) {
    warp.is_queued = true;
    grid->queue.push_back(&warp);
  }
}

std::string site_text(uint32_t site) {
  const Site& at = grid->launch.module->sites[site];
  return std::string("PTX line ") + std::to_string(at.line) + ": " + at.text;
}

void abandon(cudaError_t status, const std::string& text) {
  grid->failure = {status, text};
  switch_to(grid->host);
  __builtin_unreachable();
}

void fail(ThreadState& th, cudaError_t status, const std::string& what) {
  const auto place = [](const Dim3& d) {
    return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) +
           ")";
  };
  abandon(status, "kernel " + grid->name + ", block " + place(th.ctaid) + ", thread " +
                      place(th.tid) + ": " + what);
}

void fail(ThreadState& th, cudaError_t status, const std::string& what, uint32_t site) {
  fail(th, status, what + " [" + site_text(site) + "]");
}

}  // namespace cuda_on_cpu
