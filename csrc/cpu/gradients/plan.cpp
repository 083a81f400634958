// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/gradients/plan.h"

#include <algorithm>
#include <sstream>

#include "common/error.h"
#include "common/integers.h"

namespace lstm_fused::cpu {
namespace {

// Rows of data in one pass: long enough that reading and writing the sums is 1 % of it, short
// enough that a panel of it, 64 KiB, is read from the L2 cache. Measured: blocks of 128 rows lose
// 5 %, blocks of 384 gain nothing.
constexpr int64_t kBlockRows = 256;
// Rows of data in one pass where a thread's sums are too many for its L2 cache, so that they come
// from memory. Measured: 1 to 4 % less of training from H = 200 on than with 256.
constexpr int64_t kLargeBlockRows = 1024;
constexpr int64_t kMaxCachedSums = 1 << 20;  // bytes

// Rows of data in a piece, rounded down to whole steps: one or two blocks, and work enough between
// two barriers of all threads, 5 microseconds each. Measured, training in pieces against all steps
// at once: N=64 T=28 H=128 6.0 ms (7.7), N=64 T=100 H=128 28.5 ms (35.9).
constexpr int64_t kMinPieceRows = 512;
// Bytes of a piece's gate gradients up to which it takes more rows: the L2 cache of one core.
constexpr int64_t kPieceBytes = 1 << 20;

// Multiply-adds below which one thread does what follows the recurrence: waking a second one takes
// 5 to 50 microseconds, in which a core does some 10^6.
constexpr int64_t kMinParallelWork = 1'000'000;

int64_t block_rows_of(int64_t sums, DType dtype) {
  return sums * accumulator_size(dtype) > kMaxCachedSums ? kLargeBlockRows : kBlockRows;
}

bool is_ragged(const LstmShape& shape, int64_t data_rows) {
  return data_rows != shape.steps * shape.batch;
}

int64_t choose_piece_steps(const LstmShape& shape, int64_t data_rows, DType dtype, int64_t wanted) {
  const int64_t all = std::max<int64_t>(shape.steps, 1);
  // NOTE: the threads would get unequal numbers of ragged rows in each piece.
  if (is_ragged(shape, data_rows) || sums_directions_at_once(shape, dtype)) return all;
  if (wanted > 0) return std::min(wanted, all);
  const int64_t row_bytes = kGates * shape.hidden_size * dtype_size(dtype);
  const int64_t sums = kGates * shape.hidden_size * (shape.input_size + shape.output_size);
  const int64_t rows =
      std::max({kMinPieceRows, kPieceBytes / row_bytes, block_rows_of(sums, dtype)});
  return std::clamp<int64_t>(rows / std::max<int64_t>(shape.batch, 1), 1, all);
}

std::string describe_blocks(const WeightGradientPlan& plan) {
  std::ostringstream text;
  if (plan.outer_products) {
    text << "outer products of unpacked rows";
  } else if (plan.single_block) {
    text << "one block";
  } else {
    text << "blocks of " << plan.block_rows << " rows";
  }
  return text.str();
}

std::string explain_pieces(const LayerBackwardPlan& plan, const LstmShape& shape, int64_t data_rows,
                           DType dtype) {
  if (is_ragged(shape, data_rows)) return "rows differ in length";
  if (sums_directions_at_once(shape, dtype)) return "both directions' 16-bit grad_x is one sum";
  if (plan.piece_steps >= shape.steps) return "all gate gradients fit a cache or a block";
  return "a piece's gate gradients stay in a cache";
}

}  // namespace

int gradient_threads(int64_t work, int threads) {
  return work < kMinParallelWork ? 1 : std::max(threads, 1);
}

bool sums_directions_at_once(const LstmShape& shape, DType dtype) {
  return shape.directions == 2 && dtype_size(dtype) != accumulator_size(dtype);
}

WeightGradientPlan make_weight_gradient_plan(int64_t rows, int64_t sums, bool in_one_piece,
                                             DType dtype, Isa isa, int threads) {
  WeightGradientPlan plan;
  plan.isa = isa;
  plan.threads = threads;
  plan.block_rows = std::min(block_rows_of(sums, dtype), rows);
  plan.single_block = in_one_piece && rows > 0 && rows <= plan.block_rows;
  plan.outer_products = plan.single_block && rows <= max_unpacked_rows(dtype, isa);
  return plan;
}

LayerBackwardPlan make_layer_backward_plan(const LstmShape& shape, int64_t data_rows, DType dtype,
                                           const CpuFacts& facts, int64_t piece_steps) {
  LayerBackwardPlan plan;
  plan.recurrence = make_backward_plan(shape, dtype, facts);
  plan.forward = make_forward_plan(shape, dtype, facts);
  LSTM_CHECK(data_rows >= 0 && data_rows <= shape.steps * shape.batch,
             "data_rows must be between 0 and T*N = ", shape.steps * shape.batch, ", got ",
             data_rows);
  plan.piece_steps = choose_piece_steps(shape, data_rows, dtype, piece_steps);
  const int64_t gates = kGates * shape.hidden_size;
  const int64_t sums = gates * (shape.input_size + shape.output_size);
  plan.gradient_threads = gradient_threads(data_rows * sums, facts.threads);
  const bool in_one_piece = plan.piece_steps >= shape.steps;
  const auto weight_plan = [&](int64_t weight_sums) {
    return make_weight_gradient_plan(data_rows, weight_sums, in_one_piece, dtype,
                                     plan.recurrence.isa, plan.gradient_threads);
  };
  plan.gate_weights = weight_plan(sums);
  if (shape.projection) plan.output_projection = weight_plan(shape.output_size * shape.hidden_size);
  return plan;
}

std::string describe_layer_backward(const LayerBackwardPlan& plan, const LstmShape& shape) {
  std::ostringstream text;
  text << describe_backward(plan.recurrence) << ", ";
  if (plan.piece_steps >= shape.steps) {
    text << "all steps in one piece";
  } else {
    text << "pieces of " << plan.piece_steps << " step(s)";
  }
  text << ", gradients by " << plan.gradient_threads << " thread(s), of weights in "
       << describe_blocks(plan.gate_weights);
  if (shape.projection) text << ", of W_hr in " << describe_blocks(plan.output_projection);
  return text.str();
}

std::string explain_layer_backward(const LstmShape& shape, int64_t data_rows, DType dtype,
                                   const CpuFacts& facts) {
  const LayerBackwardPlan plan = make_layer_backward_plan(shape, data_rows, dtype, facts);
  std::ostringstream text;
  text << describe_layer_backward(plan, shape) << " ("
       << explain_backward(plan.recurrence, shape, dtype, facts) << "; "
       << explain_pieces(plan, shape, data_rows, dtype) << ")";
  return text.str();
}

}  // namespace lstm_fused::cpu
