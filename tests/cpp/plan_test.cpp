// SPDX-License-Identifier: BSD-3-Clause
// Plans: what they must and must not choose for tables of shapes and processors, what they say of
// themselves, and the choice of an instruction set. No threshold is repeated here, for they are
// tuned: the shapes lie far from them.
#include "cpu/plan.h"

#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "cpu/gradients/plan.h"
#include "plans.h"

namespace lstm_fused::test {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What holds for every plan. `panels`: how many a team can share.
void check_bounds(const LstmPlan& plan, const LstmShape& shape, const CpuFacts& facts,
                  int64_t panels) {
  CHECK(plan.isa <= facts.isa);
  CHECK_LE(1, plan.row_groups);
  CHECK_LE(1, plan.team);
  CHECK_LE(plan.row_groups, std::max<int64_t>(shape.batch, 1));
  CHECK_LE(plan.team, std::max<int64_t>(panels, 1));
  // No more threads than there are, but for a remainder among the directions.
  CHECK_LE(plan.row_groups * plan.team * shape.directions,
           std::max(facts.threads, 1) + shape.directions - 1);
  CHECK_LE(0, plan.input_gemm_steps);
  CHECK_LE(plan.input_gemm_steps, std::max<int64_t>(shape.steps, 1));
}

void test_bounds() {
  for (Isa isa : cpu::available_isas()) {
    for (DType dtype : kDTypes) {
      const cpu::KernelTable& table = cpu::kernel_table(isa, dtype);
      for (int64_t steps : {0, 1, 7, 300}) {
        for (int64_t batch : {0, 1, 2, 8, 13, 64, 500}) {
          for (int64_t hidden : {1, 17, 128, 1000}) {
            for (int directions : {1, 2}) {
              for (int64_t projection : {int64_t{0}, ceil_div(hidden, 3)}) {
                for (int threads : {0, 1, 2, 3, 5, 64}) {
                  const LstmShape shape =
                      shape_of(steps, batch, hidden / 2, hidden, projection, directions);
                  const CpuFacts facts = facts_of(isa, threads);
                  const Scope scope(name_of(shape), " threads=", threads, ", ", cpu::isa_name(isa),
                                    ", ", dtype_name(dtype));
                  const LstmPlan forward = cpu::make_forward_plan(shape, dtype, facts);
                  const LstmPlan backward = cpu::make_backward_plan(shape, dtype, facts);
                  check_bounds(forward, shape, facts, ceil_div(hidden, table.vector_width));
                  check_bounds(backward, shape, facts, ceil_div(hidden, table.nr()));
                  // The dot kernel has no projection; x of another type is converted ahead.
                  if (shape.projection) CHECK(!forward.dot);
                  CHECK(!backward.dot && backward.input_gemm_steps == 0);
                  CHECK(!forward.unpacked);
                  // Input gradients, which have no plan of their own, go the same way.
                  CHECK_EQ(backward.unpacked,
                           cpu::reads_weights_unpacked(shape, dtype, backward.isa));
                  if (backward.unpacked) {
                    CHECK_LE(steps * batch, cpu::max_unpacked_rows(dtype, backward.isa));
                  }
                  if (!forward.dot && table.operand_size != dtype_size(dtype)) {
                    CHECK_LE(1, forward.input_gemm_steps);
                  }
                  if (threads <= 1) {
                    CHECK(forward.row_groups == 1 && forward.team == 1);
                    CHECK(backward.row_groups == 1 && backward.team == 1);
                  }
                  // A pure function.
                  CHECK(same(forward, cpu::make_forward_plan(shape, dtype, facts)));
                  CHECK(same(backward, cpu::make_backward_plan(shape, dtype, facts)));
                }
              }
            }
          }
        }
      }
    }
  }
}

void test_choices() {
  for (Isa isa : cpu::available_isas()) {
    for (DType dtype : kDTypes) {
      const Scope scope(cpu::isa_name(isa), ", ", dtype_name(dtype));
      const auto forward = [&](const LstmShape& shape, int threads) {
        return cpu::make_forward_plan(shape, dtype, facts_of(isa, threads));
      };
      const auto backward = [&](const LstmShape& shape, int threads) {
        return cpu::make_backward_plan(shape, dtype, facts_of(isa, threads));
      };
      // Small work stays on one thread.
      for (const LstmShape& shape : {shape_of(1, 1, 8, 8), shape_of(10, 2, 4, 16),
                                     shape_of(1, 1, 64, 64), shape_of(3, 0, 64, 64)}) {
        const Scope small(name_of(shape));
        for (const LstmPlan& plan : {forward(shape, 64), backward(shape, 64)}) {
          CHECK_EQ(plan.row_groups, 1);
          CHECK_EQ(plan.team, 1);
        }
      }
      // A large step of one row is shared by a team, a large batch cut into groups.
      for (const LstmPlan& plan :
           {forward(shape_of(100, 1, 1024, 1024), 2), backward(shape_of(100, 1, 1024, 1024), 2)}) {
        CHECK_EQ(plan.row_groups, 1);
        CHECK_EQ(plan.team, 2);
      }
      for (const LstmPlan& plan :
           {forward(shape_of(100, 64, 256, 256), 2), backward(shape_of(100, 64, 256, 256), 2)}) {
        CHECK_EQ(plan.row_groups, 2);
        CHECK_EQ(plan.team, 1);
      }
      // Two directions already take two threads.
      for (const LstmPlan& plan : {forward(shape_of(100, 64, 256, 256, 0, 2), 2),
                                   backward(shape_of(100, 64, 256, 256, 0, 2), 2)}) {
        CHECK_EQ(plan.row_groups, 1);
        CHECK_EQ(plan.team, 1);
      }
      // Many threads are used, one way or the other.
      for (const LstmPlan& plan : {forward(shape_of(200, 256, 512, 512), 16),
                                   backward(shape_of(200, 256, 512, 512), 16)}) {
        CHECK_LE(8, plan.row_groups * plan.team);
      }
      // Weights are read once, by one thread of a team, where packing them or fetching them from
      // memory costs most of the time: in few steps, or if they are large.
      for (const LstmPlan& plan :
           {forward(shape_of(10, 16, 256, 256), 2), forward(shape_of(100, 64, 1024, 1024), 2),
            backward(shape_of(100, 64, 1024, 1024), 2)}) {
        CHECK_EQ(plan.row_groups, 1);
        CHECK_EQ(plan.team, 2);
      }
      // Not where one thread would have twice the panels of the other.
      const int64_t three_panels = 3 * cpu::kernel_table(isa, dtype).vector_width;
      CHECK_EQ(forward(shape_of(10, 16, 2048, three_panels), 2).row_groups, 2);

      // A call of few rows uses the weights as they are; one of many packs them.
      const bool converts_weights = dtype == DType::kBFloat16 && isa != Isa::kAvx512Bf16;
      const int64_t most = converts_weights ? 4 : 8;
      for (int64_t steps : {1, 2, 8}) {
        for (int64_t batch = 1; steps * batch <= most; ++batch) {
          CHECK(forward(shape_of(steps, batch, 64, 64), 1).dot);
          CHECK(!forward(shape_of(steps, batch, 64, 64, 32), 1).dot);
        }
      }
      CHECK_EQ(forward(shape_of(2, 16, 512, 512), 1).dot, !converts_weights);
      // A backward too: of one row with every type, of several where weights need no conversion or
      // an instruction does it.
      const bool by_instruction =
          dtype != DType::kBFloat16 && (dtype != DType::kFloat16 || isa != Isa::kBaseline);
      for (int64_t hidden : {16, 64, 512, 1024}) {
        CHECK(backward(shape_of(1, 1, hidden, hidden), 1).unpacked);
        CHECK(backward(shape_of(1, 1, hidden, hidden, hidden / 2), 1).unpacked);
        CHECK_EQ(backward(shape_of(1, 16, hidden, hidden), 1).unpacked, by_instruction);
        CHECK_EQ(backward(shape_of(8, 1, hidden, hidden), 1).unpacked, by_instruction);
        CHECK(!backward(shape_of(1, 200, hidden, hidden), 1).unpacked);
        CHECK(!backward(shape_of(100, 1, hidden, hidden), 1).unpacked);
      }
      // Reading weights that no core's own cache holds is work for two threads.
      CHECK_EQ(backward(shape_of(1, 1, 1024, 1024), 2).team, 2);
      CHECK_EQ(backward(shape_of(1, 1, 128, 128), 2).team, 1);
      CHECK(!forward(shape_of(2, 128, 512, 512), 1).dot);
      CHECK(!forward(shape_of(9, 2, 512, 512), 1).dot);    // W_ih, at each step
      CHECK(!forward(shape_of(7, 4, 2048, 2048), 1).dot);  // from memory, at each step
      CHECK(!forward(shape_of(100, 64, 64, 64), 1).dot);
      CHECK(!forward(shape_of(1, 1000, 64, 64), 1).dot);
      CHECK(!forward(shape_of(1000, 1, 64, 64), 1).dot);
      // Any number of rows, where panels would be empty but for a unit or two.
      CHECK(forward(shape_of(100, 64, 177, 1), 1).dot);
      CHECK(!forward(shape_of(100, 64, 1, 1), 1).dot);
      // A step of one row is too small to read W_ih for; one of many is not, unless x must be
      // converted.
      CHECK_LE(2, forward(shape_of(100, 1, 64, 64), 1).input_gemm_steps);
      const bool converts = cpu::kernel_table(isa, dtype).operand_size != dtype_size(dtype);
      if (!converts) CHECK_EQ(forward(shape_of(100, 500, 64, 64), 1).input_gemm_steps, 0);
    }
  }
}

void test_descriptions() {
  std::set<std::string> forwards, backwards;
  int count = 0, backward_count = 0;
  for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
    for (int row_groups : {1, 37}) {
      for (int team : {1, 41}) {
        LstmPlan plan;
        plan.isa = isa;
        plan.row_groups = row_groups;
        plan.team = team;
        const std::string backward = cpu::describe_backward(plan);
        backwards.insert(backward);
        ++backward_count;
        std::vector<std::string> texts = {backward};
        CHECK(!mentions(backward, "as they are"));
        plan.unpacked = true;
        texts.push_back(cpu::describe_backward(plan));
        CHECK(mentions(texts.back(), "weights as they are"));
        backwards.insert(texts.back());
        ++backward_count;
        plan.unpacked = false;
        for (int64_t input_gemm_steps : {0, 1, 43}) {
          plan.input_gemm_steps = input_gemm_steps;
          texts.push_back(cpu::describe_forward(plan));
          forwards.insert(texts.back());
          ++count;
          CHECK(!mentions(texts.back(), "dot"));
          if (input_gemm_steps > 0) CHECK(mentions(texts.back(), std::to_string(input_gemm_steps)));
        }
        plan.input_gemm_steps = 0;
        plan.dot = true;
        texts.push_back(cpu::describe_forward(plan));
        forwards.insert(texts.back());
        ++count;
        CHECK(mentions(texts.back(), "dot"));
        for (const std::string& line : texts) {
          const Scope scope(line);
          CHECK(mentions(line, cpu::isa_name(isa)));
          CHECK(mentions(line, text(row_groups)) && mentions(line, text(team)));
          CHECK(!mentions(line, "\n"));
        }
      }
    }
  }
  // Different plans have different descriptions.
  CHECK_EQ(static_cast<int>(forwards.size()), count);
  CHECK_EQ(static_cast<int>(backwards.size()), backward_count);
}

