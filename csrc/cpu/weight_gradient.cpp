// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/weight_gradient.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "cpu/cpu_features.h"
#include "cpu/scratch.h"

namespace lstm_fused::cpu {
namespace {

// Rows of data in one pass: long enough that reading and writing the sums is 1 % of it, short
// enough that a panel of it, 64 KiB, is read from the L2 cache.
constexpr int64_t kBlockRows = 256;

// Columns of grad that parts of the work begin at: whole vectors, and whole row blocks of the
// micro-kernel.
constexpr int64_t kPartColumns = 48;

// Matrices of fewer columns are summed in several splits of the rows at once, to have work for many
// threads; a split has at least so many rows.
constexpr int64_t kWideColumns = 768;
constexpr int64_t kMinSplitRows = 1024;

// Multiply-adds below which one thread does it all.
constexpr int64_t kMinParallelWork = 1'000'000;

class WeightGradient {
 public:
  WeightGradient(const WeightGradientArgs& args, const KernelTable& table, int threads);

  int64_t tasks() const { return splits_ * parts_; }
  // Sums of one split of the rows, for one part of grad's columns.
  void run(int64_t task);
  // Whether these are sums to be added up and stored, and not the results.
  bool has_sums() const { return args_.rows > kBlockRows; }
  // Adds the splits up, for one part, and stores the results.
  void store(int64_t part);
  int64_t parts() const { return parts_; }

 private:
  int64_t part_begin(int64_t part) const {
    return std::min(round_up(args_.grad_columns * part / parts_, kPartColumns), args_.grad_columns);
  }
  int64_t panels(int i) const { return ceil_div(args_.weight[i].columns, panel_columns_); }
  int64_t sums_stride(int i) const { return panels(i) * panel_columns_; }
  void* sums(int i, int64_t split, int64_t column) const {
    return advance(sums_[i].get(), (split * args_.grad_columns + column) * sums_stride(i),
                   accumulator_);
  }

  void* bias_sums(int64_t split, int64_t column) const {
    return advance(bias_sums_.get(), split * args_.grad_columns + column, accumulator_);
  }
  void store_bias(int64_t column_begin, int64_t column_end) const;

  struct TaskBuffers {
    Buffer columns;  // (part's columns, block_stride_) operand: a block of grad, transposed
    Buffer panels;   // a block of one weight's operands
  };

