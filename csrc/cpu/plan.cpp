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

// kMinWorkPerThread for products with unpacked weights, which wait for each weight to come from a
// cache: a core reads those of this many in 20 to 30 microseconds. Measured, a step of N=1 H=256:
// 50 microseconds on two threads, 69 on one.
constexpr int64_t kMinDotWorkPerThread = 250'000;

// Multiply-adds of one step below which a team of threads loses to one: a step of a team ends
// with a wait of 0.2 to 0.5 microseconds.
constexpr int64_t kMinStepWorkPerThread = 30'000;

// Rows in a group from which a pass over the weights is bound by arithmetic, not by the cache
// that they come from.
constexpr int64_t kMinGroupRows = 6;

// A team counts as even where its threads would have room for at most an eighth more panels than
// there are, if each had as many as the busiest: the others wait for that one at every step. No
// measurement of it is on record.
constexpr int64_t kEvenTeamDivisor = 8;

// Rows of a step from which its own product hides the reading of W_ih, so that x*W_ih is fused into
// the step; else rows of the input GEMM ahead of the steps, which then reads W_ih once for eight
// times the rows from which arithmetic bounds a pass. No measurement of it is on record.
constexpr int64_t kMinFusedRows = 2 * kMinGroupRows;
constexpr int64_t kInputGemmRows = 8 * kMinGroupRows;
// The part of the L2 cache that the input GEMM's result may fill, one half: the weights of the
// steps that read it pass through the other.
constexpr int64_t kInputGemmCacheDivisor = 2;

// Multiply-adds in whose time the lanes of a unit's dot products are summed up, for a row: an
// estimate.
constexpr int64_t kLaneSumWork = 20;

// L2 caches that the weights of a step may fill where each thread reads all of them. Larger ones
// come from a cache or memory that the threads share, which has less to give than they multiply.
// Measured, weights over 4 MiB: teams take 3 to 17 % less, at any T.
constexpr int64_t kMaxCachesOfGroup = 4;

// Rows up to which dot products with weights as they are cost less than packing these first. A dot
// product runs at 0.9 of a packed panel's rate with AVX-512, at 0.8 with fewer registers, so that
// packing pays early where a core's own cache holds the weights, and late where it must write them
// to memory. Converting each bfloat16 again for every few rows pays for next to none.
constexpr int64_t kMaxDotRowsOfCached = 32, kMaxDotRows = 128;
constexpr int64_t kMaxNarrowDotRowsOfCached = 8, kMaxNarrowDotRows = 32;
constexpr int64_t kMaxConvertedDotRows = 4;

// Passes over the weights up to which their reading costs less than packing would save: with few
// rows a step reads W_ih each time, and weights that no cache holds come in a less ordered way than
// panels.
constexpr int64_t kMaxDotPasses = 8, kMaxDotStepsOfLarge = 6;
constexpr int64_t kMinFreeDotBatch = 4;      // from which on passes do not matter
constexpr int64_t kLargeWeights = 32 << 20;  // bytes

// Rows up to which a backward's products, of whole rows of the weights, and its weight gradients,
// of whole rows of the data, cost less than packing these first. With float32 and H = 256 a
// backward of one row takes half as long, one of 32 rows two thirds, and one of 64 nine tenths or,
// with AVX2 and H = 64, longer. Each pass converts 16-bit weights anew: float16 by one instruction,
// where there is one; bfloat16 by several, as into pairs.
constexpr int64_t kMaxUnpackedRows = 32;
constexpr int64_t kMaxPairedRows = 8, kMaxNarrowPairedRows = 4;
constexpr int64_t kMaxEmulatedRows = 1;
static_assert(kMaxUnpackedRows <= kMaxOuterRows, "the kernels take no more");

// A step of one row reads the weights for that row alone: half as many rows pay for it.
constexpr int64_t kUnpackedRowsOfStep = 2;

struct DotLimits {
  int64_t rows, steps;
};

DotLimits dot_limits(const LstmShape& shape, DType dtype, Isa isa, const CpuFacts& facts) {
  const int64_t bytes =
      kGates * shape.hidden_size * (shape.input_size + shape.output_size) * dtype_size(dtype);
  const bool wide = isa == Isa::kAvx512 || isa == Isa::kAvx512Bf16;
  const bool converts = dtype == DType::kBFloat16 && isa != Isa::kAvx512Bf16;
  DotLimits limits;
  if (converts) {
    limits.rows = kMaxConvertedDotRows;
  } else if (bytes <= facts.l2_bytes) {
    limits.rows = wide ? kMaxDotRowsOfCached : kMaxNarrowDotRowsOfCached;
  } else {
    limits.rows = wide ? kMaxDotRows : kMaxNarrowDotRows;
  }
  limits.steps = limits.rows;
  if (shape.batch > 0 && shape.batch < kMinFreeDotBatch) {
    const int64_t passes = ceil_div(shape.batch, kernel_table(isa, dtype).dot_rows);
    limits.steps = std::min(limits.steps, kMaxDotPasses / passes);
  }
  if (bytes > kLargeWeights) limits.steps = std::min(limits.steps, kMaxDotStepsOfLarge);
  return limits;
}

