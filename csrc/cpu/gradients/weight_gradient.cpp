// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/gradients/weight_gradient.h"

#include <algorithm>
#include <cstring>

#include "cpu/cpu_features.h"
#include "cpu/plan.h"

namespace lstm_fused::cpu {
namespace {

// Rows of data in one pass: long enough that reading and writing the sums is 1 % of it, short
// enough that a panel of it, 64 KiB, is read from the L2 cache.
constexpr int64_t kBlockRows = 256;
// The same where a thread's sums are too many for its L2 cache, so that they come from memory.
constexpr int64_t kLargeBlockRows = 1024;
constexpr int64_t kMaxCachedSums = 1 << 20;  // bytes

// Columns of grad that parts of the work begin at: whole vectors, whatever the instruction set.
constexpr int64_t kPartColumns = kMaxVectorWidth;

// Multiply-adds below which one thread does it all.
constexpr int64_t kMinParallelWork = 1'000'000;

int64_t number_of_sums(const WeightGradientArgs& args) {
  int64_t columns = 0;
  for (int i = 0; i < args.weights; ++i) columns += args.weight[i].columns;
  return args.grad_columns * columns;
}

// Multiply-adds of all rows.
int64_t work_of(const WeightGradientArgs& args) { return args.rows * number_of_sums(args); }

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

int64_t weight_gradient_block_rows(int64_t sums, DType dtype) {
  return sums * accumulator_size(dtype) > kMaxCachedSums ? kLargeBlockRows : kBlockRows;
}

WeightGradient::WeightGradient(const WeightGradientArgs& args, Isa isa, int threads, bool at_once)
    : args_(args),
      table_(kernel_table(isa, args.dtype)),
      storage_(dtype_size(args.dtype)),
      accumulator_(accumulator_size(args.dtype)),
      panel_columns_(table_.nr()),
      block_rows_(
          std::min(weight_gradient_block_rows(number_of_sums(args), args.dtype), args.rows)),
      block_stride_(round_up(block_rows_, table_.vector_width * table_.k_multiple)),
      parts_(std::clamp<int64_t>(threads, 1, ceil_div(args.grad_columns, kPartColumns))),
      is_single_block_(at_once && args.rows > 0 && args.rows <= block_rows_),
      uses_outer_products_(is_single_block_ && args.rows <= max_unpacked_rows(args.dtype, isa)),
      part_(parts_) {
  int64_t most_panels = 0;
  for (int i = 0; i < args.weights; ++i) {
    most_panels = std::max(most_panels, panels(i));
    if (is_single_block_) continue;
    sums_[i] = Buffer(args.grad_columns * panels(i) * panel_columns_ * accumulator_);
  }
  if (args.grad_bias[0] || args.grad_bias[1]) bias_sums_ = Buffer(args.grad_columns * accumulator_);
  for (int64_t p = 0; p < parts_ && !uses_outer_products_; ++p) {
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
  for (int64_t row = begin; row < end; row += block_rows_) {
    add_block(part_[part], row, std::min(block_rows_, end - row), part_begin(part),
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
  if (uses_outer_products_) {
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
    if (is_single_block_) {
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
  for (int i = 0; i < args_.weights && !is_single_block_; ++i) {
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
  const Parallel threads = work_of(args) < kMinParallelWork ? Parallel{} : parallel;
  WeightGradient gradient(args, isa, threads.threads, /*at_once=*/true);
  threads.for_each(gradient.parts(), [&](int64_t part) {
    gradient.add(part, 0, args.rows);
    gradient.store(part);
  });
}

void sample_weight_gradients(const WeightGradientArgs& args, int64_t samples,
                             const int64_t* first_row, Isa isa, const Parallel& parallel) {
  const Parallel threads = work_of(args) < kMinParallelWork ? Parallel{} : parallel;
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
