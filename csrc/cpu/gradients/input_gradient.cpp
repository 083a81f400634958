// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/gradients/input_gradient.h"

#include <algorithm>

#include "cpu/gradients/plan.h"
#include "cpu/runtime/row_chunks.h"

namespace lstm_fused::cpu {
namespace {

// Where each data row stands in x; empty where it stands at its own number.
std::vector<int64_t> positions_in_sequence(const SequenceLayout& layout, int64_t batch) {
  const bool dense = layout.row_of.empty() && layout.data_rows() == layout.steps() * batch;
  if (layout.packed || dense) return {};
  std::vector<int64_t> positions;
  positions.reserve(layout.data_rows());
  for (int64_t t = 0; t < layout.steps(); ++t) {
    for (int64_t j = 0; j < layout.active[t]; ++j) {
      positions.push_back(t * batch + layout.batch_row(j));
    }
  }
  return positions;
}

}  // namespace

InputGradient::InputGradient(const InputGradientArgs& args, Isa isa, bool unpacked,
                             const Parallel& parallel)
    : args_(args),
      table_(kernel_table(isa, args.dtype)),
      unpacked_(unpacked),
      panels_(ceil_div(args.shape.input_size, table_.nr())),
      positions_(positions_in_sequence(*args.layout, args.shape.batch)) {
  if (unpacked_) return;
  Packer packer(table_);
  for (int d = 0; d < args.shape.directions; ++d) {
    packer.add_untransposed(args.w_ih[d], args.shape.input_size, kGates * args.shape.hidden_size,
                            w_ih_[d]);
  }
  packer.run(parallel);
}

void InputGradient::run(int64_t begin, int64_t end, int64_t panel_begin, int64_t panel_end,
                        const void* const (&grad_gates)[kMaxDirections], bool add) const {
  const int64_t storage = dtype_size(args_.dtype);
  const int64_t gates = kGates * args_.shape.hidden_size;
  const bool converts = table_.operand_size != storage;
  for (int64_t row = begin; row < end; row += kMaxChunkRows) {
    LinearStep step;
    step.rows = std::min(kMaxChunkRows, end - row);
    step.columns = args_.shape.input_size;
    step.panel_begin = panel_begin;
    step.panel_end = panel_end;
    Buffer converted[kMaxDirections];
    Product products[kMaxDirections];
    for (int d = 0; d < args_.shape.directions; ++d) {
      if (!grad_gates[d]) continue;
      const void* from = advance(grad_gates[d], (row - begin) * gates, storage);
      if (converts) {
        converted[d] = Buffer(step.rows * gates * table_.operand_size);
        table_.storage_to_operand(from, step.rows * gates, converted[d].get());
        from = converted[d].get();
      }
      products[d].operand = {from, gates, nullptr};
      products[d].size = gates;
      if (unpacked_) {
        products[d].matrix = args_.w_ih[d];
        products[d].matrix_columns = args_.shape.input_size;
      } else {
        products[d].panels = w_ih_[d].data.get();
      }
    }
    step.product = products[0];
    step.second = products[1];
    if (positions_.empty()) {
      step.out = {advance(args_.grad_x, row * args_.shape.input_size, storage),
                  args_.shape.input_size, nullptr};
    } else {
      step.out = {args_.grad_x, args_.shape.input_size, positions_.data() + row};
    }
    if (add) step.addends[0] = {step.out.base, step.out.stride, step.out.order};
    table_.linear_step(step);
  }
}

void input_gradient(const InputGradientArgs& args, Isa isa, const Parallel& parallel) {
  const bool unpacked = reads_weights_unpacked(args.shape, args.dtype, isa);
  const InputGradient gradient(args, isa, unpacked, parallel);
  const int64_t rows = args.layout->data_rows();
  if (rows == 0) return;
  const int64_t size = chunk_rows(rows, parallel.threads);
  parallel.for_each(ceil_div(rows, size), [&](int64_t chunk) {
    const int64_t begin = chunk * size, end = std::min(begin + size, rows);
    const bool at_once = sums_directions_at_once(args.shape, args.dtype);
    const void* grad_gates[kMaxDirections] = {};
    for (int d = 0; d < args.shape.directions; ++d) {
      grad_gates[d] = advance(args.grad_gates[d], begin * kGates * args.shape.hidden_size,
                              dtype_size(args.dtype));
      if (at_once && d == 0) continue;
      gradient.run(begin, end, 0, gradient.panels(), grad_gates, /*add=*/!at_once && d == 1);
      grad_gates[d] = nullptr;
    }
  });
}

}  // namespace lstm_fused::cpu
