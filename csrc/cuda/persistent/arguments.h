// SPDX-License-Identifier: BSD-3-Clause
// The arguments of the persistent kernels.
#pragma once

#include <cstdint>

#include "common/lstm.h"
#include "cuda/persistent/plan.h"
#include "cuda/recurrence.h"
#include "cuda/status.h"

namespace lstm_fused::cuda {

// The arrays of an LstmBackwardDirection of common/lstm.h, without weights that a recurrence does
// not read: a kernel's arguments take room in the constant bank.
struct BackwardRecurrence {
  const void* w_hh = nullptr;
  const void* w_hr = nullptr;
  const void* c_0 = nullptr;
  const void* gates = nullptr;
  const void* cells = nullptr;
  const void* grad_y = nullptr;
  const void* grad_h_n = nullptr;
  const void* grad_c_n = nullptr;
  const void* grad_cell_states = nullptr;
  void* grad_gates = nullptr;
  void* grad_output = nullptr;
  void* grad_h_0 = nullptr;
  void* grad_c_0 = nullptr;
};

// The fields are as in recurrence.h.
template <typename Recurrence>
struct PersistentArgs {
  int steps, batch, hidden_size, directions;
  const int64_t* lengths;
  const uint8_t* reset_mask;
  Recurrence direction[kMaxDirections];
};
using PersistentForwardArgs = PersistentArgs<ForwardRecurrence>;
using PersistentBackwardArgs = PersistentArgs<BackwardRecurrence>;

// Further arguments of the group kernels; see PersistentPlan.
struct GroupArgs {
  int k_splits, warp_chunks, warp_output_tiles, tiles;
  char* exchange;       // two buffers for each group, as exchange.cuh has them; zero at launch
  uint32_t* abandoned;  // a word for each group, zero at launch: a block of it has stopped waiting
  uint4* failure;       // where the host looks for a WaitFailure
  uint32_t launch;      // number of this launch, for the failure
  uint64_t wait_limit;  // nanoseconds
};

PersistentForwardArgs make_persistent_args(const RecurrenceArgs& args,
                                           const ForwardRecurrence* directions);
PersistentBackwardArgs make_persistent_args(const RecurrenceArgs& args,
                                            const LstmBackwardDirection* directions);

// Lays out the workspace, and clears on the stream what must be zero at launch. `kernel`: its name.
GroupArgs make_group_args(const RecurrenceArgs& args, const PersistentPlan& plan,
                          const char* kernel);

// Copies the lengths into the workspace on the stream: all blocks of a group must read the same
// ones, whatever another stream writes to them meanwhile. Null where there are none.
const int64_t* copy_lengths(const RecurrenceArgs& args, const PersistentPlan& plan);

}  // namespace lstm_fused::cuda