// Only bfloat16 has kernels of its own in avx512_bf16.
void test_isa_of_types() {
  const LstmShape shape = {10, 4, 8, 16, 16, 1, false};
  for (DType dtype : kDTypes) {
    const Isa wanted = dtype == DType::kBFloat16 ? Isa::kAvx512Bf16 : Isa::kAvx512;
    if (cpu::available_isas().back() < Isa::kAvx512Bf16) continue;
    const CpuFacts facts = facts_of(Isa::kAvx512Bf16, 1);
    CHECK(cpu::make_forward_plan(shape, dtype, facts).isa == wanted);
    CHECK(cpu::make_backward_plan(shape, dtype, facts).isa == wanted);
  }
}

void test_shapes_that_are_refused() {
  const LstmShape good = {10, 4, 8, 16, 16, 1, false};
  check_shape(good);
  const auto refused = [&](const char* part, auto change) {
    LstmShape shape = good;
    change(shape);
    const CpuFacts facts = facts_of(Isa::kBaseline, 2);
    const Scope scope(name_of(shape));
    CHECK(mentions(error_of([&] { check_shape(shape); }), part));
    CHECK(mentions(error_of([&] { cpu::make_forward_plan(shape, DType::kFloat32, facts); }), part));
    CHECK(
        mentions(error_of([&] { cpu::make_backward_plan(shape, DType::kFloat32, facts); }), part));
  };
  refused("hidden_size", [](LstmShape& s) { s.hidden_size = s.output_size = 0; });
  refused("without projection, got 15", [](LstmShape& s) { s.output_size = 15; });
  refused("without projection, got 17", [](LstmShape& s) { s.output_size = 17; });
  refused("directions", [](LstmShape& s) { s.directions = 0; });
  refused("directions", [](LstmShape& s) { s.directions = 3; });
  refused("at least 0", [](LstmShape& s) { s.batch = -1; });
}

