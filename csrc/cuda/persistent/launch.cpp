// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/persistent/launch.h"

namespace lstm_fused::cuda {

GroupArgs make_group_args(const PersistentPlan& plan, void* workspace, cudaStream_t stream) {
  // NOTE: the flags of the call before are stale, and the forward's padding in the exchange area
  // must be finite.
  const int64_t bytes = plan.line_tiles > 0 ? plan.flag_bytes : plan.workspace_bytes;
  check_cuda(cudaMemsetAsync(workspace, 0, static_cast<size_t>(bytes), stream), "cudaMemsetAsync");
  GroupArgs group{};
  group.k_splits = kGroupWarps * kWarpUnits / plan.units;
  group.warp_chunks = plan.warp_chunks;
  group.line_tiles = plan.line_tiles;
  group.tiles = plan.group_tiles;
  group.flags = static_cast<uint32_t*>(workspace);
  group.exchange = static_cast<char*>(workspace) + plan.flag_bytes;
  return group;
}

}  // namespace lstm_fused::cuda
