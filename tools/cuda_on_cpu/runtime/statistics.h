// SPDX-License-Identifier: BSD-3-Clause
// What a kernel asks of the memory system: sectors per request, shared-memory wavefronts, bytes,
// and instructions by class.
#pragma once

#include <cstdint>
#include <deque>
#include <unordered_map>
#include <vector>

#include "machine.h"

namespace cuda_on_cpu {

class Statistics {
 public:
  static Statistics* create(Grid& grid);
  // Adds the figures to those of the kernel's earlier launches.
  static void destroy(Statistics* statistics, const Grid& grid);

  void access(const Thread& th, const char* at, uint32_t bytes, uint32_t kind, uint32_t site);

 private:
  // The lanes of a warp reach an instruction one by one: the n-th times of all lanes at a site are
  // one request.
  struct Request {
    uint32_t lanes = 0, bytes = 0;
    uint64_t addresses[32];
  };
  struct Stream {
    bool is_shared = false, is_write = false;
    uint64_t first = 0;  // the number of requests counted and dropped
    uint64_t counts[32] = {};
    std::deque<Request> requests;
  };

  explicit Statistics(const Grid& grid) : grid_(grid) {}
  void count(const Stream& stream, const Request& request);

  const Grid& grid_;
  std::unordered_map<uint64_t, Stream> streams_;  // by site and warp of the grid
  struct Total {
    uint64_t requests = 0, sectors = 0, wavefronts = 0, ideal_wavefronts = 0, bytes = 0;
  } totals_[2][2];  // [is_shared][is_write]
};

}  // namespace cuda_on_cpu
