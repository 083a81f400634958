// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/input_gradient.h"

#include <algorithm>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/row_chunks.h"
#include "cpu/scratch.h"

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

void input_gradient(const InputGradientArgs& args, Isa isa, const Parallel& parallel) {
  const LstmShape& shape = args.shape;
  const KernelTable& table = kernel_table(isa, args.dtype);
  const int64_t storage = dtype_size(args.dtype);
  const int64_t gates = kGates * shape.hidden_size;
  const bool converts = table.operand_size != storage;

  PanelMatrix w_ih[kMaxDirections];
  Packer packer(table);
  for (int d = 0; d < shape.directions; ++d) {
    packer.add_direct(args.w_ih[d], shape.input_size, gates, w_ih[d]);
  }
  packer.run(parallel);

  const std::vector<int64_t> positions = positions_in_sequence(*args.layout, shape.batch);
  const int64_t rows = args.layout->data_rows();
  if (rows == 0) return;
  const int64_t size = chunk_rows(rows, parallel.threads);
  parallel.for_each(ceil_div(rows, size), [&](int64_t chunk) {
    const int64_t begin = chunk * size;
    LinearStep step;
    step.rows = std::min(size, rows - begin);
    step.columns = shape.input_size;
    step.panel_end = w_ih[0].panels;
    Buffer converted[kMaxDirections];
    Product products[kMaxDirections];
    for (int d = 0; d < shape.directions; ++d) {
      const void* from = advance(args.grad_gates[d], begin * gates, storage);
      if (converts) {
        converted[d] = Buffer(step.rows * gates * table.operand_size);
        table.storage_to_operand(from, step.rows * gates, converted[d].get());
        from = converted[d].get();
      }
      products[d] = {{from, gates, nullptr}, gates, w_ih[d].data.get()};
    }
    step.product = products[0];
    step.second = products[1];
    if (positions.empty()) {
      step.out = {advance(args.grad_x, begin * shape.input_size, storage), shape.input_size,
                  nullptr};
    } else {
      step.out = {args.grad_x, shape.input_size, positions.data() + begin};
    }
    table.linear_step(step);
  });
}

}  // namespace lstm_fused::cpu
