// SPDX-License-Identifier: BSD-3-Clause
// lstm_forward and lstm_backward against the reference, for every instruction set, dtype and form
// of plan; the same bits on any number of threads and groups of rows.
#include <cstdlib>
#include <set>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "lstm_calls.h"

// Scratch memory of AddressSanitizer's begins as NaN (see main for other builds).
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options();
extern "C" const char* __asan_default_options() {
  return "malloc_fill_byte=255:max_malloc_fill_size=1000000";
}

namespace lstm_fused::test {
namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16};

std::string plan_name(const cpu::LstmPlan& plan, const Pool& pool) {
  return text(cpu::describe_forward(plan), plan.unpacked ? ", unpacked, " : ", ", pool.name);
}

// What a plan may choose that changes the order of operations; one group and one thread.
std::vector<cpu::LstmPlan> forward_forms(const Problem& problem, cpu::Isa isa) {
  const LstmShape& shape = problem.values.shape;
  std::vector<cpu::LstmPlan> forms;
  cpu::LstmPlan plan;
  plan.isa = isa;
  if (!shape.projection) {
    plan.dot = true;
    forms.push_back(plan);
    plan.dot = false;
  }
  // Where the operands are of another type than x, x must be converted ahead of the steps.
  const bool converts =
      cpu::kernel_table(isa, problem.dtype).operand_size != dtype_size(problem.dtype);
  for (int64_t steps : std::set<int64_t>{0, 1, 3, std::max<int64_t>(shape.steps, 1)}) {
    if (steps == 0 && converts) continue;
    plan.input_gemm_steps = steps;
    forms.push_back(plan);
  }
  return forms;
}

// Runs a call under every division into groups of rows and teams: `wanted` bits each time.
template <typename Call>
void check_divisions(Call& call, const cpu::LstmPlan& form, const Outputs& wanted) {
  for (int row_groups = 1; row_groups <= 3; ++row_groups) {
    for (int team = 1; team <= 3; ++team) {
      cpu::LstmPlan plan = form;
      plan.row_groups = row_groups;
      plan.team = team;
      const Pool& pool = next_pool();
      const Scope scope(plan_name(plan, pool));
      call.run(plan, pool.parallel);
      check_same_bits(call.outputs, wanted);
    }
  }
}

void check_forward(const Problem& problem, cpu::Isa isa, double& worst) {
  const LstmShape& shape = problem.values.shape;
  const Verifier verifier(problem, worst);
  ForwardTruth truth[kMaxDirections];
  for (int d = 0; d < shape.directions; ++d) truth[d] = reference_forward(problem.values, d);

  ForwardCall base(problem, true), other(problem, true), plain(problem, false);
  for (const cpu::LstmPlan& form : forward_forms(problem, isa)) {
    const Scope scope(plan_name(form, kOneThread));
    base.run(form, kOneThread.parallel);
    for (int d = 0; d < shape.directions; ++d) {
      const int64_t H = shape.hidden_size, P = shape.output_size, L = shape.directions;
      verifier.sequence(base.outputs["y"], L * P, d * P, truth[d].y, P);
      verifier.sequence(base.outputs["cell_states"], L * H, d * H, truth[d].cells, H);
      verifier.data(base.outputs[text("gates", d)], truth[d].gates, 4 * H);
      verifier.data(base.outputs[text("cells", d)], truth[d].cells, H);
      verifier.all(base.outputs[text("h_n", d)], truth[d].h_n);
      verifier.all(base.outputs[text("c_n", d)], truth[d].c_n);
    }
    check_divisions(other, form, base.outputs);
    plain.run(form, kOneThread.parallel);
    check_same_bits(plain.outputs, base.outputs);
    const Pool& pool = next_pool();
    const Scope rebuilt("rebuilt, ", pool.name);
    check_same_bits(base.rebuild_gates(form, pool.parallel), base.outputs);
  }
}

