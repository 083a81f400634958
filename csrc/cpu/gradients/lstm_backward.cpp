// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/gradients/lstm_backward.h"

#include <cstring>

#include "cpu/group.h"

namespace lstm_fused::cpu {
namespace {

// Rows (or MutableRows) from row j on.
template <typename View>
View skip_rows(const View& rows, int64_t j, int64_t size) {
  if (!rows.base) return {};
  if (rows.order) return {rows.base, rows.stride, rows.order + j};
  return {advance(rows.base, j * rows.stride, size), rows.stride, nullptr};
}

Resets skip_rows(const Resets& resets, int64_t j) {
  if (!resets.flags) return {};
  if (resets.order) return {resets.flags, resets.order + j, resets.limit - j};
  return {resets.flags + j, nullptr, resets.limit - j};
}

}  // namespace

// Backpropagation through time of one group. Step k reads the gate gradients of the step before it,
// which is the later one in time, from one buffer of operand rows and writes its own to the other.
class BackwardGroup {
 public:
  BackwardGroup(const LstmBackwardArgs& args, const LstmPlan& plan, const KernelTable& table,
                const BackwardWeights& weights, const Group& group);

  // Phases of the steps before `steps`; the last one of all is for the gradients of h_0.
  int64_t phases(int64_t steps) const {
    const bool is_end = steps == args_.shape.steps;
    return is_end ? group_.steps * phases_per_step_ + 1 : steps * phases_per_step_;
  }
  int direction() const { return group_.direction; }
  void begin_piece(const BackwardPiece& piece) { piece_ = piece; }
  void run(int64_t phase, int partition);
  void store_initial_gradients(const std::vector<int64_t>& lengths) const;
  Team& team() { return team_; }

 private:
  int64_t time(int64_t k) const { return group_.direction == 0 ? group_.steps - 1 - k : k; }
  // Rows of step k that step k - 1, the next in time, had too; the others end with step k.
  int64_t rows_with_later_step(int64_t k) const {
    return k == 0 ? 0 : std::min(group_.active(time(k - 1)), group_.active(time(k)));
  }
  // Rows of step k that step k + 1, the one before in time, has too; the others begin with step k.
  int64_t rows_with_earlier_step(int64_t k) const {
    return k + 1 == group_.steps ? 0 : std::min(group_.active(time(k + 1)), group_.active(time(k)));
  }
  int64_t panel_of(int partition, int64_t panels) const { return panels * partition / plan_.team; }

  void run_initial_gradients(int64_t k, int partition);
  void run_output_gradients(int64_t k, int partition);
  void run_cells(int64_t k, int partition);
  Product recurrent_gemm(int64_t k, int64_t row) const;
  Product product_with(const Buffer& operands, int64_t stride, int64_t row, int64_t size,
                       const PanelMatrix& packed, const void* weights, int64_t columns) const;
  // The group's rows of step t within those of the piece.
  template <typename View, typename Pointer>
  View piece_rows(Pointer base, int64_t stride, int64_t t) const {
    return group_.data_rows<View>(base, stride, storage_, t, piece_.first_row);
  }
  Rows grad_y_rows(int64_t t) const {
    return group_.sequence_rows<Rows>(
        direction_.grad_y, args_.shape.directions * args_.shape.output_size, storage_, t);
  }
  Rows grad_h_n_rows() const {
    return group_.batch_rows<Rows>(direction_.grad_h_n, args_.shape.output_size, storage_);
  }

