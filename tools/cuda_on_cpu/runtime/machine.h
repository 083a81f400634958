// SPDX-License-Identifier: BSD-3-Clause
// The emulated device at work: grids, blocks, warps and threads, and who runs next.
//
// One grid runs at a time, on one host thread. Each CUDA thread is a fiber; a fiber runs until it
// waits, and the next one is then chosen at random (the seed decides), warp by warp. Blocks become
// resident up to the capacity of the device, and no block beyond that starts before another ends.
// A resident block may start late: as on a GPU, nothing promises that it runs before it is needed.
#pragma once

#include <driver_types.h>

#include <boost/context/detail/fcontext.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernel_api.h"

namespace cuda_on_cpu {

struct Block;
struct Warp;
struct Clock;
struct RaceBlock;
class RaceChecker;
class Statistics;
class StoreBuffers;

enum class Wait { kNothing, kBarrier, kWarp, kSpin };

struct AsyncCopy {
  char* to;
  const char* from;
  uint32_t bytes, from_bytes, site;
};

struct Thread : ThreadState {
  boost::context::detail::fcontext_t context = nullptr;
  Block* block = nullptr;
  uint32_t index = 0;  // in the block
  Wait wait = Wait::kNothing;
  uint32_t wait_site = 0, wait_barrier = 0;
  const char* spin_at = nullptr;
  uint64_t spin_value = 0;
  // How often it polled in vain since the progress of that number, and the last round to count it.
  uint64_t progress_seen = 0, round_counted = 0;
  uint32_t vain_polls = 0;
  uint32_t true_count = 0, arrived = 0;  // of the last barrier with a predicate
  char* stack_low = nullptr;
  char* stack_top = nullptr;
  Clock* clock = nullptr;                      // the race checker's
  std::vector<std::vector<AsyncCopy>> copies;  // committed groups, and the open one last
};

// The values that lanes of a warp exchange as they synchronise. Two exchanges alternate: a lane may
// reach the next collective before another has read the results of this one.
struct Exchange {
  alignas(16) char in[32][48];
  alignas(16) char out[32][16];
};
using Collective = void (*)(Exchange& exchange, uint32_t lanes, uint32_t argument);

// One collective of the lanes of `mask`, over and over.
struct WarpSync {
  uint32_t mask = 0, arrived = 0, phase = 0, argument = 0;
  const char* what = nullptr;
  Collective compute = nullptr;
  Exchange exchanges[2];
};

struct Warp {
  Block* block = nullptr;
  uint32_t index = 0;
  uint32_t live = 0, ready = 0;  // lanes
  bool is_queued = false;
  std::vector<std::unique_ptr<WarpSync>> syncs;  // one for each mask
};

struct Barrier {
  uint32_t threads = 0;  // kWholeBlock or a count; 0 while nobody has arrived
  uint32_t arrived = 0, true_count = 0;
  std::vector<Thread*> waiting;
};

constexpr uint32_t kBarriers = 16;

struct Block {
  Dim3 id;
  uint32_t index = 0;  // in the grid
  uint32_t live = 0;   // threads
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barriers[kBarriers];
  char* stacks = nullptr;
  std::unique_ptr<char[]> shared;
  RaceBlock* race = nullptr;
  int64_t strong_stores = 0;  // to global memory
  bool is_stalled = false;    // by the setting stall_block
};

struct Launch {
  const Module* module;
  const KernelInfo* kernel;
  Dim3 grid, block;
  uint32_t dynamic_shared_bytes;
  uint32_t capacity;  // blocks that are resident together
  const char* parameters;
};

struct Failure {
  cudaError_t status = cudaSuccess;
  std::string text;
};

struct Grid {
  explicit Grid(const Launch& launch);
  ~Grid();
  Failure run();
  uint64_t nanoseconds() const { return switches + idle_nanoseconds; }

  Launch launch;
  std::string name;  // of the kernel, demangled: on a fiber there is no room to do it
  std::vector<Span> spans;
  std::vector<uint64_t> block_counts;
  std::vector<std::unique_ptr<Block>> blocks;  // started and not yet ended
  std::vector<Warp*> queue;                    // warps with ready lanes, but for the current one
  std::vector<uint32_t> order;                 // in which blocks start
  uint32_t next_block = 0, ended_blocks = 0, stalled_blocks = 0;
  std::unique_ptr<Block> last_ended;  // its last thread's stack is in use until another runs
  Thread* current = nullptr;
  Warp* current_warp = nullptr;
  uint32_t last_lane = 0;
  int budget = 0;
  Thread host;
  Failure failure;
  uint64_t random;
  uint64_t switches = 0;
  uint64_t idle_turns = 0;       // spins and preemptions since anything last changed
  uint64_t progress_number = 0;  // how often anything changed
  uint64_t runnable = 0;         // threads that do not wait at a barrier or for lanes
  // A round is over when all of those have polled in vain. Rounds are numbered from 1.
  uint64_t round = 1, round_threads = 0;
  uint64_t vain_rounds = 0, vain_nanoseconds = 0;  // since anything last changed
  uint64_t idle_nanoseconds = 0;                   // of all rounds
  uint64_t stack_bytes;
  alignas(128) char workspace[256] = {};
  RaceChecker* race = nullptr;
  Statistics* statistics = nullptr;
  StoreBuffers* stores = nullptr;
};

// The grid that is running; null between launches.
extern Grid* grid;

inline Thread& self(ThreadState& th) { return static_cast<Thread&>(th); }
void progress();

uint32_t random_below(uint32_t end);
// Waits until another thread calls resume.
void suspend(Thread& th);
void resume(Thread& th);
// Lets others run.
void yield(Thread& th);
void make_ready(Thread& th);
bool start_block();
// Stops the thread's block for good. The grid ends, without an error, once all others have.
[[noreturn]] void stall_block(Thread& th);

// Ends the grid with an error: the fiber that calls it is left where it is.
[[noreturn]] void abandon(cudaError_t status, const std::string& text);
// The text is preceded by the kernel, block and thread.
[[noreturn]] void fail(ThreadState& th, cudaError_t status, const std::string& what);
[[noreturn]] void fail(ThreadState& th, cudaError_t status, const std::string& what, uint32_t site);
std::string site_text(uint32_t site);
// Whether a valid address is not of the block's shared memory, nor of its threads' stacks.
bool is_global(const Thread& th, const char* at);
std::string describe_deadlock(const char* why);

// Called as a thread ends: those that wait for the live ones alone may go on.
void leave_warp_syncs(Thread& th);
void leave_barriers(Thread& th);

// Synchronises the lanes of `mask`; the last one to arrive calls `compute`, if any, on the values
// of all. Returns their exchange.
Exchange& exchange_lanes(ThreadState& th, uint32_t mask, const char* what, const void* in,
                         uint32_t bytes, Collective compute, uint32_t argument, uint32_t site);

}  // namespace cuda_on_cpu
