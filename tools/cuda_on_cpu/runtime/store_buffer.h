// SPDX-License-Identifier: BSD-3-Clause
// Weak memory, shown as values: stores to global memory that other blocks do not see yet. Each
// block has a buffer, which its own threads see through. A store leaves it
//   - before all later ones to the same bytes, in program order;
//   - if strong, of device scope, after a random time of its own;
//   - if weak, when a thread that it is ordered before releases or fences, or when the grid ends.
#pragma once

#include <cstdint>
#include <map>
#include <queue>
#include <unordered_map>
#include <vector>

#include "machine.h"
#include "race.h"

namespace cuda_on_cpu {

class StoreBuffers {
 public:
  static StoreBuffers* create();
  static void destroy(StoreBuffers* buffers);

  // Each element of `element` bytes is a store of its own. Returns false, and holds nothing, where
  // the memory is not global.
  bool hold(const Thread& th, char* at, const char* words, uint32_t bytes, uint32_t element,
            bool is_strong);
  // What the thread's block reads there: the memory itself, or a copy in `copy`, of 16 bytes.
  const char* view(const Thread& th, const char* at, uint32_t bytes, char* copy) const;
  // Delivers what is ordered before the thread's present.
  void release(const Thread& th);
  // Delivers what the write releases, and, before an atomic operation, which acts on memory, what
  // the thread's block has stored there.
  void before_write(const Thread& th, const char* at, uint32_t bytes, uint32_t kind);
  // Delivers the strong stores whose time has come; to be called at every turn.
  void take_turn();
  bool has_strong() const { return !due_.empty(); }
  void deliver_all();

 private:
  struct Held {
    uint64_t address;
    char bytes[8];
    uint8_t size;
    Stamp stamp;
  };
  struct Buffer {
    std::map<uint64_t, Held> stores;                            // by number
    std::unordered_map<uint64_t, std::vector<uint64_t>> words;  // word -> stores that touch it
  };
  struct Due {
    uint64_t turn, number;
    uint32_t block;
    bool operator<(const Due& other) const { return turn > other.turn; }
  };

  void settle(const Thread& th, const char* at, uint32_t bytes);
  void deliver(Buffer& buffer, uint64_t number);

  std::unordered_map<uint32_t, Buffer> buffers_;  // by block
  std::priority_queue<Due> due_;                  // of strong stores, delivered ones among them
  uint64_t turn_ = 0, stores_ = 0;
};

}  // namespace cuda_on_cpu
