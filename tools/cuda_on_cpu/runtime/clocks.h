// SPDX-License-Identifier: BSD-3-Clause
// Vector clocks of a grid's threads. A full clock has an entry for each thread of the grid; since
// threads of a block mostly agree, clocks are shared, block by block, and copied on write.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace cuda_on_cpu {

// Epochs of the threads of one block.
using BlockEpochs = std::vector<uint32_t>;
using SharedEpochs = std::shared_ptr<const BlockEpochs>;

// What happened before: for each block known of, the epochs seen of its threads, by block number.
using Known = std::vector<std::pair<uint32_t, SharedEpochs>>;
using View = std::shared_ptr<const Known>;

// The epochs of a block in the view, or null.
const BlockEpochs* find_block(const View& view, uint32_t block);
// Either may be null.
View join(const View& a, const View& b);
// The view with one block's epochs replaced.
View with_block(const View& view, uint32_t block, SharedEpochs epochs);

// One thread's knowledge. Its own epoch counts its releases: what it does later is of a later
// epoch.
struct Clock {
  View view;  // of others, and of itself as of its last release
  uint32_t epoch = 1;
  View pending;        // read by strong loads; a fence makes it known
  View fenced_device;  // the thread's own view at its last fence, of device scope
  View fenced_block;   // of block scope
};

// What the threads that arrive at a barrier know together.
struct Gathering {
  std::vector<View> views;                            // distinct ones
  std::vector<std::pair<uint32_t, uint32_t>> epochs;  // thread in the block, epoch

  void add(const Clock& clock, uint32_t index);
  View result(uint32_t block, size_t threads) const;
  void clear();
};

}  // namespace cuda_on_cpu
