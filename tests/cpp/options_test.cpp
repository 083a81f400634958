// SPDX-License-Identifier: BSD-3-Clause
// The forward and backward of cells with options on fenced arrays: nothing is read or written
// beyond them, the bits are the same however rows and units are divided, and every instruction set
// and dtype is near float64's baseline. What the values must be tests/options/ tests.
#include <cmath>
#include <string>
#include <vector>

#include "cpu/gradients/layer_backward.h"
#include "lstm_calls.h"

namespace lstm_fused::test {
namespace {

constexpr DType kDTypes[] = {DType::kFloat64, DType::kFloat32, DType::kBFloat16, DType::kFloat16};

struct OptionSet {
  const char* name;
  CellOptions options;
  bool peephole = false, h_mask = false, keep = false, reset_state = false, norms = false;
};

// NOTE: no clip with a 16-bit type, which may round to its other side.
const OptionSet kSets[] = {
    {"none", {}},
    {"cell", {/*coupled_gates=*/true, 0, 0, 0}, true, true, true, true, false},
    {"zoneout", {false, 0, 0.25, 0.5}, true, false, false, false, false},
    {"clip", {false, 0.5, 0, 0}, false, false, false, true, false},
    {"norms", {false, 0, 0.25, 0}, true, true, false, true, true},
};

bool is_half(DType dtype) { return dtype == DType::kBFloat16 || dtype == DType::kFloat16; }

// One problem with options, its inputs and what a training step gives.
class OptionCall {
 public:
  OptionCall(const Problem& problem, const OptionSet& set)
      : problem_(problem), set_(set), layer_(problem) {
    const LstmShape& shape = problem.values.shape;
    const DType dtype = problem.dtype;
    const int64_t N = shape.batch, H = shape.hidden_size, P = shape.output_size;
    const int64_t rows = problem.sequence_rows();
    options_ = set.options;
    if (shape.projection) options_.zoneout_h = 0;
    const Array x = problem.sequence({&problem.values.x}, shape.input_size);
    Values x_values(x.size());
    for (int64_t i = 0; i < x.size(); ++i) x_values[i] = x.get(i);
    x_ = Array::input(dtype, x_values);
    Random random(11);
    const auto draw = [&](bool wanted, int64_t size, double centre, double bound) {
      Values values = random.uniform(wanted ? size : 0, bound, DType::kFloat64);
      for (double& value : values) value = round_to(dtype, centre + value);
      return wanted ? Array::input(dtype, values) : Array();
    };
    for (int d = 0; d < shape.directions; ++d) {
      Inputs& to = inputs_.emplace_back();
      to.peephole = draw(set.peephole, 3 * H, 0, 0.5);
      to.h_mask = draw(set.h_mask, N * P, 0.75, 0.75);
      to.reset_h = draw(set.reset_state, N * P, 0, 1);
      to.reset_c = draw(set.reset_state, N * H, 0, 1);
      to.gains = draw(set.norms, 2 * 4 * H, 1, 0.3);
      to.cell_norm = draw(set.norms, 2 * H, 0.5, 0.5);
      for (auto* flags : {&to.keep_c, &to.keep_h}) {
        if (!set.keep || (shape.projection && flags == &to.keep_h)) continue;
        *flags = std::make_unique<FencedMemory>(rows * H);
        auto* bytes = static_cast<uint8_t*>((*flags)->get());
        for (int64_t i = 0; i < rows * H; ++i) bytes[i] = random.chance(0.3);
        (*flags)->make_read_only();
      }
      grads_[d] = draw_gradients(problem, random);
    }
    std::vector<const Values*> y, cells;
    for (int d = 0; d < shape.directions; ++d) {
      y.push_back(&grads_[d].y);
      cells.push_back(&grads_[d].cell_states);
    }
    grad_y_ = problem.sequence(y, P);
    grad_cell_states_ = problem.sequence(cells, H);
  }

  // A forward and a backward with a team and row groups of these sizes.
  Outputs run(cpu::Isa isa, int row_groups, int team, const Pool& pool) {
    Outputs outputs;
    forward(isa, row_groups, team, pool.parallel, outputs);
    backward(isa, row_groups, team, pool.parallel, outputs);
    return outputs;
  }

 private:
  struct Inputs {
    Array peephole, h_mask, reset_h, reset_c, gains, cell_norm;
    std::unique_ptr<FencedMemory> keep_c, keep_h;
  };

