// SPDX-License-Identifier: BSD-3-Clause
// A stack of layers without gradients, in one call.
#include "torch/stack_cpu.h"

#include <algorithm>

#include "common/error.h"
#include "cpu/runtime/scratch.h"
#include "cpu/stack_forward.h"
#include "torch/layer.h"
#include "torch/torch_parallel.h"

namespace lstm_fused {
namespace {

// A state of all layers, (layers·L, N, features): the given one, or zero.
Tensor state_of_stack(const std::optional<Tensor>& state, const char* name, const CpuLayer& layer,
                      int64_t blocks, int64_t features) {
  const int64_t rows = layer.shape.batch;
  if (!state) return zero_state(layer.input, blocks, rows, features);
  LSTM_CHECK(state->dim() == 3 && state->size(0) == blocks, name, " must have 3 dimensions, of ",
             blocks, " layers and directions, got ", Sizes(*state).text());
  return checked(*state, name, {blocks, rows, features}, layer);
}

}  // namespace

// NOTE: no tensors for what only one layer sees: a view of a state or an output that nobody asked
// for takes longer than a step of a small layer does.
InferenceResult lstm_stack_cpu(const Tensor& input, const std::optional<Tensor>& h_0,
                               const std::optional<Tensor>& c_0, const std::vector<Tensor>& weights,
                               int64_t directions, int64_t num_layers) {
  const CpuStack stack = make_cpu_stack(input, weights, directions, num_layers);
  const CpuLayer& layer = stack.first;
  const int64_t blocks = num_layers * directions, rows = layer.shape.batch;
  const int64_t hidden = layer.shape.hidden_size, output = layer.shape.output_size;
  const Tensor h = state_of_stack(h_0, "h_0", layer, blocks, output);
  const bool shares_zeros = !h_0 && !c_0 && output == hidden;
  const Tensor c = shares_zeros ? h : state_of_stack(c_0, "c_0", layer, blocks, hidden);
  const ScalarType type = layer.input.scalar_type();
  InferenceResult result{new_tensor({layer.steps, rows, directions * output}, type, layer.device),
                         new_tensor({blocks, rows, output}, type, layer.device),
                         new_tensor({blocks, rows, hidden}, type, layer.device)};
  const auto& [y, h_n, c_n] = result;

  const cpu::Parallel parallel = torch_parallel();
  const cpu::CpuFacts facts = cpu::cpu_facts(parallel.threads);
  const cpu::StackPlan plan = cpu::make_stack_plan(stack.shapes, layer.dtype, facts);

  // Lay out the layers, each on what the one before will give. One after the other they need two
  // sequences in between, side by side one behind each.
  const int64_t size = dtype_size(layer.dtype);
  const int64_t inner = plan.workers > 1 ? num_layers - 1 : std::min<int64_t>(num_layers - 1, 2);
  std::vector<cpu::Buffer> between;
  for (int64_t i = 0; i < inner; ++i) {
    between.emplace_back(layer.sequence_rows * directions * output * size);
  }
  std::vector<LstmForwardArgs> arguments(num_layers);
  const void* x = layer.input.const_data_ptr();
  for (int64_t l = 0; l < num_layers; ++l) {
    void* const out = l + 1 == num_layers ? element(y, 0, 1) : between[l % inner].get();
    LstmForwardArgs& args = arguments[l];
    args.shape = stack.shapes[l];
    args.dtype = layer.dtype;
    args.layout = &layer.layout;
    args.x = x;
    for (int d = 0; d < layer.shape.directions; ++d) {
      const int64_t block = l * directions + d;
      LstmForwardDirection& direction = args.direction[d];
      direction.weights = stack.direction_weights(l, d);
      direction.h_0 = const_element(h, block * rows * output, size);
      direction.c_0 = const_element(c, block * rows * hidden, size);
      direction.y = advance(out, d * output, size);
      direction.h_n = element(h_n, block * rows * output, size);
      direction.c_n = element(c_n, block * rows * hidden, size);
    }
    x = out;
  }
  cpu::stack_forward(arguments, plan, facts, parallel);
  return result;
}

}  // namespace lstm_fused
