// SPDX-License-Identifier: BSD-3-Clause
// The race checker: two accesses to the same bytes, one of them a write, must be ordered by the PTX
// memory model, or be strong operations on a flag. README.md says what is modelled.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "clocks.h"
#include "machine.h"
#include "memory.h"

namespace cuda_on_cpu {

// What is known of two bytes of memory: the last write, and the reads since. A thread is named by
// block·1024 + index, plus 1; 0 is none.
struct Stamp {
  uint32_t thread = 0;
  uint32_t epoch = 0;
};

Stamp stamp_of(const Thread& th);
// Whether what the stamp stands for happened before the thread's present.
bool is_ordered(const Thread& th, Stamp stamp);

struct Cell {
  Stamp write, read;
  uint32_t write_site = 0, read_site = 0;
  uint8_t write_scope = 0, read_scope = 0;  // kWeak, or the scope of a strong operation plus 1
  uint8_t write_bytes = 0, read_bytes = 0;  // which of the two: a bit each
  bool is_copy_pending = false;             // written by a cp.async that was not waited for
  bool has_more_reads = false;              // kept apart, by the cell's address
};

constexpr uint64_t kCellBytes = 2, kPageCells = 2048;
constexpr uint64_t kWordBytes = 4;  // of a flag; a flag of another size begins one

struct ShadowPage {
  uint64_t launch = 0;  // cells of an earlier launch are void: launches are ordered
  Cell cells[kPageCells];
};

struct RaceBlock {
  std::vector<Clock> clocks;  // of its threads
  std::vector<Cell> shared;   // emptied when the block ends
  Gathering barriers[kBarriers];
};

class RaceChecker {
 public:
  // Without looks at accesses it keeps the clocks alone, for the store buffers.
  static RaceChecker* create(bool checks_accesses);
  static void destroy(RaceChecker* checker);

  void start_block(Block& block);
  void end_block(Block& block);
  void arrive_at_barrier(Thread& th, uint32_t barrier);
  void open_barrier(Block& block, uint32_t barrier, const std::vector<Thread*>& waiting);
  void join_lanes(Warp& warp, uint32_t lanes);
  void fence(Thread& th, uint32_t scope);
  void access(Thread& th, const char* at, uint32_t bytes, uint32_t kind, uint32_t site);
  void start_copy(Thread& th, const AsyncCopy& copy);
  void land_copy(Thread& th, const AsyncCopy& copy);

 private:
  explicit RaceChecker(bool checks_accesses);

  struct Access {
    Thread* th;
    const char* at;
    uint32_t kind, site;
    uint8_t bytes;  // of each cell
  };
  struct Read {
    Stamp stamp;
    uint32_t site;
    uint8_t scope, bytes;
  };
  // What a strong write to a location published.
  struct Publication {
    View device_view, block_view;
    uint32_t block = 0;
  };

  Cell* find_cells(const Thread& th, const char* at);
  void check(const Access& access, Cell& cell, uint64_t name);
  void note_read(const Access& access, Cell& cell, uint64_t name, uint8_t scope);
  void synchronise(Thread& th, const char* at, uint32_t bytes, uint32_t kind);
  void learn(Thread& th, uint64_t word, uint32_t kind);
  void report(const Access& access, const char* what, Stamp other, uint32_t other_site);

  bool checks_accesses_;
  uint64_t launch_;
  std::vector<std::unique_ptr<RaceBlock>> blocks_;
  std::unordered_map<uint64_t, Publication> publications_;
  std::unordered_map<uint64_t, std::vector<Read>> more_reads_;  // by cell address; one per warp
};

}  // namespace cuda_on_cpu
