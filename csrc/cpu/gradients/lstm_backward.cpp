// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/gradients/lstm_backward.h"

#include "cpu/runtime/flush_denormals.h"

namespace lstm_fused::cpu {

LstmBackward::LstmBackward(const LstmBackwardArgs& args, const LstmPlan& plan,
                           const Parallel& parallel)
    : args_(args),
      plan_(plan),
      table_(kernel_table(plan.isa, args.dtype)),
      lengths_(sorted_lengths(*args.layout, args.shape.batch)) {
  check_shape(args.shape);
  const LstmShape& shape = args.shape;

  // Bring the weights into the kernels' layout. A single step does not use W_hh but for h_0.
  Packer packer(table_);
  for (int d = 0; d < shape.directions && !plan_.unpacked; ++d) {
    const LstmBackwardDirection& direction = args.direction[d];
    if (shape.steps > 1 || direction.grad_h_0 || direction.grad_options.reset_h) {
      packer.add_untransposed(direction.weights.w_hh, shape.output_size, kGates * shape.hidden_size,
                              weights_[d].w_hh);
    }
    if (shape.projection) {
      packer.add_untransposed(direction.weights.w_hr, shape.hidden_size, shape.output_size,
                              weights_[d].w_hr);
    }
  }
  packer.run(parallel);

  for (const Group& group : make_groups(shape, *args.layout, lengths_, plan_)) {
    groups_.push_back(
        std::make_unique<BackwardGroup>(args, plan_, table_, weights_[group.direction], group));
  }
}

LstmBackward::~LstmBackward() = default;

void LstmBackward::run(const BackwardPiece (&pieces)[kMaxDirections], const Parallel& parallel) {
  for (int d = 0; d < args_.shape.directions; ++d) steps_done_[d] += pieces[d].steps;
  for (const auto& group : groups_) group->begin_piece(pieces[group->direction()]);
  parallel.for_each(static_cast<int64_t>(groups_.size()) * plan_.team, [&](int64_t i) {
    BackwardGroup& group = *groups_[i / plan_.team];
    group.team().work(static_cast<int>(i % plan_.team),
                      group.phases(steps_done_[group.direction()]),
                      [&](int64_t phase, int partition) { group.run(phase, partition); });
  });
  if (steps_done_[0] < args_.shape.steps) return;
  const FlushDenormals flush;
  for (const auto& group : groups_) group->store_initial_gradients(lengths_);
  if (args_.options) store_parameter_gradients();
}

// NOTE: over the rows in their order, whatever the groups are.
void LstmBackward::store_parameter_gradients() const {
  const int64_t hidden = args_.shape.hidden_size;
  for (int d = 0; d < args_.shape.directions; ++d) {
    const auto store = [&](BackwardGroup::Parameter parameter, int64_t columns, void* out) {
      if (!out) return;
      std::vector<double> sums(columns);  // or as many floats
      for (const auto& group : groups_) {
        if (group->direction() != d) continue;
        group->add_parameter_gradients(parameter, columns, sums.data());
      }
      table_.accumulator_to_storage(sums.data(), columns, out);
    };
    using Parameter = BackwardGroup::Parameter;
    const CellOptionGradients& out = args_.direction[d].grad_options;
    store(Parameter::kPeephole, kPeepholes * hidden, out.peephole);
    store(Parameter::kGains, kNorms * kGates * hidden, out.gains);
    store(Parameter::kCellNorm, 2 * hidden, out.cell_norm);
    store(Parameter::kBias, kGates * hidden, out.bias);
  }
}

void lstm_backward(const LstmBackwardArgs& args, const LstmPlan& plan, const Parallel& parallel) {
  BackwardPiece pieces[kMaxDirections];
  for (int d = 0; d < args.shape.directions; ++d) {
    const LstmBackwardDirection& direction = args.direction[d];
    pieces[d] = {args.shape.steps,      0,      direction.gates, direction.grad_gates,
                 direction.grad_output, nullptr};
  }
  LstmBackward(args, plan, parallel).run(pieces, parallel);
}

}  // namespace lstm_fused::cpu
