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
  char* exchange;   // two buffers for each group, for the rows of its tiles
  uint32_t* flags;  // group_flags(blocks) for each group; zero at launch
};

PersistentForwardArgs make_persistent_args(const RecurrenceArgs& args,
                                           const ForwardRecurrence* directions);
PersistentBackwardArgs make_persistent_args(const RecurrenceArgs& args,
                                            const LstmBackwardDirection* directions);

// Lays out workspace (device), and clears what must be zero at launch on the stream.
GroupArgs make_group_args(const PersistentPlan& plan, void* workspace, cudaStream_t stream);

}  // namespace lstm_fused::cuda
