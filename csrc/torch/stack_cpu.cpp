// SPDX-License-Identifier: BSD-3-Clause
// A stack of layers without gradients, in one call.
#include "torch/stack_cpu.h"

#include <torch/csrc/stable/ops.h>

#include "common/error.h"
#include "cpu/stack_forward.h"
#include "torch/layer.h"
#include "torch/torch_parallel.h"

namespace lstm_fused {
namespace {

// A state of all layers, (layers·L, N, features): the given one, or zero.
Tensor state_of_stack(const std::optional<Tensor>& state, const char* name, const Tensor& input,
                      int64_t blocks, int64_t features) {
  if (!state) return zero_state(input, blocks, input.size(1), features);
  LSTM_CHECK(state->dim() == 3 && state->size(0) == blocks, name, " must have 3 dimensions, of ",
             blocks, " layers and directions, got ", Sizes(*state).text());
  return *state;
}

}  // namespace

InferenceResult lstm_stack_cpu(const Tensor& input, const std::optional<Tensor>& h_0,
                               const std::optional<Tensor>& c_0, const std::vector<Tensor>& weights,
                               int64_t directions, int64_t num_layers) {
  const int64_t blocks = num_layers * directions;
  const int64_t each = static_cast<int64_t>(weights.size()) / num_layers;
  LSTM_CHECK(each * num_layers == static_cast<int64_t>(weights.size()) && each >= 2,
             "weights must hold as many tensors for each of ", num_layers, " layers, got ",
             weights.size());
  LSTM_CHECK(weights[1].dim() == 2, "weights must begin with w_ih and w_hh");
  const int64_t hidden = weights[1].size(0) / kGates, output = weights[1].size(1);
  Tensor h = state_of_stack(h_0, "h_0", input, blocks, output);
  Tensor c = state_of_stack(c_0, "c_0", input, blocks, hidden);

  // Lay out the layers, each on what the one before will give.
  const int64_t rows = input.size(1);
  const InferenceResult result{
      {},
      new_tensor({blocks, rows, output}, input.scalar_type(), device_of(input)),
      new_tensor({blocks, rows, hidden}, input.scalar_type(), device_of(input))};
  std::vector<CpuLayer> layers;
  layers.reserve(num_layers);  // whose layouts the arguments point at
  std::vector<LstmForwardArgs> arguments;
  Tensor y = input;
  for (int64_t l = 0; l < num_layers; ++l) {
    const auto first = weights.begin() + l * each;
    layers.push_back(make_cpu_layer(y, torch::stable::narrow(h, 0, l * directions, directions),
                                    torch::stable::narrow(c, 0, l * directions, directions),
                                    {first, first + each}, {}, {}, {}));
    const CpuLayer& layer = layers.back();
    LSTM_CHECK(layer.shape.hidden_size == hidden && layer.shape.output_size == output,
               "all layers must have the sizes of the first one");
    y = new_tensor({layer.steps, rows, directions * output}, input.scalar_type(), layer.device);
    LstmForwardArgs& args = arguments.emplace_back();
    args.shape = layer.shape;
    args.dtype = layer.dtype;
    args.layout = &layer.layout;
    args.x = layer.input.const_data_ptr();
    const int64_t size = dtype_size(layer.dtype);
    for (int d = 0; d < layer.shape.directions; ++d) {
      const int64_t block = l * directions + d;
      LstmForwardDirection& direction = args.direction[d];
      direction.weights = layer.direction_weights(d);
      direction.h_0 = const_element(layer.h_0, d * rows * output, size);
      direction.c_0 = const_element(layer.c_0, d * rows * hidden, size);
      direction.y = element(y, d * output, size);
      direction.h_n = element(std::get<1>(result), block * rows * output, size);
      direction.c_n = element(std::get<2>(result), block * rows * hidden, size);
    }
  }

  std::vector<LstmShape> shapes;
  for (const CpuLayer& layer : layers) shapes.push_back(layer.shape);
  const cpu::Parallel parallel = torch_parallel();
  const cpu::CpuFacts facts = cpu::cpu_facts(parallel.threads);
  cpu::stack_forward(arguments, cpu::make_stack_plan(shapes, layers.front().dtype, facts), facts,
                     parallel);
  return {y, std::get<1>(result), std::get<2>(result)};
}

}  // namespace lstm_fused
