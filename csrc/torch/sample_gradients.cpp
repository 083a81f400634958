// SPDX-License-Identifier: BSD-3-Clause
#include "torch/sample_gradients.h"

#include <torch/csrc/stable/ops.h>

#include "cpu/gradients/weight_gradient.h"
#include "cpu/rows.h"
#include "cpu/runtime/scratch.h"

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

// h_prev of the data rows, of P features; `zeros` are P of them.
cpu::RowPointers previous_states(const Layer& layer, const Tensor& y, int d, const Tensor& zeros) {
  const LstmShape& s = layer.shape;
  const int64_t size = dtype_size(layer.dtype);
  cpu::HPrevSource states;
  states.y = const_element(y, d * s.output_size, size);
  states.y_stride_bytes = s.directions * s.output_size * size;
  states.h_0 = const_element(layer.h_0, d * s.batch * s.output_size, size);
  states.row_bytes = s.output_size * size;
  states.reset_mask = layer.reset_flags();
  states.reverse = d == 1;
  states.zeros = zeros.const_data_ptr();
  return cpu::h_prev_rows(layer.layout, s.batch, states);
}

Tensor zero_state(const Layer& layer) {
  Tensor zeros = new_tensor({layer.shape.output_size}, layer.input.scalar_type(), layer.device);
  fill_with_zeros(zeros);
  return zeros;
}

// Sums over the rows of each sample.
class Sums {
 public:
  Sums(const Layer& layer, int64_t samples)
      : layer_(layer), samples_(samples), rows_(cpu::sample_rows(layer.layout, samples)) {}

  // The rows in the order that `run` takes them.
  cpu::RowPointers ordered(const cpu::RowPointers& rows) const {
    cpu::RowPointers out;
    out.reserve(rows.size());
    for (const int64_t row : rows_.rows) out.push_back(rows[row]);
    return out;
  }
  void run(cpu::WeightGradientArgs args, cpu::Isa isa, const cpu::Parallel& parallel) const {
    args.dtype = layer_.dtype;
    args.rows = layer_.data_rows;
    cpu::sample_weight_gradients(args, samples_, rows_.first.data(), isa, parallel);
  }

 private:
  const Layer& layer_;
  const int64_t samples_;
  const cpu::SampleRows rows_;
};

// (B, …) for each weight.
std::vector<Tensor> new_gradients(const Layer& layer, int64_t samples) {
  std::vector<Tensor> grads;
  for (const Tensor& weight : layer.weights) {
    const int64_t rows = weight.size(0);
    const Sizes sizes =
        weight.dim() == 1 ? Sizes{samples, rows} : Sizes{samples, rows, weight.size(1)};
    grads.push_back(new_tensor(sizes, weight.scalar_type(), layer.device));
  }
  return grads;
}

// dW_hr = Σ grad_outputᵀ·(o·tanh(c)).
void projection_gradient(const Layer& layer, const Tensor& grad_output, const Tensor& output,
                         const Sums& sums, cpu::Isa isa, const cpu::Parallel& parallel,
                         const Tensor& grad) {
  const LstmShape& s = layer.shape;
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
}

}  // namespace

Tensor unprojected_output(const Layer& layer, const BackwardTensors& tensors, cpu::Isa isa,
                          const cpu::Parallel& parallel) {
  const int64_t hidden = layer.shape.hidden_size;
  const int64_t size = dtype_size(layer.dtype);
  const int directions = layer.shape.projection ? layer.shape.directions : 0;
  Tensor output =
      new_tensor({directions, layer.data_rows, hidden}, layer.input.scalar_type(), layer.device);
  const cpu::KernelTable& table = cpu::kernel_table(isa, layer.dtype);
  for (int d = 0; d < directions; ++d) {
    const void* gates = direction_of(tensors.gates, d).const_data_ptr();
    const void* cells = direction_of(tensors.cells, d).const_data_ptr();
    void* outputs = direction_of(output, d).mutable_data_ptr();
    parallel.for_each(layer.data_rows, [&](int64_t row) {
      table.cell_output(advance(gates, row * kGates * hidden, size),
                        advance(cells, row * hidden, accumulator_size(layer.dtype)), 1, hidden,
                        advance(outputs, row * hidden, size));
    });
  }
  return output;
}

std::vector<Tensor> sample_gradients(const Layer& layer, const BackwardTensors& tensors,
                                     const Tensor& unprojected, int64_t samples, cpu::Isa isa,
                                     const cpu::Parallel& parallel) {
  const LstmShape& s = layer.shape;
  const int64_t gates = kGates * s.hidden_size, size = dtype_size(layer.dtype);
  // NOTE: before the sums' table of samples, which would fill the memory that these do not get.
  const std::vector<Tensor> weight_grads = new_gradients(layer, samples);
  const Sums sums(layer, samples);
  const cpu::RowPointers x = sums.ordered(input_rows(layer));
  const Tensor zeros = zero_state(layer);
  const int each = layer.weights_per_direction();
  for (int d = 0; d < s.directions; ++d) {
    const Tensor grad_gates = direction_of(tensors.grad_gates, d);
    const cpu::RowPointers grads = sums.ordered(
        cpu::matrix_rows(const_element(grad_gates, 0, size), layer.data_rows, gates * size));
    const cpu::RowPointers previous = sums.ordered(previous_states(layer, tensors.y, d, zeros));
    const Tensor* to = weight_grads.data() + d * each;
    cpu::WeightGradientArgs args;
    args.grads = grads.data();
    args.grad_columns = gates;
    args.weight[0] = {x.data(), s.input_size, to[0].mutable_data_ptr()};
    args.weight[1] = {previous.data(), s.output_size, to[1].mutable_data_ptr()};
    args.weights = 2;
    if (layer.has_bias()) {
      args.grad_bias[0] = to[2].mutable_data_ptr();
      args.grad_bias[1] = to[3].mutable_data_ptr();
    }
    sums.run(args, isa, parallel);
    if (s.projection) {
      projection_gradient(layer, direction_of(tensors.grad_output, d), direction_of(unprojected, d),
                          sums, isa, parallel, to[each - 1]);
    }
  }
  return weight_grads;
}

}  // namespace lstm_fused