void verify_backward(const Verifier& verifier, const Problem& problem, BackwardCall& call,
                     const ForwardTruth (&saved)[kMaxDirections],
                     const IncomingGradients (&grads)[kMaxDirections]) {
  const LstmShape& shape = problem.values.shape;
  for (int d = 0; d < shape.directions; ++d) {
    const BackwardTruth truth =
        reference_backward(problem.values, d, saved[d].gates, saved[d].cells, grads[d]);
    verifier.data(call.outputs[text("grad_gates", d)], truth.gates, 4 * shape.hidden_size);
    if (shape.projection) {
      verifier.data(call.outputs[text("grad_output", d)], truth.output, shape.output_size);
    }
    if (!call.outputs.count(text("grad_h_0", d))) continue;
    verifier.all(call.outputs[text("grad_h_0", d)], truth.h_0);
    verifier.all(call.outputs[text("grad_c_0", d)], truth.c_0);
  }
}

void check_backward(const Problem& problem, cpu::Isa isa, double& worst) {
  const LstmShape& shape = problem.values.shape;
  const Verifier verifier(problem, worst);
  Random random(7);
  ForwardTruth saved[kMaxDirections];
  IncomingGradients grads[kMaxDirections];
  for (int d = 0; d < shape.directions; ++d) {
    saved[d] = reference_forward(problem.values, d);
    for (double& gate : saved[d].gates) gate = round_to(problem.dtype, gate);
    for (double& cell : saved[d].cells) cell = round_to(accumulator_type(problem.dtype), cell);
    grads[d] = draw_gradients(problem, random);
  }
  cpu::LstmPlan form;
  form.isa = isa;

  BackwardCall base(problem, saved, grads, true), other(problem, saved, grads, true);
  base.run(form, kOneThread.parallel);
  verify_backward(verifier, problem, base, saved, grads);
  check_divisions(other, form, base.outputs);
  cpu::LstmPlan unpacked = form;
  unpacked.unpacked = true;
  check_divisions(other, unpacked, base.outputs);

  // Gradients that are absent, in or out.
  BackwardCall plain(problem, saved, grads, false);
  plain.run(form, kOneThread.parallel);
  check_same_bits(plain.outputs, base.outputs);
  other.run(form, kOneThread.parallel, /*in_place=*/true);
  check_same_bits(other.outputs, base.outputs);
  for (const char* name : {"cell_states", "h_n", "c_n", "y"}) {
    const Scope scope("without the gradient of ", name, " and those before");
    base.drop(name);
    for (IncomingGradients& grad : grads) {
      Values& gone = name == std::string("y")     ? grad.y
                     : name == std::string("h_n") ? grad.h_n
                     : name == std::string("c_n") ? grad.c_n
                                                  : grad.cell_states;
      gone.assign(gone.size(), 0);
    }
    base.run(form, kOneThread.parallel);
    verify_backward(verifier, problem, base, saved, grads);
  }
}

// A row has the same bits alone and among others, whatever those hold.
void check_rows_alone(cpu::Isa isa, DType dtype) {
  const Case together{4, 13, 7, 35, 0, 2};
  const Problem all(together, dtype);
  ForwardCall call(all, false);
  for (const cpu::LstmPlan& form : forward_forms(all, isa)) {
    const Scope scope("rows alone: ", cpu::describe_forward(form));
    call.run(form, kOneThread.parallel);
    for (int64_t n = 0; n < together.batch; ++n) {
      Case single = together;
      single.batch = 1;
      Problem one(single, dtype);
      const int64_t D = together.input_size, H = together.hidden_size;
      for (int64_t t = 0; t < together.steps; ++t) {
        std::copy_n(all.values.x.begin() + (t * together.batch + n) * D, D,
                    one.values.x.begin() + t * D);
      }
      for (int d = 0; d < 2; ++d) {
        DirectionValues& to = one.values.direction[d];
        const DirectionValues& from = all.values.direction[d];
        to = from;
        to.h_0.assign(from.h_0.begin() + n * H, from.h_0.begin() + (n + 1) * H);
        to.c_0.assign(from.c_0.begin() + n * H, from.c_0.begin() + (n + 1) * H);
      }
      ForwardCall alone(one, false);
      alone.run(form, kOneThread.parallel);
      for (int64_t i = 0; i < 2 * H; ++i) {
        for (int64_t t = 0; t < together.steps; ++t) {
          CHECK_EQ(call.outputs["y"].get((t * together.batch + n) * 2 * H + i),
                   alone.outputs["y"].get(t * 2 * H + i));
        }
      }
    }
  }
}

