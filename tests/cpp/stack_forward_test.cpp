// SPDX-License-Identifier: BSD-3-Clause
// A wavefront has the bits of layers one after the other, for every instruction set, dtype, number
// of workers and pool of threads; and when it is planned.
#include "cpu/stack_forward.h"

#include "check.h"
#include "cpu/lstm_forward.h"
#include "lstm_cases.h"
#include "parallel.h"

namespace lstm_fused::test {
namespace {

// Layers whose weights and initial states are at random, each with outputs of its own.
class Stack {
 public:
  Stack(DType dtype, int layers, int64_t steps, int64_t batch, int64_t hidden, int64_t projection)
      : layout_(dense_layout(steps, batch)) {
    std::mt19937 random(3);
    std::uniform_real_distribution<double> uniform(-0.4, 0.4);
    const auto input = [&](int64_t n) {
      Values values(n);
      for (double& value : values) value = uniform(random);
      inputs_.push_back(Array::input(dtype, values));
      return inputs_.back().data();
    };
    const auto output = [&](int64_t n) {
      outputs_.emplace_back(dtype, n);
      return outputs_.back().data();
    };
    const int64_t P = projection > 0 ? projection : hidden;
    const void* x = input(steps * batch * 3);
    arguments.resize(layers);
    for (int l = 0; l < layers; ++l) {
      LstmForwardArgs& args = arguments[l];
      const int64_t D = l == 0 ? 3 : P;
      args.shape = {steps, batch, D, hidden, P, 1, projection > 0};
      args.dtype = dtype;
      args.layout = &layout_;
      args.x = x;
      LstmForwardDirection& d = args.direction[0];
      d.weights = {input(4 * hidden * D), input(4 * hidden * P), input(4 * hidden), nullptr,
                   projection > 0 ? input(P * hidden) : nullptr};
      d.h_0 = input(batch * P);
      d.c_0 = input(batch * hidden);
      d.y = output(steps * batch * P);
      d.h_n = output(batch * P);
      d.c_n = output(batch * hidden);
      x = d.y;
    }
  }

  std::vector<LstmForwardArgs> arguments;

  void clear() {
    for (Array& array : outputs_) array.fill_canary();
  }
  std::vector<std::vector<char>> bits() const {
    std::vector<std::vector<char>> bits;
    for (const Array& array : outputs_) {
      const auto* bytes = static_cast<const char*>(array.data());
      bits.emplace_back(bytes, static_cast<const char*>(array.at(array.size())));
    }
    return bits;
  }

 private:
  const SequenceLayout layout_;
  std::vector<Array> inputs_, outputs_;
};

void check_bits(DType dtype, int layers, int64_t steps, int64_t batch, int64_t hidden,
                int64_t projection) {
  const Scope scope(dtype_name(dtype), " layers=", layers, " T=", steps, " N=", batch,
                    " H=", hidden, " P=", projection);
  Stack stack(dtype, layers, steps, batch, hidden, projection);
  const cpu::CpuFacts facts = cpu::cpu_facts(4);
  cpu::stack_forward(stack.arguments, cpu::StackPlan{}, facts, Parallel{});
  const auto wanted = stack.bits();
  std::vector<Pool> pools = serial_pools();
  pools.insert(pools.end(), threaded_pools().begin(), threaded_pools().end());
  for (const Pool& pool : pools) {
    for (int workers : {2, 3}) {
      for (int64_t unit : {1, 3, 64}) {
        const Scope inner(pool.name, ", ", workers, " workers, ", unit, " steps");
        stack.clear();
        cpu::stack_forward(stack.arguments, cpu::StackPlan{workers, unit}, facts, pool.parallel);
        CHECK(stack.bits() == wanted);
      }
    }
  }
}

LstmShape layer(int64_t steps, int64_t batch, int64_t hidden, int directions = 1) {
  return {steps, batch, hidden * directions, hidden, hidden, directions, false};
}

void check_plans() {
  cpu::CpuFacts facts = cpu::cpu_facts(2);
  const auto workers = [&](const LstmShape& shape, int layers) {
    const std::vector<LstmShape> shapes(layers, shape);
    const cpu::StackPlan plan = cpu::make_stack_plan(shapes, DType::kFloat32, facts);
    const std::string why = cpu::explain_stack(plan, shapes, DType::kFloat32, facts);
    CHECK_EQ(why.find("wavefront") == 0, plan.workers > 1);
    return plan.workers;
  };
  CHECK_EQ(workers(layer(100, 1, 64), 2), 2);
  CHECK_EQ(workers(layer(100, 1, 64), 5), 2);
  CHECK_EQ(workers(layer(100, 1, 64), 1), 1);
  CHECK_EQ(workers(layer(1, 1, 64), 2), 1);
  CHECK_EQ(workers(layer(100, 1, 4), 2), 1);
  CHECK_EQ(workers(layer(100, 1, 64, 2), 2), 1);
  CHECK_EQ(workers(layer(100, 64, 256), 2), 1);
  // In the place of a team, where there are steps enough and a core's cache holds a layer.
  facts.isa = cpu::Isa::kBaseline;
  facts.l2_bytes = 1 << 20;
  CHECK_EQ(workers(layer(100, 1, 128), 2), 2);
  CHECK_EQ(workers(layer(40, 1, 128), 2), 1);
  CHECK_EQ(workers(layer(100, 1, 256), 2), 1);
  facts.l2_bytes = 4 << 20;
  CHECK_EQ(workers(layer(100, 1, 256), 2), 2);
  facts.threads = 8;  // of which two layers would leave six idle
  CHECK_EQ(workers(layer(100, 1, 256), 2), 1);
  facts.threads = 1;
  CHECK_EQ(workers(layer(100, 1, 64), 2), 1);
}

// Whole passes of the input GEMM, but no long wait for a worker's first unit.
void check_unit_steps() {
  cpu::CpuFacts facts = cpu::cpu_facts(8);
  const auto steps = [&](int64_t count, int layers) {
    const std::vector<LstmShape> shapes(layers, layer(count, 1, 64));
    return cpu::make_stack_plan(shapes, DType::kFloat32, facts).steps;
  };
  CHECK_EQ(steps(8, 2), 2);
  CHECK_EQ(steps(40, 2), 6);
  CHECK_EQ(steps(40, 5), 2);
  CHECK_EQ(steps(160, 5), 10);
  CHECK_EQ(steps(10000, 2), 16);
}

}  // namespace
}  // namespace lstm_fused::test

int main() {
  using namespace lstm_fused;
  for (cpu::Isa isa : cpu::available_isas()) {
    cpu::set_max_isa(cpu::isa_name(isa));
    const test::Scope scope(cpu::isa_name(isa));
    for (DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16}) {
      test::check_bits(dtype, 2, 11, 1, 33, 0);
      test::check_bits(dtype, 5, 7, 3, 18, 0);
      test::check_bits(dtype, 3, 6, 2, 20, 7);
      test::check_bits(dtype, 2, 5, 2, 4, 0);  // by dot products
    }
  }
  cpu::set_max_isa("any");
  test::check_plans();
  test::check_unit_steps();
  return test::exit_status();
}
