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
  int threads = 0;    // per block
  int64_t tiles = 0;  // tiles of eight rows in the batch
  int chunks = 0;     // one block: a lane's chunks of weights in registers, one of kCtaChunks
  bool full = false;  // one block: H fills the chunks, so that sizes are constants of the kernel
  // Groups of blocks:
  int group_blocks = 0;       // blocks over which a group's hidden units are split
  int groups = 0;             // groups over which a direction's tiles are split
  int group_tiles = 0;        // tiles per group; the last group may have fewer
  int units = 0;              // hidden units per block; the last block may have fewer
  int warp_chunks = 0;        // forward: chunks of weights per lane
  int warp_output_tiles = 0;  // backward: tiles of sixteen units of the gradient of h_prev per warp
  int64_t step_cycles = 0;    // estimated, to compare plans with; 0: one block by tensor cores
  int64_t shared_bytes = 0;   // per block
  int64_t max_shared_bytes = 0;  // what a block of any plan can have on this device
  // The workspace: what is zero at launch, words of all groups and then the exchange area; and the
  // lengths' copy. The latter two begin at these bytes.
  int64_t exchange_begin = 0;
  int64_t lengths_begin = 0;
  int64_t workspace_bytes = 0;
};

// Whether a persistent kernel can take the call, of a cell with options (but for norms) or without:
// then `plan` says how, else `why_not` why not. Throw Error where check_shape does.
bool can_run_persistent_forward(const LstmShape& shape, DType dtype, bool allow_tf32,
                                bool has_options, const DeviceFacts& facts, PersistentPlan* plan,
                                std::string* why_not);
bool can_run_persistent_backward(const LstmShape& shape, DType dtype, bool allow_tf32,
                                 bool has_options, const DeviceFacts& facts, PersistentPlan* plan,
                                 std::string* why_not);

// The plan in one line.
std::string describe(const PersistentPlan& plan);

}  // namespace lstm_fused::cuda