// The reference's gradients against its own forward, by central differences.
void check_reference() {
  const Scope scope("the reference's gradients");
  const Case of = Case{3, 4, 2, 3}.project(2).both_ways().of_lengths({2, 3, 0, 1}).reset(0.4);
  Problem problem(of, DType::kFloat64);
  Random random(3);
  for (int d = 0; d < 2; ++d) {
    DirectionValues& in = problem.values.direction[d];
    for (Values* state : {&in.h_0, &in.c_0}) {  // no NaN here
      for (double& value : *state) value = random.uniform(1);
    }
    const IncomingGradients grad = draw_gradients(problem, random);
    const auto loss = [&] {
      const ForwardTruth out = reference_forward(problem.values, d);
      double sum = 0;
      const auto add = [&](const Values& a, const Values& b) {
        sum = std::inner_product(a.begin(), a.end(), b.begin(), sum);
      };
      add(out.y, grad.y);
      add(out.cells, grad.cell_states);
      add(out.h_n, grad.h_n);
      add(out.c_n, grad.c_n);
      return sum;
    };
    const auto check = [&](double& value, double gradient) {
      const double before = value, step = 1e-5;
      value = before + step;
      const double above = loss();
      value = before - step;
      const double below = loss();
      value = before;
      CHECK_LE(std::fabs((above - below) / (2 * step) - gradient), 1e-8);
    };

    const ForwardTruth out = reference_forward(problem.values, d);
    const BackwardTruth truth = reference_backward(problem.values, d, out.gates, out.cells, grad);
    const int64_t N = of.batch, D = of.input_size, H = of.hidden_size, P = of.projection_size;
    for (size_t i = 0; i < in.h_0.size(); ++i) check(in.h_0[i], truth.h_0[i]);
    for (size_t i = 0; i < in.c_0.size(); ++i) check(in.c_0[i], truth.c_0[i]);
    // x reaches the loss through the pre-activations of its row alone.
    for (int64_t row = 0; row < of.steps * N; ++row) {
      for (int64_t k = 0; k < D; ++k) {
        double dx = 0;
        for (int64_t j = 0; j < 4 * H; ++j) dx += truth.gates[row * 4 * H + j] * in.w_ih[j * D + k];
        check(problem.values.x[row * D + k], dx);
      }
    }
    for (int64_t p = 0; p < P; ++p) {
      for (int64_t u = 0; u < H; ++u) {
        double dw = 0;
        for (int64_t row = 0; row < of.steps * N; ++row) {
          dw += truth.output[row * P + p] * out.gates[row * 4 * H + 3 * H + u] *
                std::tanh(out.cells[row * H + u]);
        }
        check(in.w_hr[p * H + u], dw);
      }
    }
  }
}

void run_all() {
  check_reference();
  for (DType dtype : kDTypes) {
    double worst_forward = 0, worst_backward = 0;
    for (cpu::Isa isa : distinct_isas(dtype)) {
      const Scope scope(cpu::isa_name(isa), ", ", dtype_name(dtype));
      for (const Case& of : all_cases()) {
        const Scope of_scope(of.name());
        const Problem problem(of, dtype);
        {
          const Scope forward("forward");
          check_forward(problem, isa, worst_forward);
        }
        const Scope backward("backward");
        check_backward(problem, isa, worst_backward);
      }
      check_rows_alone(isa, dtype);
    }
    std::printf("%s: largest error in tolerances: forward %.2f, backward %.2f\n", dtype_name(dtype),
                worst_forward, worst_backward);
  }
}

}  // namespace
}  // namespace lstm_fused::test

int main() {
#if defined(__GLIBC__)
  mallopt(M_PERTURB, 1);  // scratch memory begins as large numbers
#endif
  lstm_fused::test::run_all();
  return lstm_fused::test::exit_status();
}
