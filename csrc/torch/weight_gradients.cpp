// SPDX-License-Identifier: BSD-3-Clause
#include "torch/weight_gradients.h"

#include <torch/csrc/stable/ops.h>

#include "cpu/rows.h"
#include "cpu/scratch.h"
#include "cpu/weight_gradient.h"

namespace lstm_fused {
namespace {

namespace ts = torch::stable;

Tensor direction_of(const Tensor& tensor, int64_t direction) {
  return ts::select(tensor, 0, direction);
}

// x of the data rows, of D features.
cpu::RowPointers input_rows(const Layer& layer) {
  return cpu::data_rows(layer.layout, layer.shape.batch, layer.input.const_data_ptr(),
                        layer.shape.input_size * dtype_size(layer.dtype));
}

// The state that entered each step, of the data rows, of P features; `zeros` are P of them.
cpu::RowPointers previous_states(const Layer& layer, const Tensor& y, int d, const Tensor& zeros) {
  const LstmShape& s = layer.shape;
  const int64_t size = dtype_size(layer.dtype);
  cpu::PreviousStates states;
  states.y = const_element(y, d * s.output_size, size);
  states.y_stride_bytes = s.directions * s.output_size * size;
  states.h_0 = const_element(layer.h_0, d * s.batch * s.output_size, size);
  states.row_bytes = s.output_size * size;
  states.reset_mask = layer.reset_flags();
  states.reverse = d == 1;
  states.zeros = zeros.const_data_ptr();
  return cpu::previous_state_rows(layer.layout, s.batch, states);
}

Tensor zero_state(const Layer& layer) {
  return ts::new_zeros(layer.input, {layer.shape.output_size});
}

// Over which rows the sums go: all of them, or those of each sample.
class Sums {
 public:
  Sums(const Layer& layer, int64_t samples) : layer_(layer), samples_(samples) {
    if (samples > 0) rows_ = cpu::sample_rows(layer.layout, samples);
  }

  Tensor new_weight(int64_t rows, int64_t columns) const {
    return new_storage(samples_ > 0 ? Sizes{samples_, rows, columns} : Sizes{rows, columns});
  }
  Tensor new_bias(int64_t size) const {
    return new_storage(samples_ > 0 ? Sizes{samples_, size} : Sizes{size});
  }

  // The rows in the order that `run` takes them.
  cpu::RowPointers ordered(cpu::RowPointers rows) const {
    if (samples_ == 0) return rows;
    cpu::RowPointers out;
    out.reserve(rows.size());
    for (const int64_t row : rows_.rows) out.push_back(rows[row]);
    return out;
  }
  void run(cpu::WeightGradientArgs args, cpu::Isa isa, const cpu::Parallel& parallel) const {
    args.dtype = layer_.dtype;
    args.rows = layer_.data_rows;
    if (samples_ > 0) {
      cpu::sample_weight_gradients(args, samples_, rows_.first.data(), isa, parallel);
    } else {
      cpu::weight_gradient(args, isa, parallel);
    }
  }

 private:
  Tensor new_storage(const Sizes& sizes) const {
    return new_tensor(sizes, layer_.input.scalar_type(), layer_.device);
  }

  const Layer& layer_;
  const int64_t samples_;  // 0: the sums are over all rows
  cpu::SampleRows rows_;
};

// dW_hr = Σ grad_outputᵀ·(o·tanh(c)).
Tensor projection_gradient(const Layer& layer, const Tensor& grad_output, const Tensor& output,
                           const Sums& sums, cpu::Isa isa, const cpu::Parallel& parallel) {
  const LstmShape& s = layer.shape;
  const Tensor grad = sums.new_weight(s.output_size, s.hidden_size);
  const int64_t size = dtype_size(layer.dtype), rows = layer.data_rows;
  const cpu::RowPointers grads = sums.ordered(
      cpu::matrix_rows(const_element(grad_output, 0, size), rows, s.output_size * size));
  const cpu::RowPointers operands =
      sums.ordered(cpu::matrix_rows(const_element(output, 0, size), rows, s.hidden_size * size));
  cpu::WeightGradientArgs args;
  args.grads = grads.data();
  args.grad_columns = s.output_size;
  args.weight[0] = {operands.data(), s.hidden_size, grad.mutable_data_ptr()};
  sums.run(args, isa, parallel);
  return grad;
}

}  // namespace

Tensor unprojected_output(const Layer& layer, const BackwardTensors& tensors, cpu::Isa isa,
                          const cpu::Parallel& parallel) {
  const int64_t hidden = layer.shape.hidden_size;
  const int64_t size = dtype_size(layer.dtype);
  const int directions = layer.shape.projection ? layer.shape.directions : 0;
  Tensor output = ts::new_empty(layer.input, {directions, layer.data_rows, hidden});
  const cpu::KernelTable& table = cpu::kernel_table(isa, layer.dtype);
  for (int d = 0; d < directions; ++d) {
    const void* gates = direction_of(tensors.gates, d).const_data_ptr();
    const void* cells = direction_of(tensors.cells, d).const_data_ptr();
    void* outputs = direction_of(output, d).mutable_data_ptr();
    parallel.for_each(layer.data_rows, [&](int64_t row) {
      table.unprojected_output(cpu::advance(gates, row * kGates * hidden, size),
                               cpu::advance(cells, row * hidden, accumulator_size(layer.dtype)), 1,
                               hidden, cpu::advance(outputs, row * hidden, size));
    });
  }
  return output;
}

std::vector<Tensor> weight_gradients(const Layer& layer, const BackwardTensors& tensors,
                                     const Tensor& unprojected, int64_t samples, cpu::Isa isa,
                                     const cpu::Parallel& parallel) {
  const LstmShape& s = layer.shape;
  const int64_t gates = kGates * s.hidden_size, size = dtype_size(layer.dtype);
  const Sums sums(layer, samples);
  const cpu::RowPointers x = sums.ordered(input_rows(layer));
  const Tensor zeros = zero_state(layer);
  std::vector<Tensor> weight_grads;
  for (int d = 0; d < s.directions; ++d) {
    const Tensor grad_gates = direction_of(tensors.grad_gates, d);
    const cpu::RowPointers grads = sums.ordered(
        cpu::matrix_rows(const_element(grad_gates, 0, size), layer.data_rows, gates * size));
    const cpu::RowPointers previous = sums.ordered(previous_states(layer, tensors.y, d, zeros));
    cpu::WeightGradientArgs args;
    args.grads = grads.data();
    args.grad_columns = gates;
    weight_grads.push_back(sums.new_weight(gates, s.input_size));
    args.weight[0] = {x.data(), s.input_size, weight_grads.back().mutable_data_ptr()};
    weight_grads.push_back(sums.new_weight(gates, s.output_size));
    args.weight[1] = {previous.data(), s.output_size, weight_grads.back().mutable_data_ptr()};
    args.weights = 2;
    if (layer.has_bias()) {
      for (void*& grad_bias : args.grad_bias) {
        weight_grads.push_back(sums.new_bias(gates));
        grad_bias = weight_grads.back().mutable_data_ptr();
      }
    }
    sums.run(args, isa, parallel);
    if (s.projection) {
      weight_grads.push_back(projection_gradient(layer, direction_of(tensors.grad_output, d),
                                                 direction_of(unprojected, d), sums, isa,
                                                 parallel));
    }
  }
  return weight_grads;
}

}  // namespace lstm_fused
