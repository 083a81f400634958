// SPDX-License-Identifier: BSD-3-Clause
// What the persistent kernels take, and the functions that launch those of one kind of product,
// each in a file of its own.
#pragma once

#include <cstdint>

#include "cuda/persistent_plan.h"
#include "cuda/recurrence.h"

namespace lstm_fused::cuda {

// All as in recurrence.h.
template <typename Recurrence>
struct PersistentArgs {
  int steps, batch, hidden_size, directions;
  const int64_t* lengths;
  const uint8_t* reset_mask;
  Recurrence direction[kMaxDirections];
};
using PersistentForwardArgs = PersistentArgs<ForwardRecurrence>;
using PersistentBackwardArgs = PersistentArgs<BackwardRecurrence>;

template <typename Recurrence>
PersistentArgs<Recurrence> make_persistent_args(const RecurrenceArgs& args,
                                                const Recurrence* directions) {
  PersistentArgs<Recurrence> result{};
  result.steps = static_cast<int>(args.shape.steps);
  result.batch = static_cast<int>(args.shape.batch);
  result.hidden_size = static_cast<int>(args.shape.hidden_size);
  result.directions = args.shape.directions;
  result.lengths = args.lengths;
  result.reset_mask = args.reset_mask;
  for (int i = 0; i < args.shape.directions; ++i) result.direction[i] = directions[i];
  return result;
}

// Defined in persistent_tile.cuh.
struct Bf16Product;
struct F16Product;
struct Tf32Product;
struct F32Product;

template <typename Product>
void launch_cta_forward(const PersistentForwardArgs& args, const PersistentPlan& plan,
                        cudaStream_t stream);
template <typename Product>
void launch_cta_backward(const PersistentBackwardArgs& args, const PersistentPlan& plan,
                         cudaStream_t stream);

}  // namespace lstm_fused::cuda
