// SPDX-License-Identifier: BSD-3-Clause
// How the persistent kernels carry out a recurrence: a pure function of the shape, the dtype and
// the device's facts. Free of CUDA's headers.
#pragma once

#include <cstdint>
#include <string>

#include "common/lstm.h"
#include "cuda/device_facts.h"
#include "cuda/persistent/layout.h"

namespace lstm_fused::cuda {

struct PersistentPlan {
  bool group = false;  // blocks in groups that each hold all of W_hh, else each block on its own
  ProductKind product = ProductKind::kFloat32;
  int threads = 0;    // of a block
  int64_t tiles = 0;  // of eight rows, that the batch has
  int chunks = 0;     // one block: of weights in registers, for each lane; one that kernels know
  // A group:
  int group_blocks = 0;          // blocks that share the hidden units
  int groups = 0;                // for each direction, that share the tiles
  int group_tiles = 0;           // of each group but the last
  int units = 0;                 // of each block but the last
  int warp_chunks = 0;           // forward: of weights, for each lane
  int line_tiles = 0;            // backward: tiles of sixteen lines of h, for each warp
  int64_t step_cycles = 0;       // estimated, to compare plans with
  int64_t shared_bytes = 0;      // of a block
  int64_t max_shared_bytes = 0;  // that a block of any plan can have on this device
  int64_t flag_bytes = 0;        // of the workspace, which begins with the flags
  int64_t workspace_bytes = 0;
};

// Whether a persistent kernel can take the call: then `plan` says how, else `why_not` why not.
// Throw Error where check_shape does.
bool can_run_persistent_forward(const LstmShape& shape, DType dtype, bool allow_tf32,
                                const DeviceFacts& facts, PersistentPlan* plan,
                                std::string* why_not);
bool can_run_persistent_backward(const LstmShape& shape, DType dtype, bool allow_tf32,
                                 const DeviceFacts& facts, PersistentPlan* plan,
                                 std::string* why_not);

// The plan in one line.
std::string describe(const PersistentPlan& plan);

}  // namespace lstm_fused::cuda
