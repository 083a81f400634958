// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/plan.h"

#include <algorithm>
#include <sstream>

#include "common/integers.h"

namespace lstm_fused::cpu {
namespace {

// Multiply-adds below which a second thread costs more than it brings: waking one takes 5 to 50
// microseconds, in which a core does some 10^6.
constexpr int64_t kMinWorkPerThread = 1'000'000;

// The same for dot products on unpacked weights, which wait for each weight to come from a cache: a
// core reads those of this many in 20 to 30 microseconds.
constexpr int64_t kMinDotWorkPerThread = 250'000;

// Multiply-adds of one step below which a team of threads loses to one: a step of a team ends
// with a wait of 0.2 to 0.5 microseconds.
constexpr int64_t kMinStepWorkPerThread = 30'000;

// Rows in a group from which a pass over the weights is bound by arithmetic, not by the cache
// that they come from.
constexpr int64_t kMinGroupRows = 6;

// Packing reads and writes the weights once, at about the price of three dot products with them.
constexpr int64_t kMaxDotRows = 8;
// Packed weights that no cache holds, and whose memory is fresh at each call, cost three times
// that.
constexpr int64_t kMaxDotRowsOfLarge = 24;
constexpr int64_t kLargeWeights = 32 << 20;  // bytes

int64_t max_dot_rows(const LstmShape& shape, DType dtype) {
  const int64_t weights = kGates * shape.hidden_size * (shape.input_size + shape.output_size);
  return weights * dtype_size(dtype) > kLargeWeights ? kMaxDotRowsOfLarge : kMaxDotRows;
}

// AVX512-BF16 has nothing to give to other types.
Isa isa_for(DType dtype, const CpuFacts& facts) {
  const bool plain = facts.isa == Isa::kAvx512Bf16 && dtype != DType::kBFloat16;
  return plain ? Isa::kAvx512 : facts.isa;
}

// Splits the batch, the directions and, where they do not suffice, the units over the threads.
void split_over_threads(const LstmShape& shape, int64_t step_work, int64_t max_team,
                        const CpuFacts& facts, LstmPlan& plan) {
  const int64_t work = step_work * shape.steps * shape.directions;
  const int64_t least = plan.dot ? kMinDotWorkPerThread : kMinWorkPerThread;
  const int64_t threads = std::clamp<int64_t>(work / least, 1, std::max(facts.threads, 1));
  if (threads == 1) return;
  const int64_t per_direction = ceil_div(threads, shape.directions);
  const int64_t groups = std::clamp<int64_t>(shape.batch / kMinGroupRows, 1, per_direction);
  plan.row_groups = static_cast<int>(groups);
  const int64_t step_threads = step_work / groups / kMinStepWorkPerThread;
  plan.team = static_cast<int>(
      std::max<int64_t>(1, std::min({per_direction / groups, step_threads, max_team})));
}

// Why the threads are split as they are.
std::string explain_threads(const LstmPlan& plan, const LstmShape& shape, const CpuFacts& facts) {
  const int64_t used = int64_t{1} * plan.row_groups * plan.team * shape.directions;
  std::ostringstream text;
  if (facts.threads <= 1) {
    text << "one thread allowed";
  } else if (plan.team > 1) {
    text << "fewer than " << kMinGroupRows << " rows for each thread, so the units are split";
  } else if (plan.row_groups > 1) {
    text << "rows enough for each thread";
  } else if (used > 1) {
    text << "a direction for each thread";
  } else {
    text << "too little work for a second thread";
  }
  return text.str();
}

}  // namespace

LstmPlan make_forward_plan(const LstmShape& shape, DType dtype, const CpuFacts& facts) {
  check_shape(shape);
  LstmPlan plan;
  plan.isa = isa_for(dtype, facts);
  const KernelTable& table = kernel_table(plan.isa, dtype);
  const int64_t h = shape.hidden_size;
  plan.dot = !shape.projection && shape.steps * shape.batch <= max_dot_rows(shape, dtype);

  const int64_t step_work = shape.batch * h *
                            (kGates * (shape.input_size + shape.output_size) +
                             (shape.projection ? shape.output_size : 0));
  split_over_threads(shape, step_work, ceil_div(h, table.vector_width), facts, plan);
  if (plan.dot) return plan;

  // One product over several steps reads W_ih once for all of them; that pays where a step alone
  // has too few rows to hide that reading. Its result should stay in half of the L2 cache.
  const bool converts = table.operand_size != dtype_size(dtype);
  const int64_t rows = std::max<int64_t>(1, ceil_div(shape.batch, plan.row_groups));
  if (converts || rows < 2 * kMinGroupRows) {
    const int64_t row_bytes = ceil_div(kGates * h, plan.team) * accumulator_size(dtype);
    const int64_t fitting = std::max<int64_t>(1, facts.l2_bytes / 2 / (row_bytes * rows));
    const int64_t wanted = ceil_div(8 * kMinGroupRows, rows);
    plan.projection_steps = std::min({wanted, fitting, std::max<int64_t>(shape.steps, 1)});
  }
  return plan;
}

LstmPlan make_backward_plan(const LstmShape& shape, DType dtype, const CpuFacts& facts) {
  check_shape(shape);
  LstmPlan plan;
  plan.isa = isa_for(dtype, facts);
  const KernelTable& table = kernel_table(plan.isa, dtype);
  const int64_t step_work =
      shape.batch * shape.hidden_size * shape.output_size * (kGates + (shape.projection ? 1 : 0));
  const int64_t panels = ceil_div(shape.hidden_size, kPanelSlots * table.vector_width);
  split_over_threads(shape, step_work, panels, facts, plan);
  return plan;
}

std::string describe_backward(const LstmPlan& plan) {
  std::ostringstream text;
  text << isa_name(plan.isa) << ", " << plan.row_groups << " row group(s) x team of " << plan.team;
  return text.str();
}

std::string describe_forward(const LstmPlan& plan) {
  std::ostringstream text;
  text << describe_backward(plan) << ", ";
  if (plan.dot) {
    text << "dot products on unpacked weights";
  } else if (plan.projection_steps > 0) {
    text << "packed panels, x*W_ih for " << plan.projection_steps << " step(s) at a time";
  } else {
    text << "packed panels, x*W_ih fused into the step";
  }
  return text.str();
}

std::string explain_forward(const LstmShape& shape, DType dtype, const CpuFacts& facts) {
  const LstmPlan plan = make_forward_plan(shape, dtype, facts);
  const int64_t rows = ceil_div(shape.batch, plan.row_groups);
  std::ostringstream text;
  text << describe_forward(plan) << " (" << explain_threads(plan, shape, facts);
  if (plan.dot) {
    text << "; packing pays from T*N = " << max_dot_rows(shape, dtype) + 1 << " on";
  } else if (plan.projection_steps > 0 && rows >= 2 * kMinGroupRows) {
    text << "; x is converted for these kernels";
  } else if (plan.projection_steps > 0) {
    text << "; " << rows << " row(s) a step are too few to read W_ih for each";
  } else {
    text << "; " << rows << " rows a step hide the reading of W_ih";
  }
  text << ")";
  return text.str();
}

std::string explain_backward(const LstmShape& shape, DType dtype, const CpuFacts& facts) {
  const LstmPlan plan = make_backward_plan(shape, dtype, facts);
  return describe_backward(plan) + " (" + explain_threads(plan, shape, facts) + ")";
}

}  // namespace lstm_fused::cpu
