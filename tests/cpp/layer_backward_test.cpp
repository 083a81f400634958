// SPDX-License-Identifier: BSD-3-Clause
// layer_backward against lstm_backward, which lstm_test verifies, and plain sums over what that
// gives: for every instruction set and dtype, in pieces of every size; the same bits on any pool,
// without saved gates, and whatever else is asked for.
#include "cpu/gradients/layer_backward.h"

#include <cmath>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cpu/gradients/input_gradient.h"
#include "lstm_calls.h"

namespace lstm_fused::test {
namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16};

struct Options {
  int64_t piece_steps = 0;
  bool saved_gates = true;
  bool grad_x = true, weights = true, states = true;
};

// Sums of products, and the sums of their magnitudes.
struct Sums {
  explicit Sums(int64_t n) : truth(n, 0), magnitude(n, 0) {}
  void add(int64_t at, double product) {
    truth[at] += product;
    magnitude[at] += std::fabs(product);
  }
  // grad (rows) times operand (columns).
  void add_outer(const double* grad, int64_t rows, const double* operand, int64_t columns) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) add(r * columns + c, grad[r] * operand[c]);
    }
  }
  Values truth, magnitude;
};

Values values_of(const Array& array) {
  Values values(array.size());
  for (int64_t i = 0; i < array.size(); ++i) values[i] = array.get(i);
  return values;
}

cpu::CpuFacts facts_of(cpu::Isa isa, const Parallel& parallel) {
  cpu::CpuFacts facts;
  facts.isa = isa;
  facts.threads = parallel.threads;
  return facts;
}

// A problem after its forward, and its backward of all steps at once without what follows.
struct Trained {
  Trained(const Problem& problem, cpu::Isa isa)
      : problem(problem), isa(isa), layer(problem), forward(problem, true) {
    const LstmShape& shape = problem.values.shape;
    const cpu::CpuFacts facts = facts_of(isa, kOneThread.parallel);
    forward.run(cpu::make_forward_plan(shape, problem.dtype, facts), kOneThread.parallel);
    for (auto& output : forward.outputs) output.second.make_read_only();
    Random random(17);
    for (int d = 0; d < shape.directions; ++d) {
      saved[d].gates = dense(forward.outputs[text("gates", d)], 4 * shape.hidden_size);
      saved[d].cells = dense(forward.outputs[text("cells", d)], shape.hidden_size);
      grads[d] = draw_gradients(problem, random);
    }
    backward.emplace(problem, saved, grads, true);
    plan.isa = isa;
    backward->run(plan, kOneThread.parallel);
  }
  Trained(const Trained&) = delete;

  // Rows of data as (T, N, columns).
  Values dense(const Array& data, int64_t columns) const {
    const LstmShape& shape = problem.values.shape;
    Values out(shape.steps * shape.batch * columns, 0);
    for (int64_t n = 0; n < shape.batch; ++n) {
      for (int64_t t = 0; t < problem.lengths()[n]; ++t) {
        for (int64_t k = 0; k < columns; ++k) {
          out[(t * shape.batch + n) * columns + k] = data.get(problem.data_row(t, n) * columns + k);
        }
      }
    }
    return out;
  }

  const Problem& problem;
  const cpu::Isa isa;
  cpu::LstmPlan plan;
  LayerArrays layer;
  ForwardCall forward;
  ForwardTruth saved[kMaxDirections];
  IncomingGradients grads[kMaxDirections];
  std::optional<BackwardCall> backward;
};

Outputs run(Trained& in, const Parallel& parallel, const Options& options) {
  const LstmShape& shape = in.problem.values.shape;
  const int64_t N = shape.batch, D = shape.input_size, H = shape.hidden_size;
  const int64_t P = shape.output_size;
  Outputs outputs;
  const auto out = [&](bool wanted, const std::string& name, int64_t size) -> void* {
    if (!wanted) return nullptr;
    outputs[name] = Array(in.problem.dtype, size);
    return outputs[name].data();
  };
  const LstmBackwardArgs recurrence = in.backward->args();
  cpu::LayerBackwardArgs args;
  args.shape = shape;
  args.dtype = in.problem.dtype;
  args.layout = &in.problem.layout;
  args.x = in.forward.x().data();
  args.reset_mask = recurrence.reset_mask;
  args.grad_x = out(options.grad_x, "grad_x", in.problem.sequence_rows() * D);
  for (int d = 0; d < shape.directions; ++d) {
    const LstmWeights weights = in.layer.weights(d);
    LayerBackwardDirection& to = args.direction[d];
    to.recurrence = recurrence.direction[d];
    to.recurrence.weights = weights;
    to.recurrence.gates =
        options.saved_gates ? in.forward.outputs[text("gates", d)].data() : nullptr;
    to.recurrence.grad_gates = to.recurrence.grad_output = nullptr;
    to.recurrence.grad_h_0 = out(options.states, text("grad_h_0", d), N * P);
    to.recurrence.grad_c_0 = out(options.states, text("grad_c_0", d), N * H);
    to.h_0 = in.layer.h_0(d);
    to.y = in.forward.outputs["y"].at(d * P);
    to.grad_w_ih = out(options.weights, text("grad_w_ih", d), 4 * H * D);
    to.grad_w_hh = out(options.weights, text("grad_w_hh", d), 4 * H * P);
    to.grad_b_ih = out(options.weights && weights.b_ih, text("grad_b_ih", d), 4 * H);
    to.grad_b_hh = out(options.weights && weights.b_hh, text("grad_b_hh", d), 4 * H);
    to.grad_w_hr = out(options.weights && weights.w_hr, text("grad_w_hr", d), P * H);
  }
  const cpu::CpuFacts facts = facts_of(in.isa, parallel);
  cpu::layer_backward(args,
                      cpu::make_layer_backward_plan(shape, in.problem.data_rows(), in.problem.dtype,
                                                    facts, options.piece_steps),
                      parallel);
  return outputs;
}

