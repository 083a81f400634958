// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/gradients/layer_backward.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "cpu/gradients/input_gradient.h"
#include "cpu/gradients/lstm_backward.h"
#include "cpu/gradients/rebuild_gates.h"
#include "cpu/gradients/weight_gradient.h"
#include "cpu/kernels/option_kernels.h"
#include "cpu/rows.h"
#include "cpu/runtime/row_chunks.h"

namespace lstm_fused::cpu {
namespace {

class LayerBackward {
 public:
  LayerBackward(const LayerBackwardArgs& args, const LayerBackwardPlan& plan,
                const Parallel& parallel);
  void run();

 private:
  struct Direction {
    Buffer grad_gates, grad_output, cell_output;  // a piece's
    Buffer grad_recurrent;                        // a piece's, with norms
    Buffer recurrent_inputs;  // (M, P), with options that change h_prev on its way
    RowPointers h_prev, grad_gates_rows, grad_output_rows, cell_output_rows;  // of all data rows
    RowPointers grad_recurrent_rows;
    WeightGradientArgs gate_weights, recurrent_weights, output_projection;
    std::optional<WeightGradient> gate_weights_gradient, recurrent_weights_gradient,
        output_projection_gradient;
  };
  struct Range {
    int64_t begin, end;  // rows of data
    int64_t size() const { return end - begin; }
  };

  LstmBackwardArgs recurrence_args() const;
  LstmGatesArgs gates_args() const;
  InputGradientArgs input_args() const;
  void prepare_direction(int d);
  void prepare_weights(int d);
  void prepare_recurrent_inputs(int d);
  void separate_recurrent_weights(int d);
  bool has_norms(int d) const { return args_.direction[d].recurrence.options.cell_norm; }
  RowPointers piece_rows(const Buffer& buffer, int64_t columns) const;

  // The rows of a direction's i-th piece: direction 0 begins at the end of time.
  Range rows_of(int d, int64_t i) const;
  int64_t steps_of(int d, int64_t i) const;
  Range range_of_piece(int64_t piece) const;
  void run_recurrence(int64_t i);
  void compute_cell_output(int d, const Range& rows, const void* gates);
  void run_partition(int64_t i, int64_t partition);
  void run_input_gradient(int64_t i, int64_t partition) const;