  CellOptionInputs inputs(int d) const {
    const Inputs& from = inputs_[d];
    const auto data = [](const Array& array) { return array.size() ? array.data() : nullptr; };
    const auto flags = [](const auto& memory) {
      return memory ? static_cast<const uint8_t*>(memory->get()) : nullptr;
    };
    return {data(from.peephole),
            data(from.h_mask),
            flags(from.keep_c),
            flags(from.keep_h),
            has_resets() ? data(from.reset_h) : nullptr,
            has_resets() ? data(from.reset_c) : nullptr,
            data(from.gains),
            data(from.cell_norm)};
  }
  bool has_resets() const { return !problem_.values.reset_mask.empty(); }

  void* out(Outputs& outputs, DType dtype, const std::string& name, int64_t size) {
    outputs[name] = Array(dtype, size);
    outputs[name].fill_canary();
    return outputs[name].data();
  }

  void forward(cpu::Isa isa, int row_groups, int team, const Parallel& parallel, Outputs& outputs) {
    const LstmShape& shape = problem_.values.shape;
    const DType dtype = problem_.dtype, accumulator = accumulator_type(dtype);
    const int64_t N = shape.batch, H = shape.hidden_size, P = shape.output_size;
    const int64_t L = shape.directions, rows = problem_.sequence_rows();
    const int64_t M = problem_.data_rows();
    cpu::CpuFacts facts;
    facts.isa = isa;
    cpu::LstmPlan plan = cpu::make_forward_plan(
        shape, dtype, facts, set_.norms ? cpu::CellKind::kNorms : cpu::CellKind::kOptions);
    plan.row_groups = row_groups;
    plan.team = team;
    LstmForwardArgs args;
    args.shape = shape;
    args.dtype = dtype;
    args.layout = &problem_.layout;
    args.x = x_.data();
    args.options = &options_;
    if (has_resets()) args.reset_mask = layer_.marks();
    out(outputs, dtype, "y", rows * L * P);
    out(outputs, dtype, "cell_states", rows * L * H);
    for (int d = 0; d < shape.directions; ++d) {
      LstmForwardDirection& to = args.direction[d];
      to.weights = layer_.weights(d);
      to.h_0 = layer_.h_0(d);
      to.c_0 = layer_.c_0(d);
      to.y = outputs["y"].at(d * P);
      to.cell_states = outputs["cell_states"].at(d * H);
      to.h_n = out(outputs, dtype, text("h_n", d), N * P);
      to.c_n = out(outputs, dtype, text("c_n", d), N * H);
      to.gates = out(outputs, dtype, text("gates", d), M * 4 * H);
      to.cells = out(outputs, accumulator, text("cells", d), M * H);
      to.options = inputs(d);
      if (!set_.norms) continue;
      to.norms = {out(outputs, dtype, text("normalised", d), M * 2 * 4 * H),
                  out(outputs, accumulator, text("scales", d), M * 2)};
    }
    cpu::lstm_forward(args, plan, parallel);
  }

