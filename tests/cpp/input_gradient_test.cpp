// SPDX-License-Identifier: BSD-3-Clause
// input_gradient against plain sums, for every instruction set, dtype and layout; the same bits on
// any pool, and for a row wherever it stands.
#include "cpu/gradients/input_gradient.h"

#include <cstdio>
#include <vector>

#include "lstm_calls.h"

namespace lstm_fused::test {
namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16};

std::vector<Case> cases() {
  std::vector<Case> cases = all_cases();
  // More rows than a thread takes at a time.
  cases.push_back(Case{1, 300, 5, 3}.both_ways());
  cases.push_back(Case{7, 60, 19, 17});
  std::vector<int64_t> lengths(60);
  for (size_t n = 0; n < lengths.size(); ++n) lengths[n] = n * 5 % 8;
  cases.push_back(Case{7, 60, 3, 6}.both_ways().of_lengths(lengths));
  return cases;
}

void check_case(const Problem& problem, cpu::Isa isa, double& worst) {
  const LstmShape& shape = problem.values.shape;
  const int64_t T = shape.steps, N = shape.batch, D = shape.input_size, G = 4 * shape.hidden_size;
  const LayerArrays layer(problem);
  Random random(11);
  cpu::InputGradientArgs args;
  args.shape = shape;
  args.dtype = problem.dtype;
  args.layout = &problem.layout;
  Values truth(T * N * D, 0);
  Array grad_gates[kMaxDirections];
  for (int d = 0; d < shape.directions; ++d) {
    const Values gates = random.uniform(T * N * G, 1, problem.dtype);
    const Values& w_ih = problem.values.direction[d].w_ih;
    for (int64_t row = 0; row < T * N; ++row) {
      for (int64_t j = 0; j < G; ++j) {
        for (int64_t k = 0; k < D; ++k) truth[row * D + k] += gates[row * G + j] * w_ih[j * D + k];
      }
    }
    grad_gates[d] = problem.data(problem.dtype, gates, G);
    args.grad_gates[d] = grad_gates[d].data();
    args.w_ih[d] = layer.weights(d).w_ih;
  }
  Array grad_x(problem.dtype, problem.sequence_rows() * D);
  args.grad_x = grad_x.data();
  cpu::input_gradient(args, isa, kOneThread.parallel);
  Verifier(problem, worst).sequence(grad_x, D, 0, truth, D);

  Array other(problem.dtype, grad_x.size());
  args.grad_x = other.data();
  for (const auto& pools : {serial_pools(), threaded_pools()}) {
    const Pool& pool = pools[problem.data_rows() % pools.size()];
    const Scope scope(pool.name);
    other.fill_canary();
    cpu::input_gradient(args, isa, pool.parallel);
    CHECK(other.same_bits(grad_x));
  }
}

void check_rows_alone(cpu::Isa isa, DType dtype) {
  const Scope scope("rows alone");
  const Problem problem(Case{1, 110, 37, 9}.both_ways(), dtype);
  const LayerArrays layer(problem);
  const int64_t N = 110, D = 37, G = 36;
  Random random(12);
  Array gates[2], grad_x(dtype, N * D), alone(dtype, D);
  cpu::InputGradientArgs args;
  args.shape = problem.values.shape;
  args.dtype = dtype;
  args.layout = &problem.layout;
  args.grad_x = grad_x.data();
  for (int d = 0; d < 2; ++d) {
    gates[d] = Array::input(dtype, random.uniform(N * G, 1, dtype));
    args.grad_gates[d] = gates[d].data();
    args.w_ih[d] = layer.weights(d).w_ih;
  }
  cpu::input_gradient(args, isa, kOneThread.parallel);

  const SequenceLayout single = dense_layout(1, 1);
  args.shape.batch = 1;
  args.layout = &single;
  args.grad_x = alone.data();
  for (int64_t n = 0; n < N; ++n) {
    for (int d = 0; d < 2; ++d) args.grad_gates[d] = gates[d].at(n * G);
    cpu::input_gradient(args, isa, kOneThread.parallel);
    for (int64_t k = 0; k < D; ++k) CHECK_EQ(grad_x.get(n * D + k), alone.get(k));
  }
}

void run_all() {
  for (DType dtype : kDTypes) {
    double worst = 0;
    for (cpu::Isa isa : cpu::available_isas()) {
      const Scope scope(cpu::isa_name(isa), ", ", dtype_name(dtype));
      for (const Case& of : cases()) {
        const Scope of_scope(of.name());
        check_case(Problem(of, dtype), isa, worst);
      }
      check_rows_alone(isa, dtype);
    }
    std::printf("%s: largest error in tolerances: %.2f\n", dtype_name(dtype), worst);
  }
}

}  // namespace
}  // namespace lstm_fused::test

int main() {
  lstm_fused::test::run_all();
  return lstm_fused::test::exit_status();
}