  const WeightGradientArgs& args_;
  const KernelTable& table_;
  const int64_t storage_, accumulator_;  // bytes of an element
  const int64_t panel_columns_;
  const int64_t block_rows_;
  const int64_t block_stride_;  // of whole vectors
  int64_t splits_ = 1, parts_ = 1;
  Buffer sums_[2];    // (splits, grad_columns, sums_stride) accumulator; with has_sums
  Buffer bias_sums_;  // (splits, grad_columns) accumulator
  std::vector<TaskBuffers> buffers_;
};

WeightGradient::WeightGradient(const WeightGradientArgs& args, const KernelTable& table,
                               int threads)
    : args_(args),
      table_(table),
      storage_(dtype_size(args.dtype)),
      accumulator_(accumulator_size(args.dtype)),
      panel_columns_(kPanelSlots * table.vector_width),
      block_rows_(std::min(kBlockRows, args.rows)),
      block_stride_(round_up(block_rows_, table.vector_width * table.k_multiple)) {
  splits_ = std::clamp<int64_t>(ceil_div(kWideColumns, args.grad_columns), 1,
                                std::max<int64_t>(args.rows / kMinSplitRows, 1));
  // Parts to have the same number of tasks for each thread.
  parts_ = std::clamp<int64_t>(threads / std::gcd(splits_, int64_t{threads}), 1,
                               ceil_div(args.grad_columns, kPartColumns));

  int64_t most_panels = 0;
  for (int i = 0; i < args.weights; ++i) {
    most_panels = std::max(most_panels, panels(i));
    if (has_sums()) {
      sums_[i] = Buffer(splits_ * args.grad_columns * sums_stride(i) * accumulator_);
    }
  }
  if (args.grad_bias[0]) bias_sums_ = Buffer(splits_ * args.grad_columns * accumulator_);
  const int64_t part_columns = ceil_div(args.grad_columns, parts_) + kPartColumns;
  buffers_.resize(tasks());
  for (TaskBuffers& buffers : buffers_) {
    buffers.columns = Buffer(part_columns * block_stride_ * table.operand_size);
    buffers.panels = Buffer(most_panels * panel_columns_ * block_stride_ * table.operand_size);
  }
}

void WeightGradient::run(int64_t task) {
  const int64_t split = task / parts_, part = task % parts_;
  const int64_t column_begin = part_begin(part), column_end = part_begin(part + 1);
  const int64_t row_begin = args_.rows * split / splits_;
  const int64_t row_end = args_.rows * (split + 1) / splits_;
  const TaskBuffers& buffers = buffers_[task];
  LinearStep step;
  step.rows = column_end - column_begin;
  for (int64_t row = row_begin; row < row_end; row += kBlockRows) {
    const int64_t count = std::min(kBlockRows, row_end - row);
    const void* const* grads = args_.grads + row;
    step.accumulate = row > row_begin;
    table_.pack_columns(grads, count, column_begin, column_end, block_stride_,
                        buffers.columns.get());
    if (args_.grad_bias[0]) {
      table_.sum_rows(grads, count, column_begin, column_end, step.accumulate,
                      bias_sums(split, column_begin));
    }
    for (int i = 0; i < args_.weights; ++i) {
      const WeightGradientArgs::Weight& weight = args_.weight[i];
      table_.pack_rows(weight.operands + row, count, weight.columns, buffers.panels.get());
      step.product = {{buffers.columns.get(), block_stride_, nullptr}, count, buffers.panels.get()};
      step.columns = weight.columns;
      step.panel_end = panels(i);
      if (has_sums()) {
        step.accumulator_out = {sums(i, split, column_begin), sums_stride(i), nullptr};
      } else {
        step.out = {advance(weight.grad_weight, column_begin * weight.columns, storage_),
                    weight.columns, nullptr};
      }
      table_.linear_step(step);
    }
  }
  if (!has_sums()) store_bias(column_begin, column_end);
}

template <typename A>
void add_to(void* sums, const void* other, int64_t n) {
  A* to = static_cast<A*>(sums);
  const A* from = static_cast<const A*>(other);
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

void add_to(void* sums, const void* other, int64_t n, int64_t accumulator) {
  if (accumulator == sizeof(double)) {
    add_to<double>(sums, other, n);
  } else {
    add_to<float>(sums, other, n);
  }
}

void WeightGradient::store(int64_t part) {
  const int64_t column_begin = part_begin(part), column_end = part_begin(part + 1);
  for (int i = 0; i < args_.weights; ++i) {
    const WeightGradientArgs::Weight& weight = args_.weight[i];
    for (int64_t c = column_begin; c < column_end; ++c) {
      for (int64_t split = 1; split < splits_; ++split) {
        add_to(sums(i, 0, c), sums(i, split, c), weight.columns, accumulator_);
      }
      table_.accumulator_to_storage(sums(i, 0, c), weight.columns,
                                    advance(weight.grad_weight, c * weight.columns, storage_));
    }
  }
  store_bias(column_begin, column_end);
}

void WeightGradient::store_bias(int64_t column_begin, int64_t column_end) const {
  if (!args_.grad_bias[0]) return;
  for (int64_t split = 1; split < splits_; ++split) {
    add_to(bias_sums(0, column_begin), bias_sums(split, column_begin), column_end - column_begin,
           accumulator_);
  }
  for (void* grad_bias : args_.grad_bias) {
    table_.accumulator_to_storage(bias_sums(0, column_begin), column_end - column_begin,
                                  advance(grad_bias, column_begin, storage_));
  }
}

// Multiply-adds of all rows.
int64_t work_of(const WeightGradientArgs& args) {
  int64_t columns = 0;
  for (int i = 0; i < args.weights; ++i) columns += args.weight[i].columns;
  return args.rows * args.grad_columns * columns;
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

void weight_gradient(const WeightGradientArgs& args, Isa isa, const Parallel& parallel) {
  if (args.rows == 0) {
    for (int i = 0; i < args.weights; ++i) {
      std::memset(args.weight[i].grad_weight, 0,
                  args.grad_columns * args.weight[i].columns * dtype_size(args.dtype));
    }
    for (void* grad_bias : args.grad_bias) {
      if (grad_bias) std::memset(grad_bias, 0, args.grad_columns * dtype_size(args.dtype));
    }
    return;
  }
  const Parallel threads = work_of(args) < kMinParallelWork ? Parallel{} : parallel;
  WeightGradient gradient(args, kernel_table(isa, args.dtype), threads.threads);
  threads.for_each(gradient.tasks(), [&](int64_t task) { gradient.run(task); });
  if (gradient.has_sums()) {
    threads.for_each(gradient.parts(), [&](int64_t part) { gradient.store(part); });
  }
}

void sample_weight_gradients(const WeightGradientArgs& args, int64_t samples,
                             const int64_t* first_row, Isa isa, const Parallel& parallel) {
  const Parallel threads = work_of(args) < kMinParallelWork ? Parallel{} : parallel;
  // Samples side by side; or, of few, one after the other by all threads.
  const bool few = samples < threads.threads;
  (few ? Parallel{} : threads).for_each(samples, [&](int64_t sample) {
    weight_gradient(args_of_sample(args, sample, first_row), isa, few ? threads : Parallel{});
  });
}

}  // namespace lstm_fused::cpu