void test_explanations() {
  const LstmShape big = {100, 64, 128, 128, 128, 1, false};
  const LstmShape one = {100, 1, 512, 512, 512, 1, false};
  const LstmShape both = {100, 2, 128, 128, 128, 2, false};
  const LstmShape step = {1, 1, 16, 16, 16, 1, false};
  const auto explained = [](const LstmShape& shape, int threads, const char* part) {
    const CpuFacts facts = facts_of(Isa::kBaseline, threads);
    const std::string forward = cpu::explain_forward(shape, DType::kFloat32, facts);
    const Scope scope(forward);
    CHECK(mentions(forward, part));
    const LstmPlan plan = cpu::make_forward_plan(shape, DType::kFloat32, facts);
    CHECK(mentions(forward, cpu::describe_forward(plan)));
    const int64_t rows = shape.steps * shape.batch;
    const cpu::LayerBackwardPlan backward =
        cpu::make_layer_backward_plan(shape, rows, DType::kFloat32, facts);
    const std::string text = cpu::explain_layer_backward(shape, rows, DType::kFloat32, facts);
    CHECK(mentions(text, cpu::describe_backward(backward.recurrence)));
    CHECK(mentions(text, cpu::describe_layer_backward(backward, shape)));
    CHECK(mentions(text, "by " + std::to_string(backward.gradient_threads) + " thread(s)"));
  };
  explained(big, 1, "one thread allowed");
  explained(big, 2, "rows enough");
  explained(big, 2, "hide the reading of W_ih");
  explained(one, 2, "the units are split");
  explained(one, 2, "1 row(s) a step are too few");
  explained(both, 2, "a direction for each thread");
  explained(step, 2, "too little work");
  explained(step, 2, "packing pays from T*N = 9");
  const auto explained_backward = [](const LstmShape& shape, DType dtype, int64_t missing = 0) {
    return cpu::explain_layer_backward(shape, shape.steps * shape.batch - missing, dtype,
                                       facts_of(Isa::kBaseline, 1));
  };
  CHECK(
      mentions(explained_backward(step, DType::kFloat32), "packing pays from T*N = 33 or T = 17"));
  CHECK(mentions(explained_backward(step, DType::kFloat16), "packing pays from T*N = 2 on"));
  CHECK(!mentions(explained_backward(big, DType::kFloat32), "packing"));
  CHECK(mentions(explained_backward(step, DType::kFloat32), "outer products of unpacked rows"));
  CHECK(mentions(explained_backward(step, DType::kFloat32), "all steps in one piece"));
  CHECK(mentions(explained_backward(big, DType::kFloat32), "stay in a cache"));
  CHECK(mentions(explained_backward(big, DType::kFloat32), "pieces of "));
  CHECK(mentions(explained_backward(big, DType::kFloat32, 1), "rows differ in length"));
  CHECK(mentions(explained_backward(both, DType::kBFloat16), "16-bit grad_x is one sum"));
  CHECK(mentions(explained_backward({100, 64, 16, 128, 8, 1, true}, DType::kFloat32), "W_hr"));
}

