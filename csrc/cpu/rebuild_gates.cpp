// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/rebuild_gates.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/row_chunks.h"
#include "cpu/rows.h"
#include "cpu/scratch.h"

namespace lstm_fused::cpu {
namespace {

// One direction: its weights as the plan wants them, and where the rows of its operands stand.
struct Direction {
  PanelMatrix w_ih, w_hh;
  Buffer bias;  // gate order
  RowPointers previous;
};

RowPointers previous_states(const LstmGatesArgs& args, int d, const void* zeros) {
  const LstmShape& shape = args.shape;
  const int64_t storage = dtype_size(args.dtype);
  PreviousStates states;
  states.y = args.direction[d].y;
  states.y_stride_bytes = shape.directions * shape.output_size * storage;
  states.h_0 = args.direction[d].h_0;
  states.row_bytes = shape.output_size * storage;
  states.reset_mask = args.reset_mask;
  states.reverse = d == 1;
  states.zeros = zeros;
  return previous_state_rows(*args.layout, shape.batch, states);
}

}  // namespace

void rebuild_gates(const LstmGatesArgs& args, const LstmPlan& plan, const Parallel& parallel) {
  check_shape(args.shape);
  const LstmShape& shape = args.shape;
  const KernelTable& table = kernel_table(plan.isa, args.dtype);
  const int64_t rows = args.layout->data_rows();
  if (rows == 0) return;
  const int64_t storage = dtype_size(args.dtype);
  const int64_t operand = plan.dot ? storage : table.operand_size;
  const int64_t panels = ceil_div(shape.hidden_size, table.vector_width);

  // Bring the weights into the kernels' layout, and find the operands' rows.
  const std::vector<char> zeros(shape.output_size * storage);
  const RowPointers x = data_rows(*args.layout, shape.batch, args.x, shape.input_size * storage);
  Direction directions[kMaxDirections];
  Packer packer(table);
  for (int d = 0; d < shape.directions; ++d) {
    const LstmWeights& from = args.direction[d].weights;
    Direction& to = directions[d];
    to.previous = previous_states(args, d, zeros.data());
    to.bias = Buffer(panels * table.vector_width * kGates * accumulator_size(args.dtype));
    table.pack_bias(from.b_ih, from.b_hh, shape.hidden_size, to.bias.get());
    if (plan.dot) continue;
    packer.add_gates(from.w_ih, shape.hidden_size, shape.input_size, to.w_ih);
    packer.add_gates(from.w_hh, shape.hidden_size, shape.output_size, to.w_hh);
  }
  packer.run(parallel);

  // The operand rows of a product; `data` is their memory.
  const auto gather = [&](const void* const* from, int64_t count, int64_t size, Buffer& data) {
    data = Buffer(count * size * operand);
    for (int64_t i = 0; i < count; ++i) {
      void* to = advance(data.get(), i * size, operand);
      if (plan.dot) {
        std::memcpy(to, from[i], size * storage);
      } else {
        table.storage_to_operand(from[i], size, to);
      }
    }
    return Rows{data.get(), size, nullptr};
  };

  // NOTE: the sums of the forward, in its order: bias, then x, then h.
  const int64_t size = chunk_rows(rows, parallel.threads), chunks = ceil_div(rows, size);
  parallel.for_each(shape.directions * chunks, [&](int64_t i) {
    const int64_t begin = i % chunks * size;
    const LstmGatesDirection& to = args.direction[i / chunks];
    const Direction& from = directions[i / chunks];
    Buffer inputs, states;
    ForwardStep step;
    step.rows = std::min(size, rows - begin);
    step.hidden_size = shape.hidden_size;
    step.panel_end = panels;
    step.input = {gather(x.data() + begin, step.rows, shape.input_size, inputs), shape.input_size,
                  from.w_ih.data.get()};
    step.recurrent = {gather(from.previous.data() + begin, step.rows, shape.output_size, states),
                      shape.output_size, from.w_hh.data.get()};
    step.bias = from.bias.get();
    const int64_t gates = kGates * shape.hidden_size;
    step.gates = {advance(to.gates, begin * gates, storage), gates, nullptr};
    if (plan.dot) {
      table.dot_step({step, to.weights.w_ih, to.weights.w_hh});
    } else {
      table.forward_step(step);
    }
  });
}

}  // namespace lstm_fused::cpu