// h_prev of step t of row n; null where a reset made it zero.
const double* h_prev_of(const Trained& in, const Values& y, int d, int64_t t, int64_t n) {
  const LayerValues& values = in.problem.values;
  const int64_t P = values.shape.output_size, before = d == 0 ? t - 1 : t + 1;
  if (is_marked(values, t, n)) return nullptr;
  if (before < 0 || before >= in.problem.lengths()[n]) {
    return values.direction[d].h_0.data() + n * P;
  }
  return y.data() + in.problem.sequence_row(before, n) * values.shape.directions * P + d * P;
}

// What follows from the gates' gradients that lstm_backward gave.
std::map<std::string, Sums> expected_sums(Trained& in) {
  const LstmShape& shape = in.problem.values.shape;
  const int64_t N = shape.batch, D = shape.input_size, H = shape.hidden_size;
  const int64_t P = shape.output_size, G = 4 * H;
  const Values y = values_of(in.forward.outputs["y"]);
  std::map<std::string, Sums> sums;
  Sums& grad_x = sums.emplace("grad_x", shape.steps * N * D).first->second;
  for (int d = 0; d < shape.directions; ++d) {
    Sums& w_ih = sums.emplace(text("grad_w_ih", d), G * D).first->second;
    Sums& w_hh = sums.emplace(text("grad_w_hh", d), G * P).first->second;
    Sums& bias = sums.emplace(text("grad_b_ih", d), G).first->second;
    Sums& w_hr = sums.emplace(text("grad_w_hr", d), P * H).first->second;
    const Values gates = values_of(in.backward->outputs[text("grad_gates", d)]);
    Values output;
    Array cell_output(in.problem.dtype, in.problem.data_rows() * H);
    if (shape.projection) {
      output = values_of(in.backward->outputs[text("grad_output", d)]);
      cpu::kernel_table(in.isa, in.problem.dtype)
          .cell_output(in.forward.outputs[text("gates", d)].data(),
                       in.forward.outputs[text("cells", d)].data(), in.problem.data_rows(), H,
                       cell_output.data());
    }
    const Values hidden = values_of(cell_output);
    const Values& weight = in.problem.values.direction[d].w_ih;
    const double one = 1;
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t t = 0; t < in.problem.lengths()[n]; ++t) {
        const int64_t row = in.problem.data_row(t, n);
        const double* gate = gates.data() + row * G;
        w_ih.add_outer(gate, G, in.problem.values.x.data() + (t * N + n) * D, D);
        bias.add_outer(gate, G, &one, 1);
        const double* h_prev = h_prev_of(in, y, d, t, n);
        if (h_prev) w_hh.add_outer(gate, G, h_prev, P);
        if (shape.projection) {
          w_hr.add_outer(output.data() + row * P, P, hidden.data() + row * H, H);
        }
        for (int64_t j = 0; j < G; ++j) {
          for (int64_t k = 0; k < D; ++k) {
            grad_x.add((t * N + n) * D + k, gate[j] * weight[j * D + k]);
          }
        }
      }
    }
    sums.emplace(text("grad_b_hh", d), bias);
  }
  return sums;
}

// A rounding of the result, and some of the sum.
void check_sum(double got, double truth, double magnitude, DType dtype) {
  const double subnormal = dtype == DType::kFloat16 ? 0x1p-24 : 0;
  const double roundings = 8 * epsilon(accumulator_type(dtype)) * magnitude;
  CHECK_LE(std::fabs(got - truth), epsilon(dtype) * std::fabs(truth) + roundings + subnormal);
}