// Whether so few units leave most lanes of a panel empty that dot products, which fill theirs from
// K, take fewer instructions: for a row, multiply-adds on panels against those of each unit's dot
// products and of summing up their lanes.
bool leaves_lanes_empty(const LstmShape& shape, int64_t width) {
  const int64_t dot = kGates * (ceil_div(shape.input_size, width) +  //
                                ceil_div(shape.output_size, width));
  return shape.hidden_size < width &&
         shape.hidden_size * (dot + kLaneSumWork) < kGates * (shape.input_size + shape.output_size);
}

// AVX512-BF16 has nothing to give to other types.
Isa isa_for(DType dtype, const CpuFacts& facts) {
  const bool gains_nothing = facts.isa == Isa::kAvx512Bf16 && dtype != DType::kBFloat16;
  return gains_nothing ? Isa::kAvx512 : facts.isa;
}

// Whether the threads should share the weights of a step, each with its own units, rather than its
// rows. A thread of a group reads all weights; a thread of a team reads the other's half of h, at
// every step.
bool prefers_team(int64_t weight_bytes, const CpuFacts& facts) {
  return weight_bytes > kMaxCachesOfGroup * facts.l2_bytes;
}

// prefers_team for so few steps that half of the weights come out of the cache of the thread that
// packed them, mostly. Measured over T = 1 … 100, N = 16 … 256, H = 64 … 512: a team wins up to
// T·N = 2·(D + H), by up to 5 times.
bool is_short(const LstmShape& shape, int64_t weights) {
  return shape.steps * shape.batch * shape.output_size <= weights / 2;
}

// Splits the batch, the directions and, where they do not suffice or may not be cut, the units over
// the threads.
void split_over_threads(const LstmShape& shape, const KernelTable& table, int64_t step_work,
                        bool prefer_team, int64_t max_team, const CpuFacts& facts, LstmPlan& plan) {
  const int64_t steps = shape.steps * shape.directions;
  const int64_t least = plan.dot ? kMinDotWorkPerThread : kMinWorkPerThread;
  int64_t threads = step_work * steps / least;
  if (plan.unpacked) {
    const int64_t rows = std::max<int64_t>(shape.batch, 1);
    const int64_t read = step_work / rows * ceil_div(rows, table.mr) * steps;
    threads = std::max(threads, read / kMinDotWorkPerThread);
  }
  threads = std::clamp<int64_t>(threads, 1, std::max(facts.threads, 1));
  if (threads == 1) return;
  const int64_t per_direction = ceil_div(threads, shape.directions);
  const int64_t team = std::min(per_direction, max_team);
  const bool even =
      ceil_div(max_team, team) * team * kEvenTeamDivisor <= max_team * (kEvenTeamDivisor + 1);
  const int64_t most = prefer_team && even ? ceil_div(per_direction, max_team) : per_direction;
  const int64_t groups = std::clamp<int64_t>(shape.batch / kMinGroupRows, 1, most);
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
  } else if (plan.team > 1 && shape.batch >= 2 * kMinGroupRows) {
    text << "units are split, so that each weight is read by one thread";
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

int64_t max_unpacked_steps(DType dtype, Isa isa) {
  return ceil_div(max_unpacked_rows(dtype, isa), kUnpackedRowsOfStep);
}

}  // namespace

LstmPlan make_forward_plan(const LstmShape& shape, DType dtype, const CpuFacts& facts,
                           CellKind cell) {
  check_shape(shape);
  LstmPlan plan;
  plan.isa = isa_for(dtype, facts);
  const KernelTable& table = kernel_table(plan.isa, dtype);
  const int64_t h = shape.hidden_size;
  const DotLimits limits = dot_limits(shape, dtype, plan.isa, facts);
  const bool few = shape.steps <= limits.steps && shape.steps * shape.batch <= limits.rows;
  plan.dot = !shape.projection && cell == CellKind::kPlain &&
             (few || leaves_lanes_empty(shape, table.vector_width));

  const int64_t weights = h * (kGates * (shape.input_size + shape.output_size) +
                               (shape.projection ? shape.output_size : 0));
  const int64_t weight_size = plan.dot ? dtype_size(dtype) : table.operand_size;
  const bool prefer_team = prefers_team(weights * weight_size, facts) || is_short(shape, weights);
  split_over_threads(shape, table, shape.batch * weights, prefer_team,
                     ceil_div(h, table.vector_width), facts, plan);
  if (plan.dot) return plan;

  // One product over several steps reads W_ih once for all of them; that pays where a step alone
  // has too few rows to hide that reading, and is needed where x must be converted.
  const bool converts = table.operand_size != dtype_size(dtype);
  const int64_t rows = std::max<int64_t>(1, ceil_div(shape.batch, plan.row_groups));
  if (converts || rows < kMinFusedRows || cell == CellKind::kNorms) {
    const int64_t row_bytes = ceil_div(kGates * h, plan.team) * accumulator_size(dtype);
    const int64_t fitting =
        std::max<int64_t>(1, facts.l2_bytes / kInputGemmCacheDivisor / (row_bytes * rows));
    const int64_t wanted = ceil_div(kInputGemmRows, rows);
    plan.input_gemm_steps = std::min({wanted, fitting, std::max<int64_t>(shape.steps, 1)});
  }
  return plan;
}

