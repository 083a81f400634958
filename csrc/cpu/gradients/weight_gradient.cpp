// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/gradients/weight_gradient.h"

#include <algorithm>
#include <cstring>

#include "cpu/cpu_features.h"

namespace lstm_fused::cpu {
namespace {

// Columns of grad that parts of the work begin at: whole vectors, whatever the instruction set.
constexpr int64_t kPartColumns = kMaxVectorWidth;

int64_t number_of_sums(const WeightGradientArgs& args) {
  int64_t columns = 0;
  for (int i = 0; i < args.weights; ++i) columns += args.weight[i].columns;
  return args.grad_columns * columns;
}

// Returns the pool, or the caller alone where waking a thread costs more than the sums.
Parallel threads_for(const WeightGradientArgs& args, const Parallel& parallel) {
  const int64_t work = args.rows * number_of_sums(args);
  return gradient_threads(work, parallel.threads) > 1 ? parallel : Parallel{};
}

WeightGradientArgs args_of_sample(WeightGradientArgs args, int64_t sample,
                                  const int64_t* first_row) {
  const int64_t storage = dtype_size(args.dtype);
  args.rows = first_row[sample + 1] - first_row[sample];
  args.grads += first_row[sample];
  for (int i = 0; i < args.weights; ++i) {
    WeightGradientArgs::Weight& weight = args.weight[i];
    weight.operands += first_row[sample];
    weight.grad_weight =
        advance(weight.grad_weight, sample * args.grad_columns * weight.columns, storage);
  }
  for (void*& grad_bias : args.grad_bias) {
    grad_bias = advance(grad_bias, sample * args.grad_columns, storage);
  }
  return args;
}

}  // namespace

WeightGradient::WeightGradient(const WeightGradientArgs& args, const WeightGradientPlan& plan)
    : args_(args),
      table_(kernel_table(plan.isa, args.dtype)),
      storage_(dtype_size(args.dtype)),
      accumulator_(accumulator_size(args.dtype)),
      panel_columns_(table_.nr()),
      plan_(plan),
      block_stride_(round_up(plan.block_rows, table_.vector_width * table_.k_multiple)),
      parts_(std::clamp<int64_t>(plan.threads, 1, ceil_div(args.grad_columns, kPartColumns))),
      part_(parts_) {
  int64_t most_panels = 0;
  for (int i = 0; i < args.weights; ++i) {
    most_panels = std::max(most_panels, panels(i));
    if (plan_.single_block) continue;
    sums_[i] = Buffer(args.grad_columns * panels(i) * panel_columns_ * accumulator_);
  }
  if (args.grad_bias[0] || args.grad_bias[1]) bias_sums_ = Buffer(args.grad_columns * accumulator_);
  for (int64_t p = 0; p < parts_ && !plan_.outer_products; ++p) {
    const int64_t columns = part_begin(p + 1) - part_begin(p);
    part_[p].columns = Buffer(columns * block_stride_ * table_.operand_size);
    part_[p].panels = Buffer(most_panels * panel_columns_ * block_stride_ * table_.operand_size);
  }
}

int64_t WeightGradient::part_begin(int64_t part) const {
  return std::min(round_up(args_.grad_columns * part / parts_, kPartColumns), args_.grad_columns);
}

int64_t WeightGradient::panels(int weight) const {
  return ceil_div(args_.weight[weight].columns, panel_columns_);
}

void* WeightGradient::sums(int weight, int64_t column) const {
  return advance(sums_[weight].get(), column * panels(weight) * panel_columns_, accumulator_);
}

void* WeightGradient::bias_sums(int64_t column) const {
  return advance(bias_sums_.get(), column, accumulator_);
}

void WeightGradient::add(int64_t part, int64_t begin, int64_t end) {
  if (part >= parts_) return;
  for (int64_t row = begin; row < end; row += plan_.block_rows) {
    add_block(part_[part], row, std::min(plan_.block_rows, end - row), part_begin(part),
              part_begin(part + 1));
  }
}

void WeightGradient::add_block(Part& part, int64_t row, int64_t count, int64_t column_begin,
                               int64_t column_end) {
  const void* const* grads = args_.grads + row;
  LinearStep step;
  step.rows = column_end - column_begin;
  step.accumulate = part.has_sums;
  if (bias_sums_.get()) {
    table_.sum_rows(grads, count, column_begin, column_end, part.has_sums, bias_sums(column_begin));
  }
  if (plan_.outer_products) {
    for (int i = 0; i < args_.weights; ++i) {
      const WeightGradientArgs::Weight& weight = args_.weight[i];
      table_.outer_products({grads, weight.operands + row, count, column_begin, column_end,
                             weight.columns,
                             advance(weight.grad_weight, column_begin * weight.columns, storage_)});
    }
    part.has_sums = true;
    return;
  }
  table_.pack_columns(grads, count, column_begin, column_end, block_stride_, part.columns.get());
  for (int i = 0; i < args_.weights; ++i) {
    const WeightGradientArgs::Weight& weight = args_.weight[i];
    table_.pack_rows(weight.operands + row, count, weight.columns, part.panels.get());
    step.product = {{part.columns.get(), block_stride_, nullptr}, count, part.panels.get()};
    step.columns = weight.columns;
    step.panel_end = panels(i);
    if (plan_.single_block) {
      step.out = {advance(weight.grad_weight, column_begin * weight.columns, storage_),
                  weight.columns, nullptr};
    } else {
      step.accumulator_out = {sums(i, column_begin), panels(i) * panel_columns_, nullptr};
    }
    table_.linear_step(step);
  }
  part.has_sums = true;
}

void WeightGradient::store(int64_t part) {
  if (part >= parts_) return;
  const int64_t column_begin = part_begin(part), column_end = part_begin(part + 1);
  const bool has_sums = part_[part].has_sums;
  const auto store_row = [&](const void* from, int64_t columns, void* to) {
    if (columns == 0) return;
    if (has_sums) {
      table_.accumulator_to_storage(from, columns, to);
    } else {
      std::memset(to, 0, columns * storage_);
    }
  };
  for (int i = 0; i < args_.weights && !plan_.single_block; ++i) {
    const WeightGradientArgs::Weight& weight = args_.weight[i];
    for (int64_t c = column_begin; c < column_end; ++c) {
      store_row(sums(i, c), weight.columns,
                advance(weight.grad_weight, c * weight.columns, storage_));
    }
  }
  for (void* grad_bias : args_.grad_bias) {
    if (!grad_bias) continue;
    store_row(bias_sums(column_begin), column_end - column_begin,
              advance(grad_bias, column_begin, storage_));
  }
}

void weight_gradient(const WeightGradientArgs& args, Isa isa, const Parallel& parallel) {
  const Parallel threads = threads_for(args, parallel);
  WeightGradient gradient(
      args, make_weight_gradient_plan(args.rows, number_of_sums(args), /*in_one_piece=*/true,
                                      args.dtype, isa, threads.threads));
  threads.for_each(gradient.parts(), [&](int64_t part) {
    gradient.add(part, 0, args.rows);
    gradient.store(part);
  });
}

void sample_weight_gradients(const WeightGradientArgs& args, int64_t samples,
                             const int64_t* first_row, Isa isa, const Parallel& parallel) {
  const Parallel threads = threads_for(args, parallel);
  const auto add_sample = [&](int64_t sample, const Parallel& within) {
    weight_gradient(args_of_sample(args, sample, first_row), isa, within);
  };
  // Samples side by side; or, of few, one after the other by all threads.
  if (samples < threads.threads) {
    for (int64_t sample = 0; sample < samples; ++sample) add_sample(sample, threads);
  } else {
    threads.for_each(samples, [&](int64_t sample) { add_sample(sample, Parallel{}); });
  }
}

}  // namespace lstm_fused::cpu