void check_sums(const Problem& problem, const Outputs& outputs,
                const std::map<std::string, Sums>& sums) {
  const LstmShape& shape = problem.values.shape;
  for (const auto& [name, got] : outputs) {
    const auto found = sums.find(name);
    if (found == sums.end()) continue;
    const Sums& wanted = found->second;
    const Scope scope(name);
    if (name != "grad_x") {
      CHECK_EQ(got.size(), static_cast<int64_t>(wanted.truth.size()));
      for (int64_t i = 0; i < got.size(); ++i) {
        check_sum(got.get(i), wanted.truth[i], wanted.magnitude[i], problem.dtype);
      }
      continue;
    }
    for (int64_t n = 0; n < shape.batch; ++n) {
      const int64_t last = problem.packed ? problem.lengths()[n] : shape.steps;
      for (int64_t t = 0; t < last; ++t) {
        for (int64_t k = 0; k < shape.input_size; ++k) {
          const int64_t at = problem.sequence_row(t, n) * shape.input_size + k;
          const int64_t of = (t * shape.batch + n) * shape.input_size + k;
          if (t >= problem.lengths()[n]) {
            CHECK(got.is_canary(at));
          } else {
            check_sum(got.get(at), wanted.truth[of], wanted.magnitude[of], problem.dtype);
          }
        }
      }
    }
  }
}

// One direction's grad_x, and both of a 16-bit type, have the bits of all rows at once.
void check_input_gradient(Trained& in, const Array& grad_x) {
  const LstmShape& shape = in.problem.values.shape;
  if (shape.directions == 2 && dtype_size(in.problem.dtype) != 2) return;
  Array whole(in.problem.dtype, grad_x.size());
  cpu::InputGradientArgs args = {shape, in.problem.dtype, &in.problem.layout, {}, {}, whole.data()};
  for (int d = 0; d < shape.directions; ++d) {
    args.grad_gates[d] = in.backward->outputs[text("grad_gates", d)].data();
    args.w_ih[d] = in.layer.weights(d).w_ih;
  }
  cpu::input_gradient(args, in.isa, kOneThread.parallel);
  CHECK(whole.same_bits(grad_x));
}

// Several pieces give what one does; sums over all rows, whose order is that of the pieces, within
// roundings.
void check_pieces(Trained& in, const Outputs& whole, const std::map<std::string, Sums>& sums,
                  int64_t steps, const std::vector<Pool>& pools) {
  const Scope scope("pieces of ", steps, " steps");
  const LstmShape& shape = in.problem.values.shape;
  const Outputs base = run(in, kOneThread.parallel, {steps});
  const bool in_one_piece = in.problem.data_rows() != shape.steps * shape.batch ||
                            (shape.directions == 2 && dtype_size(in.problem.dtype) == 2);
  Outputs same = base;
  for (int d = 0; d < shape.directions && !in_one_piece; ++d) {
    for (const char* name : {"w_ih", "w_hh", "b_ih", "b_hh", "w_hr"}) {
      same.erase(text("grad_", name, d));
    }
  }
  check_same_bits(same, whole);
  check_sums(in.problem, base, sums);
  for (const Pool& pool : pools) {
    const Scope pool_scope(pool.name);
    check_same_bits(run(in, pool.parallel, {steps}), base);
    check_same_bits(run(in, pool.parallel, {steps, false}), base);
  }
}

// Groups and teams go through pieces as through all steps at once.
void check_recurrence(Trained& in, int64_t steps) {
  const Scope scope("recurrence, pieces of ", steps, " steps");
  BackwardCall other(in.problem, in.saved, in.grads, true);
  cpu::LstmPlan plan = in.plan;
  for (plan.row_groups = 1; plan.row_groups <= 3; ++plan.row_groups) {
    for (plan.team = 1; plan.team <= 3; ++plan.team) {
      const Pool& pool = next_pool();
      const Scope plan_scope(cpu::describe_backward(plan), ", ", pool.name);
      other.run_in_pieces(plan, pool.parallel, steps);
      check_same_bits(other.outputs, in.backward->outputs);
    }
  }
}

// Each output by itself.
void check_parts(Trained& in, const Outputs& whole) {
  const int64_t steps = std::max<int64_t>(in.problem.values.shape.steps, 1);
  for (bool saved : {true, false}) {
    const Scope scope(saved ? "gates saved" : "no gates saved");
    check_same_bits(run(in, next_pool().parallel, {steps, saved, true, false, false}), whole);
    check_same_bits(run(in, next_pool().parallel, {steps, saved, false, true, false}), whole);
    check_same_bits(run(in, next_pool().parallel, {steps, saved, false, false, true}), whole);
  }
}