  void backward(cpu::Isa isa, int row_groups, int team, const Parallel& parallel,
                Outputs& outputs) {
    const LstmShape& shape = problem_.values.shape;
    const DType dtype = problem_.dtype;
    const int64_t N = shape.batch, D = shape.input_size, H = shape.hidden_size;
    const int64_t P = shape.output_size;
    cpu::CpuFacts facts;
    facts.isa = isa;
    cpu::LayerBackwardPlan plan =
        cpu::make_layer_backward_plan(shape, problem_.data_rows(), dtype, facts);
    plan.recurrence.row_groups = row_groups;
    plan.recurrence.team = team;
    plan.gradient_threads = parallel.threads;
    cpu::LayerBackwardArgs args;
    args.shape = shape;
    args.dtype = dtype;
    args.layout = &problem_.layout;
    args.x = x_.data();
    args.options = &options_;
    if (has_resets()) args.reset_mask = layer_.marks();
    args.grad_x = out(outputs, dtype, "grad_x", problem_.sequence_rows() * D);
    std::vector<Array> incoming;
    incoming.reserve(2 * kMaxDirections);
    for (int d = 0; d < shape.directions; ++d) {
      LayerBackwardDirection& to = args.direction[d];
      LstmBackwardDirection& recurrence = to.recurrence;
      recurrence.weights = layer_.weights(d);
      recurrence.c_0 = layer_.c_0(d);
      recurrence.gates = outputs[text("gates", d)].data();
      recurrence.cells = outputs[text("cells", d)].data();
      recurrence.grad_y = grad_y_.at(d * P);
      recurrence.grad_cell_states = grad_cell_states_.at(d * H);
      incoming.push_back(Array::input(dtype, grads_[d].h_n));
      recurrence.grad_h_n = incoming.back().data();
      incoming.push_back(Array::input(dtype, grads_[d].c_n));
      recurrence.grad_c_n = incoming.back().data();
      recurrence.grad_h_0 = out(outputs, dtype, text("grad_h_0", d), N * P);
      recurrence.grad_c_0 = out(outputs, dtype, text("grad_c_0", d), N * H);
      recurrence.options = inputs(d);
      CellOptionGradients& grads = recurrence.grad_options;
      if (set_.peephole) grads.peephole = out(outputs, dtype, text("grad_peephole", d), 3 * H);
      if (recurrence.options.reset_h) {
        grads.reset_h = out(outputs, dtype, text("grad_reset_h", d), N * P);
        grads.reset_c = out(outputs, dtype, text("grad_reset_c", d), N * H);
      }
      if (set_.norms) {
        grads.gains = out(outputs, dtype, text("grad_gains", d), 2 * 4 * H);
        grads.cell_norm = out(outputs, dtype, text("grad_cell_norm", d), 2 * H);
        recurrence.norms = {outputs[text("normalised", d)].data(),
                            outputs[text("scales", d)].data()};
      }
      to.h_0 = layer_.h_0(d);
      to.y = outputs["y"].at(d * P);
      to.grad_w_ih = out(outputs, dtype, text("grad_w_ih", d), 4 * H * D);
      to.grad_w_hh = out(outputs, dtype, text("grad_w_hh", d), 4 * H * P);
      if (recurrence.weights.b_ih && recurrence.weights.b_hh) {
        to.grad_b_ih = out(outputs, dtype, text("grad_b_ih", d), 4 * H);
        to.grad_b_hh = out(outputs, dtype, text("grad_b_hh", d), 4 * H);
      }
      if (shape.projection) to.grad_w_hr = out(outputs, dtype, text("grad_w_hr", d), P * H);
    }
    cpu::layer_backward(args, plan, parallel);
  }

  const Problem& problem_;
  const OptionSet& set_;
  CellOptions options_;
  LayerArrays layer_;
  Array x_, grad_y_, grad_cell_states_;
  std::vector<Inputs> inputs_;
  IncomingGradients grads_[kMaxDirections];
};

// Largest difference in units of the largest value, over what both have written.
double distance(const Array& a, const Array& b) {
  double difference = 0, largest = 1;
  for (int64_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a.get(i)) || std::isnan(b.get(i))) continue;
    difference = std::max(difference, std::fabs(a.get(i) - b.get(i)));
    largest = std::max(largest, std::fabs(b.get(i)));
  }
  return difference / largest;
}

void check_case(const Case& of, const OptionSet& set) {
  const Scope scope(text(of.name(), ", ", set.name));
  for (DType dtype : kDTypes) {
    if (set.options.cell_clip > 0 && is_half(dtype)) continue;
    const Problem problem(of, dtype);
    OptionCall call(problem, set);
    Outputs baseline;
    for (cpu::Isa isa : distinct_isas(dtype)) {
      const Scope inner(text(dtype_name(dtype), ", ", cpu::isa_name(isa)));
      const Outputs base = call.run(isa, 1, 1, kOneThread);
      for (int row_groups = 1; row_groups <= 2; ++row_groups) {
        for (int team = 1; team <= 3; ++team) {
          const Pool& pool = next_pool();
          const Scope division(text(row_groups, " groups, team of ", team, ", ", pool.name));
          check_same_bits(call.run(isa, row_groups, team, pool), base);
        }
      }
      if (baseline.empty()) baseline = base;
      const double limit = is_half(dtype) ? 0.1 : dtype == DType::kFloat32 ? 1e-4 : 1e-11;
      for (const auto& [name, array] : base) {
        if (distance(array, baseline.at(name)) <= limit) continue;
        report_failure(__FILE__, __LINE__, name + " is far from the baseline's");
      }
    }
  }
}

}  // namespace
}  // namespace lstm_fused::test

int main() {
  using namespace lstm_fused::test;
  int number = 0;
  for (const Case& of : all_cases()) {
    // Every case with two of the sets, and every set with two fifths of the cases.
    for (int i = 0; i < 2; ++i) check_case(of, kSets[(number + 2 * i) % 5]);
    ++number;
  }
  return exit_status();
}
