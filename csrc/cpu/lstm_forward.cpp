// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/lstm_forward.h"

#include <memory>
#include <vector>

#include "cpu/forward_group.h"
#include "cpu/group.h"

namespace lstm_fused::cpu {

void lstm_forward(const LstmForwardArgs& args, const LstmPlan& plan, const Parallel& parallel) {
  check_shape(args.shape);
  const LstmShape& shape = args.shape;
  const KernelTable& table = kernel_table(plan.isa, args.dtype);

  std::vector<PackedWeights> weights;
  pack_weights(args, plan, table, parallel, weights);

  // Take every group through its steps.
  const std::vector<int64_t> lengths = sorted_lengths(*args.layout, shape.batch);
  std::vector<std::unique_ptr<ForwardGroup>> groups;
  for (const Group& group : make_groups(shape, *args.layout, lengths, plan)) {
    groups.push_back(std::make_unique<ForwardGroup>(args, plan, table, weights[group.direction],
                                                    group, lengths));
  }
  parallel.for_each(static_cast<int64_t>(groups.size()) * plan.team, [&](int64_t i) {
    ForwardGroup& group = *groups[i / plan.team];
    group.team().work(static_cast<int>(i % plan.team), group.phases(),
                      [&](int64_t phase, int partition) { group.run(phase, partition); });
  });
  for (const auto& group : groups) group->store_final_states();
}

}  // namespace lstm_fused::cpu