void check_case(const Case& of, DType dtype, cpu::Isa isa, const std::vector<int64_t>& piece_steps,
                const std::vector<Pool>& pools) {
  const Scope scope(of.name());
  const Problem problem(of, dtype);
  Trained in(problem, isa);
  const std::map<std::string, Sums> sums = expected_sums(in);
  const Outputs whole = run(in, kOneThread.parallel, {std::max<int64_t>(of.steps, 1)});
  check_sums(problem, whole, sums);
  check_input_gradient(in, whole.at("grad_x"));
  for (const auto& [name, array] : in.backward->outputs) {
    if (whole.count(name)) CHECK(array.same_bits(whole.at(name)));
  }
  check_parts(in, whole);
  // Not of long cases, which would take seconds.
  const bool has_pieces =
      of.steps > 0 && of.steps <= 14 && problem.data_rows() == of.steps * of.batch;
  for (int64_t steps : piece_steps) {
    check_pieces(in, whole, sums, steps, pools);
    if (has_pieces) check_recurrence(in, steps);
  }
}

// More blocks of rows than one, in a piece and in all; pieces of one step; a last piece that is
// shorter, of another number of rows, or of one.
void check_long_cases(DType dtype, cpu::Isa isa) {
  const std::vector<Pool>& pools = serial_pools();
  check_case({1101, 1, 2, 3}, dtype, isa, {512, 5}, {pools[2]});
  check_case(Case{402, 3, 2, 5}.both_ways(), dtype, isa, {150}, {pools[2]});
  check_case(Case{201, 3, 2, 5}.reset(0.1), dtype, isa, {67}, {pools[1]});
  check_case(Case{3, 600, 2, 3}.both_ways().reset(0.2), dtype, isa, {1, 2}, {pools[1]});
  check_case(Case{4, 300, 3, 9}.project(2).both_ways(), dtype, isa, {1, 3}, {pools[2]});
}

// Work for several threads: groups of rows, teams of units, partitions of what follows.
void check_parallel_cases(DType dtype, cpu::Isa isa) {
  std::vector<Pool> pools = serial_pools();
  pools.insert(pools.end(), threaded_pools().begin(), threaded_pools().end());
  check_case({40, 1, 5, 130}, dtype, isa, {7}, pools);
  check_case(Case{14, 26, 6, 40}.reset(0.2), dtype, isa, {5}, pools);
  // Few rows: partitions of the input's columns, and teams that read the weights as they are.
  check_case(Case{2, 3, 270, 150}.both_ways(), dtype, isa, {}, pools);
  // Fewer parts of W_hr's gradient than threads.
  check_case(Case{14, 26, 6, 34}.project(17).both_ways(), dtype, isa, {5}, pools);
}

// The pieces that the plan chooses: of 1 MiB, of 512 rows at least, of a step at least. In other
// pieces the sums over rows have other bits.
void check_chosen_pieces(cpu::Isa isa) {
  const Scope scope("chosen pieces");
  const auto check = [&](const Case& of, int64_t steps) {
    const Scope of_scope(of.name());
    const Problem problem(of, DType::kFloat64);
    Trained in(problem, isa);
    const Outputs chosen = run(in, kOneThread.parallel, {});
    check_same_bits(chosen, run(in, kOneThread.parallel, {steps}));
    for (int64_t others : {steps - 1, steps + 1}) {
      if (others < 1 || steps == of.steps) continue;
      const Outputs other = run(in, kOneThread.parallel, {others});
      CHECK(!chosen.at("grad_w_hh0").same_bits(other.at("grad_w_hh0")));
    }
  };
  check({20, 100, 2, 17}, 19);
  check({6, 128, 2, 65}, 4);
  check({2, 520, 2, 65}, 1);
  check({2, 100, 2, 17}, 2);
  // More than 1 MiB of sums, whose blocks are larger: of 1024 rows.
  check({5, 512, 2, 184}, 2);
}

void run_all() {
  for (DType dtype : kDTypes) {
    for (cpu::Isa isa : distinct_isas(dtype)) {
      const Scope scope(cpu::isa_name(isa), ", ", dtype_name(dtype));
      for (const Case& of : all_cases()) check_case(of, dtype, isa, {1, 2}, {next_pool()});
    }
    // How pieces follow on one another is the same for all instruction sets.
    const cpu::Isa best = cpu::available_isas().back();
    const Scope scope(dtype_name(dtype));
    check_long_cases(dtype, best);
    check_parallel_cases(dtype, best);
  }
  check_chosen_pieces(cpu::available_isas().back());
}

}  // namespace
}  // namespace lstm_fused::test

int main() {
  lstm_fused::test::run_all();
  return lstm_fused::test::exit_status();
}
