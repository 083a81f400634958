// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/gradients/sample_gradients.h"

#include <vector>

#include "cpu/gradients/input_gradient.h"
#include "cpu/gradients/lstm_backward.h"
#include "cpu/gradients/rebuild_gates.h"
#include "cpu/gradients/weight_gradient.h"
#include "cpu/rows.h"
#include "cpu/runtime/scratch.h"

namespace lstm_fused::cpu {
namespace {

class SampleGradients {
 public:
  SampleGradients(const LayerBackwardArgs& args, int64_t samples, const LayerBackwardPlan& plan,
                  const Parallel& parallel);
  void run();

 private:
  // What the gradients of the weights are products of, for all M rows.
  struct Direction {
    Buffer grad_gates;   // (M, 4H) storage
    Buffer grad_output;  // (M, P) storage, with projection
    Buffer cell_output;  // (M, H) storage: o·tanh(c), with projection
  };

  LstmGatesArgs gates_args() const;
  void rebuild_missing_gates();
  void compute_cell_output(int d);
  void run_recurrence();
  void run_input_gradient() const;
  RowPointers by_sample(const RowPointers& rows) const;
  RowPointers rows_by_sample(const Buffer& matrix, int64_t columns) const;
  void sum_weights(int d) const;
  void sum_projection(int d) const;
  void sum(WeightGradientArgs args) const;

