// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/gradients/rebuild_gates.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/runtime/row_chunks.h"

namespace lstm_fused::cpu {
GateRebuilder::GateRebuilder(const LstmGatesArgs& args, const LstmPlan& plan,
                             const Parallel& parallel)
    : args_(args),
      plan_(plan),
      table_(kernel_table(plan.isa, args.dtype)),
      zeros_(args.shape.output_size * dtype_size(args.dtype)),
      x_(data_rows(*args.layout, args.shape.batch, args.x,
                   args.shape.input_size * dtype_size(args.dtype))) {
  check_shape(args.shape);
  const LstmShape& shape = args.shape;
  Packer packer(table_);
  for (int d = 0; d < shape.directions; ++d) {
    const LstmWeights& from = args.direction[d].weights;
    Direction& to = directions_[d];
    to.h_prev = h_prev_rows(args, d, zeros_.data());
    to.bias = Buffer(round_up(shape.hidden_size, table_.vector_width) * kGates *
                     accumulator_size(args.dtype));
    table_.pack_bias(from.b_ih, from.b_hh, shape.hidden_size, to.bias.get());
    if (plan.dot) continue;
    packer.add_gates(from.w_ih, shape.hidden_size, shape.input_size, to.w_ih);
    packer.add_gates(from.w_hh, shape.hidden_size, shape.output_size, to.w_hh);
  }
  packer.run(parallel);
}

// The operand rows of a product; `data` becomes their memory.
Rows GateRebuilder::gather(const void* const* from, int64_t count, int64_t size,
                           Buffer& data) const {
  const int64_t storage = dtype_size(args_.dtype);
  const int64_t operand = plan_.dot ? storage : table_.operand_size;
  data = Buffer(count * size * operand);
  for (int64_t i = 0; i < count; ++i) {
    void* to = advance(data.get(), i * size, operand);
    if (plan_.dot) {
      std::memcpy(to, from[i], size * storage);
    } else {
      table_.storage_to_operand(from[i], size, to);
    }
  }
  return Rows{data.get(), size, nullptr};
}

// NOTE: the sums of the forward, in its order: bias, then the input GEMM, then the recurrent one.
void GateRebuilder::run_rows(int direction, int64_t begin, int64_t end, void* gates) const {
  const LstmShape& shape = args_.shape;
  const Direction& from = directions_[direction];
  Buffer inputs, states;
  ForwardStep step;
  step.rows = end - begin;
  step.hidden_size = shape.hidden_size;
  step.panel_end = ceil_div(shape.hidden_size, table_.vector_width);
  step.input = {gather(x_.data() + begin, step.rows, shape.input_size, inputs), shape.input_size,
                from.w_ih.data.get()};
  step.recurrent = {gather(from.h_prev.data() + begin, step.rows, shape.output_size, states),
                    shape.output_size, from.w_hh.data.get()};
  step.bias = from.bias.get();
  step.gates = {gates, kGates * shape.hidden_size, nullptr};
  if (plan_.dot) {
    const LstmWeights& weights = args_.direction[direction].weights;
    table_.dot_step({step, weights.w_ih, weights.w_hh});
  } else {
    table_.forward_step(step);
  }
}

void GateRebuilder::run(int direction, int64_t begin, int64_t end, void* gates,
                        const Parallel& parallel) const {
  const int64_t rows = end - begin;
  if (rows == 0) return;
  const int64_t size = chunk_rows(rows, parallel.threads);
  parallel.for_each(ceil_div(rows, size), [&](int64_t chunk) {
    const int64_t first = chunk * size;
    run_rows(direction, begin + first, std::min(begin + first + size, end),
             advance(gates, first * kGates * args_.shape.hidden_size, dtype_size(args_.dtype)));
  });
}

void rebuild_gates(const LstmGatesArgs& args, const LstmPlan& plan, const Parallel& parallel) {
  const GateRebuilder rebuilder(args, plan, parallel);
  for (int d = 0; d < args.shape.directions; ++d) {
    rebuilder.run(d, 0, args.layout->data_rows(), args.direction[d].gates, parallel);
  }
}

}  // namespace lstm_fused::cpu