int64_t max_unpacked_rows(DType dtype, Isa isa) {
  const bool narrow = isa == Isa::kBaseline;
  if (dtype == DType::kBFloat16) return narrow ? kMaxNarrowPairedRows : kMaxPairedRows;
  if (dtype == DType::kFloat16 && narrow) return kMaxEmulatedRows;
  return kMaxUnpackedRows;
}

bool reads_weights_unpacked(const LstmShape& shape, DType dtype, Isa isa) {
  return shape.steps <= max_unpacked_steps(dtype, isa) &&
         shape.steps * shape.batch <= max_unpacked_rows(dtype, isa);
}

LstmPlan make_backward_plan(const LstmShape& shape, DType dtype, const CpuFacts& facts) {
  check_shape(shape);
  LstmPlan plan;
  plan.isa = isa_for(dtype, facts);
  plan.unpacked = reads_weights_unpacked(shape, dtype, plan.isa);
  const KernelTable& table = kernel_table(plan.isa, dtype);
  const int64_t weights =
      shape.hidden_size * shape.output_size * (kGates + (shape.projection ? 1 : 0));
  const int64_t panels = ceil_div(shape.hidden_size, table.nr());
  split_over_threads(shape, table, shape.batch * weights,
                     prefers_team(weights * table.operand_size, facts), panels, facts, plan);
  return plan;
}

std::string describe_backward(const LstmPlan& plan) {
  std::ostringstream text;
  text << isa_name(plan.isa) << ", " << plan.row_groups << " row group(s) x team of " << plan.team;
  if (plan.unpacked) text << ", weights as they are";
  return text.str();
}

std::string describe_forward(const LstmPlan& plan) {
  std::ostringstream text;
  text << describe_backward(plan) << ", ";
  if (plan.dot) {
    text << "dot products on unpacked weights";
  } else if (plan.input_gemm_steps > 0) {
    text << "packed panels, x*W_ih for " << plan.input_gemm_steps << " step(s) at a time";
  } else {
    text << "packed panels, x*W_ih fused into the step";
  }
  return text.str();
}

std::string explain_forward(const LstmShape& shape, DType dtype, const CpuFacts& facts,
                            CellKind cell) {
  const LstmPlan plan = make_forward_plan(shape, dtype, facts, cell);
  const int64_t rows = ceil_div(shape.batch, plan.row_groups);
  std::ostringstream text;
  text << describe_forward(plan) << " (" << explain_threads(plan, shape, facts);
  if (plan.dot) {
    const DotLimits limits = dot_limits(shape, dtype, plan.isa, facts);
    text << "; packing pays from T*N = " << limits.rows + 1;
    if (limits.steps < limits.rows) text << " or T = " << limits.steps + 1;
    text << " on";
  } else if (cell == CellKind::kNorms) {
    text << "; x*W_ih is normalised by itself";
  } else if (plan.input_gemm_steps > 0 && rows >= kMinFusedRows) {
    text << "; x is converted for these kernels";
  } else if (plan.input_gemm_steps > 0) {
    text << "; " << rows << " row(s) a step are too few to read W_ih for each";
  } else {
    text << "; " << rows << " rows a step hide the reading of W_ih";
  }
  text << ")";
  return text.str();
}

std::string explain_backward(const LstmPlan& plan, const LstmShape& shape, DType dtype,
                             const CpuFacts& facts) {
  std::ostringstream text;
  text << explain_threads(plan, shape, facts);
  if (plan.unpacked) {
    const int64_t rows = max_unpacked_rows(dtype, plan.isa);
    const int64_t steps = max_unpacked_steps(dtype, plan.isa);
    text << "; packing pays from T*N = " << rows + 1;
    if (steps < rows) text << " or T = " << steps + 1;
    text << " on";
  }
  return text.str();
}

}  // namespace lstm_fused::cpu