  const LayerBackwardArgs& args_;
  const LstmShape& shape_;
  const int64_t samples_;
  const Parallel& parallel_;
  const LayerBackwardPlan& plan_;
  const KernelTable& table_;
  const int64_t storage_;          // bytes of an element
  const int64_t rows_;             // M
  const std::vector<char> zeros_;  // a state
  Direction directions_[kMaxDirections];
  const void* gates_[kMaxDirections] = {};  // (M, 4H) storage, activated
  SampleRows sample_rows_;
};

SampleGradients::SampleGradients(const LayerBackwardArgs& args, int64_t samples,
                                 const LayerBackwardPlan& plan, const Parallel& parallel)
    : args_(args),
      shape_(args.shape),
      samples_(samples),
      parallel_(parallel),
      plan_(plan),
      table_(kernel_table(plan.recurrence.isa, args.dtype)),
      storage_(dtype_size(args.dtype)),
      rows_(args.layout->data_rows()),
      zeros_(args.shape.output_size * storage_),
      sample_rows_(sample_rows(*args.layout, samples)) {
  for (int d = 0; d < shape_.directions; ++d) {
    Direction& direction = directions_[d];
    direction.grad_gates = Buffer(rows_ * kGates * shape_.hidden_size * storage_);
    if (!shape_.projection) continue;
    direction.grad_output = Buffer(rows_ * shape_.output_size * storage_);
    direction.cell_output = Buffer(rows_ * shape_.hidden_size * storage_);
  }
}

LstmGatesArgs SampleGradients::gates_args() const {
  LstmGatesArgs out;
  out.shape = shape_;
  out.dtype = args_.dtype;
  out.layout = args_.layout;
  out.x = args_.x;
  out.reset_mask = args_.reset_mask;
  for (int d = 0; d < shape_.directions; ++d) {
    const LayerBackwardDirection& from = args_.direction[d];
    out.direction[d] = {from.recurrence.weights, from.h_0, from.y, directions_[d].grad_gates.get()};
  }
  return out;
}

// Computes gates that the forward did not save in the memory of their gradients, which the
// recurrence overwrites step by step.
void SampleGradients::rebuild_missing_gates() {
  const bool are_saved = args_.direction[0].recurrence.gates != nullptr;
  for (int d = 0; d < shape_.directions; ++d) {
    gates_[d] = are_saved ? args_.direction[d].recurrence.gates : directions_[d].grad_gates.get();
  }
  if (are_saved) return;
  rebuild_gates(gates_args(), plan_.forward, parallel_);
}

// o·tanh(c), which W_hr's gradient multiplies.
void SampleGradients::compute_cell_output(int d) {
  const int64_t hidden = shape_.hidden_size, accumulator = accumulator_size(args_.dtype);
  parallel_.for_each(rows_, [&](int64_t row) {
    table_.cell_output(advance(gates_[d], row * kGates * hidden, storage_),
                       advance(args_.direction[d].recurrence.cells, row * hidden, accumulator), 1,
                       hidden, advance(directions_[d].cell_output.get(), row * hidden, storage_));
  });
}

void SampleGradients::run_recurrence() {
  LstmBackwardArgs recurrence;
  recurrence.shape = shape_;
  recurrence.dtype = args_.dtype;
  recurrence.layout = args_.layout;
  recurrence.reset_mask = args_.reset_mask;
  for (int d = 0; d < shape_.directions; ++d) {
    recurrence.direction[d] = args_.direction[d].recurrence;
    recurrence.direction[d].gates = gates_[d];
    recurrence.direction[d].grad_gates = directions_[d].grad_gates.get();
    recurrence.direction[d].grad_output = directions_[d].grad_output.get();
  }
  lstm_backward(recurrence, plan_.recurrence, parallel_);
}

void SampleGradients::run_input_gradient() const {
  InputGradientArgs input = {shape_, args_.dtype, args_.layout, {}, {}, args_.grad_x};
  for (int d = 0; d < shape_.directions; ++d) {
    input.grad_gates[d] = directions_[d].grad_gates.get();
    input.w_ih[d] = args_.direction[d].recurrence.weights.w_ih;
  }
  input_gradient(input, plan_.recurrence.isa, parallel_);
}

// The rows of each sample after those of the one before it.
RowPointers SampleGradients::by_sample(const RowPointers& rows) const {
  RowPointers out;
  out.reserve(rows.size());
  for (const int64_t row : sample_rows_.rows) out.push_back(rows[row]);
  return out;
}

RowPointers SampleGradients::rows_by_sample(const Buffer& matrix, int64_t columns) const {
  return by_sample(matrix_rows(matrix.get(), rows_, columns * storage_));
}

void SampleGradients::sum(WeightGradientArgs args) const {
  args.dtype = args_.dtype;
  args.rows = rows_;
  sample_weight_gradients(args, samples_, sample_rows_.first.data(), plan_.recurrence.isa,
                          parallel_);
}

// dW_ih = Σ grad_gatesᵀ·x and dW_hh = Σ grad_gatesᵀ·h_prev; the biases' are Σ grad_gates.
void SampleGradients::sum_weights(int d) const {
  const LayerBackwardDirection& out = args_.direction[d];
  const int64_t gates = kGates * shape_.hidden_size;
  const RowPointers grads = rows_by_sample(directions_[d].grad_gates, gates);
  const RowPointers x =
      by_sample(data_rows(*args_.layout, shape_.batch, args_.x, shape_.input_size * storage_));
  const RowPointers h_prev = by_sample(h_prev_rows(gates_args(), d, zeros_.data()));
  WeightGradientArgs args;
  args.grads = grads.data();
  args.grad_columns = gates;
  args.weight[0] = {x.data(), shape_.input_size, out.grad_w_ih};
  args.weight[1] = {h_prev.data(), shape_.output_size, out.grad_w_hh};
  args.weights = 2;
  args.grad_bias[0] = out.grad_b_ih;
  args.grad_bias[1] = out.grad_b_hh;
  sum(args);
}

// dW_hr = Σ grad_outputᵀ·(o·tanh(c)).
void SampleGradients::sum_projection(int d) const {
  const RowPointers grads = rows_by_sample(directions_[d].grad_output, shape_.output_size);
  const RowPointers operands = rows_by_sample(directions_[d].cell_output, shape_.hidden_size);
  WeightGradientArgs args;
  args.grads = grads.data();
  args.grad_columns = shape_.output_size;
  args.weight[0] = {operands.data(), shape_.hidden_size, args_.direction[d].grad_w_hr};
  sum(args);
}

void SampleGradients::run() {
  rebuild_missing_gates();
  // NOTE: ahead of the recurrence, which overwrites gates that were rebuilt.
  for (int d = 0; d < shape_.directions && shape_.projection; ++d) compute_cell_output(d);
  run_recurrence();
  if (args_.grad_x) run_input_gradient();
  for (int d = 0; d < shape_.directions; ++d) {
    sum_weights(d);
    if (shape_.projection) sum_projection(d);
  }
}

}  // namespace

void sample_gradients(const LayerBackwardArgs& args, int64_t samples, const LayerBackwardPlan& plan,
                      const Parallel& parallel) {
  check_shape(args.shape);
  check_samples(args.shape, samples);
  SampleGradients(args, samples, plan, parallel).run();
}

}  // namespace lstm_fused::cpu
