// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/persistent/arguments.h"

#include "cuda/persistent/wait_failure.h"

namespace lstm_fused::cuda {
namespace {

template <typename Recurrence>
PersistentArgs<Recurrence> make_args(const RecurrenceArgs& args) {
  PersistentArgs<Recurrence> result{};
  result.steps = static_cast<int>(args.shape.steps);
  result.batch = static_cast<int>(args.shape.batch);
  result.hidden_size = static_cast<int>(args.shape.hidden_size);
  result.directions = args.shape.directions;
  result.lengths = args.lengths;
  result.reset_mask = args.reset_mask;
  return result;
}

}  // namespace

PersistentForwardArgs make_persistent_args(const RecurrenceArgs& args,
                                           const ForwardRecurrence* directions) {
  auto result = make_args<ForwardRecurrence>(args);
  for (int i = 0; i < args.shape.directions; ++i) result.direction[i] = directions[i];
  return result;
}

PersistentBackwardArgs make_persistent_args(const RecurrenceArgs& args,
                                            const LstmBackwardDirection* directions) {
  auto result = make_args<BackwardRecurrence>(args);
  for (int i = 0; i < args.shape.directions; ++i) {
    const LstmBackwardDirection& from = directions[i];
    BackwardRecurrence& to = result.direction[i];
    to.w_hh = from.weights.w_hh;
    to.w_hr = from.weights.w_hr;
    to.c_0 = from.c_0;
    to.gates = from.gates;
    to.cells = from.cells;
    to.grad_y = from.grad_y;
    to.grad_h_n = from.grad_h_n;
    to.grad_c_n = from.grad_c_n;
    to.grad_cell_states = from.grad_cell_states;
    to.grad_gates = from.grad_gates;
    to.grad_output = from.grad_output;
    to.grad_h_0 = from.grad_h_0;
    to.grad_c_0 = from.grad_c_0;
  }
  return result;
}

GroupArgs make_group_args(const RecurrenceArgs& args, const PersistentPlan& plan,
                          const char* kernel) {
  char* const workspace = static_cast<char*>(args.workspace);
  check_cuda(cudaMemsetAsync(workspace, 0, static_cast<size_t>(plan.lengths_begin), args.stream),
             "cudaMemsetAsync");
  const LaunchRecord record = record_launch(kernel, args.shape);
  GroupArgs group{};
  group.k_splits = kGroupWarps * kWarpUnits / plan.units;
  group.warp_chunks = plan.warp_chunks;
  group.warp_output_tiles = plan.warp_output_tiles;
  group.tiles = plan.group_tiles;
  group.abandoned = static_cast<uint32_t*>(args.workspace);
  group.exchange = workspace + plan.exchange_begin;
  group.failure = record.failure;
  group.launch = record.launch;
  group.wait_limit = wait_limit();
  return group;
}

const int64_t* copy_lengths(const RecurrenceArgs& args, const PersistentPlan& plan) {
  if (args.lengths == nullptr) return nullptr;
  void* copy = static_cast<char*>(args.workspace) + plan.lengths_begin;
  check_cuda(
      cudaMemcpyAsync(copy, args.lengths, static_cast<size_t>(args.shape.batch) * sizeof(int64_t),
                      cudaMemcpyDeviceToDevice, args.stream),
      "cudaMemcpyAsync");
  return static_cast<const int64_t*>(copy);
}

}  // namespace lstm_fused::cuda
