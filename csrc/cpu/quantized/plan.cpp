// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/quantized/plan.h"

#include <algorithm>
#include <sstream>

#include "common/integers.h"

namespace lstm_fused::cpu::quantized {
namespace {

// Bytes of weights, read in all steps of a call, below which a second thread costs more than it
// brings: waking one takes 5 to 50 microseconds, in which a core reads so many from its third
// cache.
constexpr int64_t kMinBytesPerThread = 750'000;

// Bytes of weights of one step below which a team of threads loses to one: a step of a team takes a
// microsecond more than its share, for the wait, for the other half of h, which comes from another
// core, and since every worker prepares all of h for itself. Measured, Zen 5, two threads against
// one, N = 1: int8 H=128 136 and 101 microseconds a hundred steps, H=192 198 and 200, H=256 256 and
// 329; bfloat16 H=128 172 and 154, H=192 273 and 321.
constexpr int64_t kMinStepBytesPerThread = 144 << 10;

// Rows of the input GEMM ahead of the steps, which reads W_ih once for three of them.
constexpr int64_t kInputGemmRows = 48;
// Its result has this share of the L2 cache.
constexpr int64_t kInputGemmCacheDivisor = 4;

int64_t weight_bytes(WeightType type) { return type == WeightType::kInt8 ? 1 : 2; }

}  // namespace

QuantizedPlan make_quantized_plan(const LstmShape& shape, WeightType type, const CpuFacts& facts) {
  check_shape(shape);
  QuantizedPlan plan;
  plan.isa = quantized_isa(facts);
  LstmPlan& division = plan.division;
  const int64_t h = shape.hidden_size, rows = std::max<int64_t>(shape.batch, 1);
  const int64_t weights = h * (kGates * (shape.input_size + shape.output_size) +
                               (shape.projection ? shape.output_size : 0));
  const int64_t bytes = weights * weight_bytes(type);

  // Split the directions, then the batch, then the units over the threads.
  const int64_t wanted = bytes * rows * shape.steps * shape.directions / kMinBytesPerThread;
  const int64_t threads = std::clamp<int64_t>(wanted, 1, std::max(facts.threads, 1));
  const int64_t per_direction = ceil_div(threads, shape.directions);
  // NOTE: threads of a group each read all weights, those of a team their own. Where a core's cache
  // holds them all, groups of a single row win too, since they never wait. Measured, two groups
  // against a team of two: N=4 H=64 94 and 183 microseconds, N=8 H=128 102 and 130 (int8).
  const bool prefers_team = bytes > facts.l2_bytes;
  const int64_t groups = prefers_team ? 1 : std::min(rows, per_direction);
  division.row_groups = static_cast<int>(groups);
  const int64_t step_threads = bytes * rows / groups / kMinStepBytesPerThread;
  division.team = static_cast<int>(
      std::max<int64_t>(1, std::min({per_direction / groups, step_threads, ceil_div(h, kUnits)})));

  // Read W_ih once for several steps.
  const int64_t group_rows = ceil_div(rows, groups);
  const int64_t row_bytes = ceil_div(kGates * h, division.team) * int64_t{sizeof(float)};
  const int64_t fitting = facts.l2_bytes / kInputGemmCacheDivisor / (row_bytes * group_rows);
  division.input_gemm_steps =
      std::max<int64_t>(1, std::min({ceil_div(kInputGemmRows, group_rows), fitting, shape.steps}));
  return plan;
}

std::string describe_quantized(const QuantizedPlan& plan, WeightType type) {
  std::ostringstream text;
  text << quantized_isa_name(plan.isa) << ", " << weight_type_name(type) << " weights, "
       << plan.division.row_groups << " row group(s) x team of " << plan.division.team
       << ", x*W_ih for " << plan.division.input_gemm_steps << " step(s) at a time";
  return text.str();
}

}  // namespace lstm_fused::cpu::quantized