void test_isas() {
  const std::vector<Isa> available = cpu::available_isas();
  CHECK(available.front() == Isa::kBaseline);
  CHECK(cpu::best_isa() == available.back());
  std::string before = "any";
  for (Isa limit : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
    const Scope scope("set_max_isa: ", cpu::isa_name(limit));
    CHECK_EQ(cpu::set_max_isa(cpu::isa_name(limit)), before);
    before = cpu::isa_name(limit);
    CHECK(cpu::best_isa() == std::min(limit, available.back()));
    CHECK(cpu::cpu_facts(3).isa == cpu::best_isa());
  }
  CHECK_EQ(error_of([] { cpu::set_max_isa("mmx"); }),
           "LSTM_FUSED_MAX_ISA must be baseline, avx2, avx512 or avx512_bf16, got mmx");
  CHECK_EQ(cpu::set_max_isa("any"), before);
  CHECK(cpu::best_isa() == available.back());
  CHECK_EQ(cpu::cpu_facts(3).threads, 3);
  CHECK_LT(0, cpu::cpu_facts(3).l2_bytes);
  for (size_t i = 0; i + 1 < available.size(); ++i) CHECK(available[i] < available[i + 1]);
  for (Isa isa : available) {
    for (DType dtype : kDTypes) {
      const cpu::KernelTable& table = cpu::kernel_table(isa, dtype);
      CHECK_LE(1, table.vector_width);
      CHECK_LE(1, table.k_multiple);
      CHECK(table.operand_size == accumulator_size(dtype) ||
            table.operand_size == dtype_size(dtype));
    }
  }
}

}  // namespace
}  // namespace lstm_fused::test

int main() {
  lstm_fused::test::test_isas();
  lstm_fused::test::test_isa_of_types();
  lstm_fused::test::test_shapes_that_are_refused();
  lstm_fused::test::test_explanations();
  lstm_fused::test::test_descriptions();
  lstm_fused::test::test_choices();
  lstm_fused::test::test_bounds();
  return lstm_fused::test::exit_status();
}