  const LstmBackwardArgs& args_;
  const LstmBackwardDirection& direction_;
  const LstmPlan& plan_;
  const KernelTable& table_;
  const BackwardWeights& weights_;
  const Group group_;
  BackwardPiece piece_;
  const int64_t storage_, accumulator_, operand_;  // bytes of an element
  const int64_t gates_stride_, output_stride_;
  const int phases_per_step_;
  Buffer grad_gates_[2];  // (rows, 4H) operand
  Buffer grad_output_;    // (rows, P) operand, with output projection
  Buffer dc_;             // (rows, H) accumulator
  Buffer c_0_;            // (rows, H) accumulator
  Team team_;
};

BackwardGroup::BackwardGroup(const LstmBackwardArgs& args, const LstmPlan& plan,
                             const KernelTable& table, const BackwardWeights& weights,
                             const Group& group)
    : args_(args),
      direction_(args.direction[group.direction]),
      plan_(plan),
      table_(table),
      weights_(weights),
      group_(group),
      storage_(dtype_size(args.dtype)),
      accumulator_(accumulator_size(args.dtype)),
      operand_(table.operand_size),
      gates_stride_(round_up(kGates * args.shape.hidden_size, kCacheLine / operand_)),
      output_stride_(round_up(args.shape.output_size, kCacheLine / operand_)),
      phases_per_step_(args.shape.projection ? 2 : 1),
      team_(plan.team) {
  const LstmShape& shape = args.shape;
  const int64_t rows = group.rows();
  for (Buffer& buffer : grad_gates_) buffer = Buffer(rows * gates_stride_ * operand_);
  if (shape.projection) grad_output_ = Buffer(rows * output_stride_ * operand_);
  dc_ = Buffer(rows * shape.hidden_size * accumulator_);
  c_0_ = Buffer(rows * shape.hidden_size * accumulator_);
  for (int64_t j = 0; j < rows; ++j) {
    const int64_t n = group_.batch_row(j);
    void* dc = advance(dc_.get(), j * shape.hidden_size, accumulator_);
    if (direction_.grad_c_n) {
      table.storage_to_accumulator(advance(direction_.grad_c_n, n * shape.hidden_size, storage_),
                                   shape.hidden_size, dc);
    } else {
      std::memset(dc, 0, shape.hidden_size * accumulator_);
    }
    table.storage_to_accumulator(advance(direction_.c_0, n * shape.hidden_size, storage_),
                                 shape.hidden_size,
                                 advance(c_0_.get(), j * shape.hidden_size, accumulator_));
  }
}

void BackwardGroup::run(int64_t phase, int partition) {
  const int64_t k = phase / phases_per_step_;
  if (phase % phases_per_step_ == 0 && k > 0) run_initial_gradients(k - 1, partition);
  if (k == group_.steps) return;
  if (phases_per_step_ == 2 && phase % 2 == 0) {
    run_output_gradients(k, partition);
  } else {
    run_cells(k, partition);
  }
}

// The recurrent GEMM, d(pre-activations)·W_hh: what step k - 1 sends back to h, for rows from `row`
// on.
Product BackwardGroup::recurrent_gemm(int64_t k, int64_t row) const {
  return product_with(grad_gates_[k % 2], gates_stride_, row, kGates * args_.shape.hidden_size,
                      weights_.w_hh, direction_.weights.w_hh, args_.shape.output_size);
}

// Rows of operands from `row` on times weights (size, columns), packed or as they are.
Product BackwardGroup::product_with(const Buffer& operands, int64_t stride, int64_t row,
                                    int64_t size, const PanelMatrix& packed, const void* weights,
                                    int64_t columns) const {
  Product product;
  product.operand = {advance(operands.get(), row * stride, operand_), stride, nullptr};
  product.size = size;
  if (plan_.unpacked) {
    product.matrix = weights;
    product.matrix_columns = columns;
  } else {
    product.panels = packed.data.get();
  }
  return product;
}

// Gradients of h_0 of the rows whose first step was k.
void BackwardGroup::run_initial_gradients(int64_t k, int partition) {
  const int64_t row = rows_with_earlier_step(k);
  LinearStep step;
  step.rows = group_.active(time(k)) - row;
  if (!direction_.grad_h_0 || step.rows <= 0) return;
  step.columns = args_.shape.output_size;
  const int64_t panels = ceil_div(step.columns, table_.nr());
  step.panel_begin = panel_of(partition, panels);
  step.panel_end = panel_of(partition + 1, panels);
  step.product = recurrent_gemm(k + 1, row);
  step.out = skip_rows(
      group_.batch_rows<MutableRows>(direction_.grad_h_0, args_.shape.output_size, storage_), row,
      storage_);
  table_.linear_step(step);
}

// With output projection: the whole gradient of the projected h.
void BackwardGroup::run_output_gradients(int64_t k, int partition) {
  const LstmShape& shape = args_.shape;
  const int64_t t = time(k);
  const int64_t bounds[] = {0, rows_with_later_step(k), group_.active(t)};
  for (int part = 0; part < 2; ++part) {
    const int64_t row = bounds[part];
    LinearStep step;
    step.rows = bounds[part + 1] - row;
    if (step.rows <= 0) continue;
    step.columns = shape.output_size;
    const int64_t panels = ceil_div(shape.output_size, table_.nr());
    step.panel_begin = panel_of(partition, panels);
    step.panel_end = panel_of(partition + 1, panels);
    step.addends[0] = skip_rows(grad_y_rows(t), row, storage_);
    if (part == 0) {
      step.product = recurrent_gemm(k, row);
    } else {
      step.addends[1] = skip_rows(grad_h_n_rows(), row, storage_);
    }
    step.out =
        skip_rows(piece_rows<MutableRows>(piece_.grad_output, shape.output_size, t), row, storage_);
    step.operand_out = {advance(grad_output_.get(), row * output_stride_, operand_), output_stride_,
                        nullptr};
    table_.linear_step(step);
  }
}

void BackwardGroup::run_cells(int64_t k, int partition) {
  const LstmShape& shape = args_.shape;
  const int64_t hidden = shape.hidden_size;
  const int64_t t = time(k);
  // Rows differ in two ways: whether a later step sends them a gradient, and whether this is their
  // first step, so that their c_prev is c_0.
  const int64_t later = rows_with_later_step(k), earlier = rows_with_earlier_step(k);
  const int64_t bounds[] = {0, std::min(later, earlier), std::max(later, earlier),
                            group_.active(t)};
  for (int part = 0; part < 3; ++part) {
    const int64_t row = bounds[part];
    BackwardStep step;
    step.rows = bounds[part + 1] - row;
    if (step.rows <= 0) continue;
    step.hidden_size = hidden;
    const int64_t panels = ceil_div(hidden, table_.nr());
    step.panel_begin = panel_of(partition, panels);
    step.panel_end = panel_of(partition + 1, panels);
    step.descending = k % 2;  // serpentine sweep

    // The gradient of h.
    if (shape.projection) {
      step.product = product_with(grad_output_, output_stride_, row, shape.output_size,
                                  weights_.w_hr, direction_.weights.w_hr, hidden);
    } else {
      step.addends[0] = skip_rows(grad_y_rows(t), row, storage_);
      if (row < later) {
        step.product = recurrent_gemm(k, row);
      } else {
        step.addends[1] = skip_rows(grad_h_n_rows(), row, storage_);
      }
    }

    // The cell.
    step.grad_cell_states =
        skip_rows(group_.sequence_rows<Rows>(direction_.grad_cell_states, shape.directions * hidden,
                                             storage_, t),
                  row, storage_);
    step.gates = skip_rows(piece_rows<Rows>(piece_.gates, kGates * hidden, t), row, storage_);
    step.cells = skip_rows(group_.data_rows<Rows>(direction_.cells, hidden, accumulator_, t), row,
                           accumulator_);
    if (row < earlier) {
      step.c_prev =
          skip_rows(group_.data_rows<Rows>(direction_.cells, hidden, accumulator_, time(k + 1)),
                    row, accumulator_);
    } else {
      step.c_prev = {advance(c_0_.get(), row * hidden, accumulator_), hidden, nullptr};
    }
    step.dc = advance(dc_.get(), row * hidden, accumulator_);
    step.grad_gates =
        skip_rows(piece_rows<MutableRows>(piece_.grad_gates, kGates * hidden, t), row, storage_);
    step.operand_out = {advance(grad_gates_[(k + 1) % 2].get(), row * gates_stride_, operand_),
                        gates_stride_, nullptr};
    step.reset = skip_rows(group_.resets(args_.reset_mask, t, group_.active(t)), row);
    table_.backward_step(step);
  }
}

void BackwardGroup::store_initial_gradients(const std::vector<int64_t>& lengths) const {
  const LstmShape& shape = args_.shape;
  for (int64_t j = 0; j < group_.rows(); ++j) {
    const int64_t n = group_.batch_row(j);
    if (direction_.grad_c_0) {
      table_.accumulator_to_storage(advance(dc_.get(), j * shape.hidden_size, accumulator_),
                                    shape.hidden_size,
                                    advance(direction_.grad_c_0, n * shape.hidden_size, storage_));
    }
    // A row without steps hands its final gradient on.
    if (direction_.grad_h_0 && lengths[group_.begin + j] == 0) {
      void* out = advance(direction_.grad_h_0, n * shape.output_size, storage_);
      const int64_t bytes = shape.output_size * storage_;
      if (direction_.grad_h_n) {
        std::memcpy(out, advance(direction_.grad_h_n, n * shape.output_size, storage_), bytes);
      } else {
        std::memset(out, 0, bytes);
      }
    }
  }
}

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
    if (shape.steps > 1 || direction.grad_h_0) {
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
  for (const auto& group : groups_) group->store_initial_gradients(lengths_);
}

void lstm_backward(const LstmBackwardArgs& args, const LstmPlan& plan, const Parallel& parallel) {
  BackwardPiece pieces[kMaxDirections];
  for (int d = 0; d < args.shape.directions; ++d) {
    const LstmBackwardDirection& direction = args.direction[d];
    pieces[d] = {args.shape.steps, 0, direction.gates, direction.grad_gates, direction.grad_output};
  }
  LstmBackward(args, plan, parallel).run(pieces, parallel);
}

}  // namespace lstm_fused::cpu