  const LayerBackwardArgs& args_;
  const LstmShape& shape_;
  const Parallel& parallel_;
  const LayerBackwardPlan plan_;
  const KernelTable& table_;
  const int64_t storage_;  // bytes of an element
  const int64_t steps_, pieces_;
  const int64_t piece_rows_;  // of the first piece; the last may have fewer
  const LstmBackwardArgs recurrence_args_;
  const LstmGatesArgs gates_args_;
  const InputGradientArgs input_args_;
  const std::vector<char> zeros_;  // a state
  Parallel pool_;                  // what follows the recurrence has a partition for each thread
  LstmBackward recurrence_;
  std::optional<GateRebuilder> gates_;
  std::optional<InputGradient> input_gradient_;
  RowPointers x_rows_;
  Direction directions_[kMaxDirections];
};

LayerBackward::LayerBackward(const LayerBackwardArgs& args, const LayerBackwardPlan& plan,
                             const Parallel& parallel)
    : args_(args),
      shape_(args.shape),
      parallel_(parallel),
      plan_(plan),
      table_(kernel_table(plan.recurrence.isa, args.dtype)),
      storage_(dtype_size(args.dtype)),
      steps_(plan.piece_steps),
      pieces_(std::max<int64_t>(ceil_div(args.shape.steps, steps_), 1)),
      piece_rows_(range_of_piece(0).size()),
      recurrence_args_(recurrence_args()),
      gates_args_(gates_args()),
      input_args_(input_args()),
      zeros_(args.shape.output_size * storage_),
      recurrence_(recurrence_args_, plan.recurrence, parallel) {
  if (plan.gradient_threads > 1) pool_ = parallel;
  if (!args.direction[0].recurrence.gates) {
    gates_.emplace(gates_args_, plan.forward, parallel);
  }
  if (args.grad_x) {
    input_gradient_.emplace(input_args_, plan.recurrence.isa, plan.recurrence.unpacked, parallel);
  }
  x_rows_ = data_rows(*args.layout, shape_.batch, args.x, shape_.input_size * storage_);
  for (int d = 0; d < shape_.directions; ++d) prepare_direction(d);
}

LstmBackwardArgs LayerBackward::recurrence_args() const {
  LstmBackwardArgs out;
  out.shape = shape_;
  out.dtype = args_.dtype;
  out.layout = args_.layout;
  out.reset_mask = args_.reset_mask;
  out.options = args_.options;
  for (int d = 0; d < shape_.directions; ++d) {
    out.direction[d] = args_.direction[d].recurrence;
    if (has_norms(d)) out.direction[d].grad_options.bias = args_.direction[d].grad_b_ih;
  }
  return out;
}

LstmGatesArgs LayerBackward::gates_args() const {
  LstmGatesArgs out;
  out.shape = shape_;
  out.dtype = args_.dtype;
  out.layout = args_.layout;
  out.x = args_.x;
  out.reset_mask = args_.reset_mask;
  for (int d = 0; d < shape_.directions; ++d) {
    const LayerBackwardDirection& from = args_.direction[d];
    out.direction[d] = {from.recurrence.weights, from.h_0, from.y, nullptr};
  }
  return out;
}

InputGradientArgs LayerBackward::input_args() const {
  InputGradientArgs out = {shape_, args_.dtype, args_.layout, {}, {}, args_.grad_x};
  for (int d = 0; d < shape_.directions; ++d) {
    out.w_ih[d] = args_.direction[d].recurrence.weights.w_ih;
  }
  return out;
}

// Where each row of data stands in a piece's buffer, (piece_rows_, columns) storage.
RowPointers LayerBackward::piece_rows(const Buffer& buffer, int64_t columns) const {
  RowPointers rows;
  rows.reserve(args_.layout->data_rows());
  for (int64_t piece = 0; piece < pieces_; ++piece) {
    const int64_t size = range_of_piece(piece).size();
    for (int64_t i = 0; i < size; ++i) rows.push_back(advance(buffer.get(), i * columns, storage_));
  }
  return rows;
}

void LayerBackward::prepare_direction(int d) {
  Direction& direction = directions_[d];
  direction.grad_gates = Buffer(piece_rows_ * kGates * shape_.hidden_size * storage_);
  if (shape_.projection) {
    direction.grad_output = Buffer(piece_rows_ * shape_.output_size * storage_);
  }
  if (has_norms(d)) {
    direction.grad_recurrent = Buffer(piece_rows_ * kGates * shape_.hidden_size * storage_);
  }
  if (args_.direction[d].grad_w_hh) prepare_weights(d);
}

void LayerBackward::prepare_weights(int d) {
  const LayerBackwardDirection& out = args_.direction[d];
  Direction& direction = directions_[d];
  const int64_t gates = kGates * shape_.hidden_size, rows = args_.layout->data_rows();

  direction.h_prev = h_prev_rows(gates_args_, d, zeros_.data());
  if (args_.options) prepare_recurrent_inputs(d);
  direction.grad_gates_rows = piece_rows(direction.grad_gates, gates);
  direction.gate_weights = {args_.dtype,
                            rows,
                            direction.grad_gates_rows.data(),
                            gates,
                            {{x_rows_.data(), shape_.input_size, out.grad_w_ih},
                             {direction.h_prev.data(), shape_.output_size, out.grad_w_hh}},
                            2,
                            {out.grad_b_ih, out.grad_b_hh}};
  if (has_norms(d)) separate_recurrent_weights(d);
  direction.gate_weights_gradient.emplace(direction.gate_weights, plan_.gate_weights);

  if (!shape_.projection) return;
  direction.cell_output = Buffer(piece_rows_ * shape_.hidden_size * storage_);
  direction.grad_output_rows = piece_rows(direction.grad_output, shape_.output_size);
  direction.cell_output_rows = piece_rows(direction.cell_output, shape_.hidden_size);
  direction.output_projection = {
      args_.dtype,
      rows,
      direction.grad_output_rows.data(),
      shape_.output_size,
      {{direction.cell_output_rows.data(), shape_.hidden_size, out.grad_w_hr}, {}},
      1,
      {}};
  direction.output_projection_gradient.emplace(direction.output_projection,
                                               plan_.output_projection);
}

// With norms the products of x and of h have gradients of their own, and the biases those of what
// follows the norms.
void LayerBackward::separate_recurrent_weights(int d) {
  Direction& direction = directions_[d];
  WeightGradientArgs& gates = direction.gate_weights;
  gates.weights = 1;
  gates.grad_bias[0] = gates.grad_bias[1] = nullptr;
  direction.grad_recurrent_rows = piece_rows(direction.grad_recurrent, gates.grad_columns);
  direction.recurrent_weights = gates;
  direction.recurrent_weights.grads = direction.grad_recurrent_rows.data();
  direction.recurrent_weights.weight[0] = gates.weight[1];
  direction.recurrent_weights_gradient.emplace(direction.recurrent_weights, plan_.gate_weights);
}

// h_prev as the recurrent GEMM multiplied it: masked, and what resets put in.
void LayerBackward::prepare_recurrent_inputs(int d) {
  const CellOptionInputs& inputs = args_.direction[d].recurrence.options;
  if (!inputs.h_mask && !inputs.reset_h) return;
  Direction& direction = directions_[d];
  const SequenceLayout& layout = *args_.layout;
  const int64_t output = shape_.output_size;
  direction.recurrent_inputs = Buffer(layout.data_rows() * output * storage_);
  pool_.for_each(shape_.steps, [&](int64_t t) {
    for (int64_t j = 0; j < layout.active[t]; ++j) {
      const int64_t n = layout.batch_row(j), m = layout.step_offset[t] + j;
      const bool reset = args_.reset_mask && args_.reset_mask[t * shape_.batch + n];
      NextStateStep step;
      step.rows = 1;
      step.end = output;
      step.y.base = direction.h_prev[m];
      if (reset && inputs.reset_h) step.y.base = advance(inputs.reset_h, n * output, storage_);
      step.mask.base = advance(inputs.h_mask, n * output, storage_);
      step.storage_out.base = advance(direction.recurrent_inputs.get(), m * output, storage_);
      table_.options->next_state(step);
    }
  });
  direction.h_prev =
      matrix_rows(direction.recurrent_inputs.get(), layout.data_rows(), output * storage_);
}

LayerBackward::Range LayerBackward::range_of_piece(int64_t piece) const {
  const auto offset = [&](int64_t t) {
    return args_.layout->step_offset[std::min(t, shape_.steps)];
  };
  return {offset(piece * steps_), offset((piece + 1) * steps_)};
}

LayerBackward::Range LayerBackward::rows_of(int d, int64_t i) const {
  return range_of_piece(d == 0 ? pieces_ - 1 - i : i);
}

int64_t LayerBackward::steps_of(int d, int64_t i) const {
  const int64_t piece = d == 0 ? pieces_ - 1 - i : i;
  return std::min((piece + 1) * steps_, shape_.steps) - piece * steps_;
}

// o·tanh(c), which W_hr's gradient multiplies.
void LayerBackward::compute_cell_output(int d, const Range& rows, const void* gates) {
  const int64_t hidden = shape_.hidden_size, accumulator = accumulator_size(args_.dtype);
  const void* cells =
      advance(args_.direction[d].recurrence.cells, rows.begin * hidden, accumulator);
  pool_.for_each(rows.size(), [&](int64_t row) {
    table_.cell_output(advance(gates, row * kGates * hidden, storage_),
                       advance(cells, row * hidden, accumulator), 1, hidden,
                       advance(directions_[d].cell_output.get(), row * hidden, storage_));
  });
}

void LayerBackward::run_recurrence(int64_t i) {
  BackwardPiece pieces[kMaxDirections];
  for (int d = 0; d < shape_.directions; ++d) {
    const Range range = rows_of(d, i);
    const Direction& direction = directions_[d];
    void* grad_gates = direction.grad_gates.get();
    const void* gates = grad_gates;
    if (gates_) {
      gates_->run(d, range.begin, range.end, grad_gates, parallel_);
    } else {
      gates = advance(args_.direction[d].recurrence.gates,
                      range.begin * kGates * shape_.hidden_size, storage_);
    }
    // NOTE: ahead of the recurrence, which overwrites gates that were rebuilt.
    if (direction.output_projection_gradient && !args_.options) {
      compute_cell_output(d, range, gates);
    }
    pieces[d] = {steps_of(d, i), range.begin, gates, grad_gates, direction.grad_output.get()};
    if (args_.options) {
      pieces[d].cell_output = direction.cell_output.get();
      pieces[d].grad_recurrent = direction.grad_recurrent.get();
    }
  }
  recurrence_.run(pieces, parallel_);
}

void LayerBackward::run_input_gradient(int64_t i, int64_t partition) const {
  const bool at_once = sums_directions_at_once(shape_, args_.dtype);
  const void* grads[kMaxDirections] = {};
  for (int d = 0; d < shape_.directions; ++d) {
    // Few rows read weights that cost more than they do: each thread reads its own columns.
    const Range rows = rows_of(d, i);
    const int64_t row_partitions = plan_.recurrence.unpacked ? 1 : plan_.gradient_threads;
    const int64_t size = round_up(ceil_div(rows.size(), row_partitions), kMaxMR);
    const int64_t begin = plan_.recurrence.unpacked ? 0 : std::min(partition * size, rows.size());
    const int64_t end = std::min(begin + size, rows.size());
    grads[d] =
        advance(directions_[d].grad_gates.get(), begin * kGates * shape_.hidden_size, storage_);
    if (at_once && d == 0) continue;
    // The other direction was here before; in the middle piece both come at once, 0 first.
    const bool add = !at_once && shape_.directions == 2 && 2 * i + d >= pieces_;
    const int64_t panels = input_gradient_->panels();
    const int64_t first =
        plan_.recurrence.unpacked ? panels * partition / plan_.gradient_threads : 0;
    const int64_t last =
        plan_.recurrence.unpacked ? panels * (partition + 1) / plan_.gradient_threads : panels;
    input_gradient_->run(rows.begin + begin, rows.begin + end, first, last, grads, add);
    grads[d] = nullptr;
  }
}

// A partition of what follows from the gates' gradients of the i-th piece.
void LayerBackward::run_partition(int64_t i, int64_t partition) {
  if (input_gradient_) run_input_gradient(i, partition);
  for (int d = 0; d < shape_.directions; ++d) {
    const Range rows = rows_of(d, i);
    Direction& direction = directions_[d];
    for (auto* gradient : {&direction.gate_weights_gradient, &direction.recurrent_weights_gradient,
                           &direction.output_projection_gradient}) {
      if (!*gradient) continue;
      (*gradient)->add(partition, rows.begin, rows.end);
      if (i + 1 == pieces_) (*gradient)->store(partition);
    }
  }
}

void LayerBackward::run() {
  for (int64_t i = 0; i < pieces_; ++i) {
    run_recurrence(i);
    pool_.for_each(plan_.gradient_threads, [&](int64_t partition) { run_partition(i, partition); });
  }
  for (int d = 0; d < shape_.directions; ++d) {
    const LayerBackwardDirection& out = args_.direction[d];
    if (!has_norms(d) || !out.grad_b_ih) continue;
    std::memcpy(out.grad_b_hh, out.grad_b_ih, kGates * shape_.hidden_size * storage_);
  }
}

}  // namespace

void layer_backward(const LayerBackwardArgs& args, const LayerBackwardPlan& plan,
                    const Parallel& parallel) {
  check_shape(args.shape);
  LayerBackward(args, plan, parallel).run();
}

}  // namespace lstm_fused::cpu
