// SPDX-License-Identifier: BSD-3-Clause
// Plans of a layer's backward: what they must and must not choose. No threshold is repeated here:
// the shapes lie far from them.
#include <algorithm>
#include <string>

#include "cpu/gradients/plan.h"
#include "plans.h"

namespace lstm_fused::test {
namespace {

bool same_sums(const cpu::WeightGradientPlan& a, const cpu::WeightGradientPlan& b) {
  return a.isa == b.isa && a.threads == b.threads && a.block_rows == b.block_rows &&
         a.single_block == b.single_block && a.outer_products == b.outer_products;
}

void check_weight_gradient(const cpu::WeightGradientPlan& plan, int64_t rows, bool in_one_piece,
                           const cpu::LayerBackwardPlan& layer, DType dtype) {
  CHECK(plan.isa == layer.recurrence.isa);
  CHECK_EQ(plan.threads, layer.gradient_threads);
  CHECK_LE(plan.block_rows, rows);
  if (rows > 0) CHECK_LE(1, plan.block_rows);
  if (plan.single_block) CHECK(in_one_piece && rows == plan.block_rows && rows > 0);
  if (plan.outer_products) {
    CHECK(plan.single_block && rows <= cpu::max_unpacked_rows(dtype, plan.isa));
  }
}

// What holds for every backward of a layer, of rows of one length and of others.
void check_layer_backward(const LstmShape& shape, int64_t rows, DType dtype,
                          const CpuFacts& facts) {
  const Scope scope(name_of(shape), " M=", rows, " threads=", facts.threads);
  const cpu::LayerBackwardPlan plan = cpu::make_layer_backward_plan(shape, rows, dtype, facts);
  const int64_t all = std::max<int64_t>(shape.steps, 1);
  CHECK(same(plan.recurrence, cpu::make_backward_plan(shape, dtype, facts)));
  CHECK(same(plan.forward, cpu::make_forward_plan(shape, dtype, facts)));
  CHECK(1 <= plan.piece_steps && plan.piece_steps <= all);
  CHECK(plan.gradient_threads == 1 || plan.gradient_threads == facts.threads);
  const bool in_one_piece = plan.piece_steps == all;
  check_weight_gradient(plan.gate_weights, rows, in_one_piece, plan, dtype);
  if (shape.projection) {
    check_weight_gradient(plan.output_projection, rows, in_one_piece, plan, dtype);
  }
  const bool is_ragged = rows != shape.steps * shape.batch;
  const bool may_choose = !is_ragged && (shape.directions == 1 || dtype_size(dtype) > 2);
  for (int64_t wanted : {int64_t{1}, int64_t{3}, all, all + 1}) {
    const cpu::LayerBackwardPlan other =
        cpu::make_layer_backward_plan(shape, rows, dtype, facts, wanted);
    CHECK_EQ(other.piece_steps, may_choose ? std::min(wanted, all) : all);
    CHECK_EQ(other.gradient_threads, plan.gradient_threads);
  }
  // A pure function.
  const cpu::LayerBackwardPlan again = cpu::make_layer_backward_plan(shape, rows, dtype, facts);
  CHECK_EQ(again.piece_steps, plan.piece_steps);
  CHECK_EQ(again.gradient_threads, plan.gradient_threads);
  CHECK(same_sums(again.gate_weights, plan.gate_weights));
  CHECK(same_sums(again.output_projection, plan.output_projection));
}

void test_layer_backward() {
  const Isa best = cpu::available_isas().back();
  for (DType dtype : kDTypes) {
    const Scope scope(dtype_name(dtype));
    for (int64_t steps : {0, 1, 7, 300}) {
      for (int64_t batch : {0, 1, 13, 500}) {
        for (int64_t projection : {0, 9}) {
          for (int directions : {1, 2}) {
            for (int threads : {1, 2, 64}) {
              const LstmShape shape = shape_of(steps, batch, 20, 33, projection, directions);
              const int64_t rows = steps * batch;
              check_layer_backward(shape, rows, dtype, facts_of(best, threads));
              check_layer_backward(shape, rows / 2, dtype, facts_of(best, threads));
            }
          }
        }
      }
    }
    const auto plan_of = [&](const LstmShape& shape) {
      return cpu::make_layer_backward_plan(shape, shape.steps * shape.batch, dtype,
                                           facts_of(best, 8));
    };
    // A second thread costs more than it brings to little work.
    CHECK_EQ(plan_of(shape_of(1, 1, 8, 8)).gradient_threads, 1);
    CHECK_EQ(plan_of(shape_of(100, 64, 256, 256)).gradient_threads, 8);
    // Long sequences go in pieces, of more steps where these have fewer rows; short ones do not.
    const int64_t few = plan_of(shape_of(1000, 64, 64, 64)).piece_steps;
    CHECK(1 < few && few < plan_of(shape_of(1000, 4, 64, 64)).piece_steps);
    CHECK_EQ(plan_of(shape_of(3, 4, 64, 64)).piece_steps, 3);
    // Sums that come from memory take longer blocks than those of a cache.
    CHECK_LT(plan_of(shape_of(100, 64, 16, 16)).gate_weights.block_rows,
             plan_of(shape_of(100, 64, 1024, 1024)).gate_weights.block_rows);
    // One row is not packed, many are.
    CHECK(plan_of(shape_of(1, 1, 64, 64)).gate_weights.outer_products);
    CHECK(!plan_of(shape_of(1, 200, 64, 64)).gate_weights.outer_products);
  }
  const LstmShape shape = shape_of(5, 4, 8, 8);
  for (int64_t rows : {-1, 21}) {
    const auto plan = [&] {
      cpu::make_layer_backward_plan(shape, rows, DType::kFloat32, facts_of(best, 1));
    };
    CHECK_EQ(error_of(plan), text("data_rows must be between 0 and T*N = 20, got ", rows));
  }
}

}  // namespace
}  // namespace lstm_fused::test

int main() {
  lstm_fused::test::test_layer_backward();
  return lstm_fused::test::exit_status();
}
