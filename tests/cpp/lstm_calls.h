// SPDX-License-Identifier: BSD-3-Clause
// Calls of lstm_forward and lstm_backward on a Problem's values, and what they must give.
#pragma once

#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "lstm_cases.h"
#include "parallel.h"

namespace lstm_fused::test {

// Inputs that forward and backward share, in the layer's dtype. Nobody may write them.
struct LayerArrays {
  explicit LayerArrays(const Problem& problem) : reset_mask(problem.values.reset_mask.size()) {
    const LayerValues& values = problem.values;
    std::copy(values.reset_mask.begin(), values.reset_mask.end(), marks());
    reset_mask.make_read_only();
    for (int d = 0; d < values.shape.directions; ++d) {
      const DirectionValues& from = values.direction[d];
      const Values* parts[] = {&from.w_ih, &from.w_hh, &from.b_ih, &from.b_hh,
                               &from.w_hr, &from.h_0,  &from.c_0};
      for (int i = 0; i < kParts; ++i) {
        if (!parts[i]->empty()) part[d][i] = Array::input(problem.dtype, *parts[i]);
      }
    }
  }
  uint8_t* marks() const { return static_cast<uint8_t*>(reset_mask.get()); }
  LstmWeights weights(int d) const {
    return {part[d][0].data(), part[d][1].data(), part[d][2].data(), part[d][3].data(),
            part[d][4].data()};
  }
  const void* h_0(int d) const { return part[d][5].data(); }
  const void* c_0(int d) const { return part[d][6].data(); }

  static constexpr int kParts = 7;
  FencedMemory reset_mask;
  Array part[kMaxDirections][kParts];
};

// Outputs by name, for one direction or (y, cell_states) for both.
using Outputs = std::map<std::string, Array>;

inline void check_same_bits(const Outputs& got, const Outputs& wanted) {
  for (const auto& [name, array] : got) {
    if (array.same_bits(wanted.at(name))) continue;
    report_failure(__FILE__, __LINE__, name + " differs in its bits");
  }
}

class ForwardCall {
 public:
  // save: with the outputs that may be absent.
  ForwardCall(const Problem& problem, bool save) : problem_(problem), layer_(problem) {
    const LstmShape& shape = problem.values.shape;
    const DType dtype = problem.dtype, accumulator = accumulator_type(dtype);
    const int64_t rows = problem.sequence_rows(), data_rows = problem.data_rows();
    const int64_t N = shape.batch, H = shape.hidden_size, P = shape.output_size;
    const Array x = problem.sequence({&problem.values.x}, shape.input_size);
    Values x_values(x.size());
    for (int64_t i = 0; i < x.size(); ++i) x_values[i] = x.get(i);
    x_ = Array::input(dtype, x_values);
    outputs["y"] = Array(dtype, rows * shape.directions * P);
    if (save) outputs["cell_states"] = Array(dtype, rows * shape.directions * H);
    for (int d = 0; d < shape.directions; ++d) {
      outputs[named("h_n", d)] = Array(dtype, N * P);
      outputs[named("c_n", d)] = Array(dtype, N * H);
      if (!save) continue;
      outputs[named("gates", d)] = Array(dtype, data_rows * 4 * H);
      outputs[named("cells", d)] = Array(accumulator, data_rows * H);
    }
  }

  void run(const cpu::LstmPlan& plan, const Parallel& parallel) {
    const LstmShape& shape = problem_.values.shape;
    LstmForwardArgs args;
    args.shape = shape;
    args.dtype = problem_.dtype;
    args.layout = &problem_.layout;
    args.x = x_.data();
    if (!problem_.values.reset_mask.empty()) args.reset_mask = layer_.marks();
    for (auto& output : outputs) output.second.fill_canary();
    for (int d = 0; d < shape.directions; ++d) {
      LstmForwardDirection& to = args.direction[d];
      to.weights = layer_.weights(d);
      to.h_0 = layer_.h_0(d);
      to.c_0 = layer_.c_0(d);
      to.y = outputs["y"].at(d * shape.output_size);
      to.h_n = outputs[named("h_n", d)].data();
      to.c_n = outputs[named("c_n", d)].data();
      if (!outputs.count("cell_states")) continue;
      to.cell_states = outputs["cell_states"].at(d * shape.hidden_size);
      to.gates = outputs[named("gates", d)].data();
      to.cells = outputs[named("cells", d)].data();
    }
    cpu::lstm_forward(args, plan, parallel);
  }

  // The gates anew, from what the last run gave.
  Outputs rebuild_gates(const cpu::LstmPlan& plan, const Parallel& parallel) {
    const LstmShape& shape = problem_.values.shape;
    LstmGatesArgs args;
    args.shape = shape;
    args.dtype = problem_.dtype;
    args.layout = &problem_.layout;
    args.x = x_.data();
    if (!problem_.values.reset_mask.empty()) args.reset_mask = layer_.marks();
    Outputs gates;
    for (int d = 0; d < shape.directions; ++d) {
      Array& out = gates[named("gates", d)];
      out = Array(problem_.dtype, problem_.data_rows() * 4 * shape.hidden_size);
      args.direction[d] = {layer_.weights(d), layer_.h_0(d), outputs["y"].at(d * shape.output_size),
                           out.data()};
    }
    cpu::rebuild_gates(args, plan, parallel);
    return gates;
  }

  static std::string named(const char* name, int d) { return text(name, d); }

  const Array& x() const { return x_; }

  Outputs outputs;

 private:
  const Problem& problem_;
  LayerArrays layer_;
  Array x_;
};

class BackwardCall {
 public:
  // gates, cells: (T, N, ·), from a forward. need_states: ask for the gradients of h_0 and c_0.
  BackwardCall(const Problem& problem, const ForwardTruth (&saved)[kMaxDirections],
               const IncomingGradients (&grads)[kMaxDirections], bool need_states)
      : problem_(problem), layer_(problem) {
    const LstmShape& shape = problem.values.shape;
    const DType dtype = problem.dtype, accumulator = accumulator_type(dtype);
    const int64_t N = shape.batch, H = shape.hidden_size, P = shape.output_size;
    const int64_t data_rows = problem.data_rows();
    std::vector<const Values*> y, cell_states;
    for (int d = 0; d < shape.directions; ++d) {
      y.push_back(&grads[d].y);
      cell_states.push_back(&grads[d].cell_states);
      inputs_[named("gates", d)] = problem.data(dtype, saved[d].gates, 4 * H);
      inputs_[named("cells", d)] = problem.data(accumulator, saved[d].cells, H);
      inputs_[named("h_n", d)] = Array::input(dtype, grads[d].h_n);
      inputs_[named("c_n", d)] = Array::input(dtype, grads[d].c_n);
      outputs[named("grad_gates", d)] = Array(dtype, data_rows * 4 * H);
      if (shape.projection) outputs[named("grad_output", d)] = Array(dtype, data_rows * P);
      if (!need_states) continue;
      outputs[named("grad_h_0", d)] = Array(dtype, N * P);
      outputs[named("grad_c_0", d)] = Array(dtype, N * H);
    }
    inputs_["y"] = problem.sequence(y, P);
    inputs_["cell_states"] = problem.sequence(cell_states, H);
  }

  // Takes back an incoming gradient: "y", "cell_states", "h_n" or "c_n".
  void drop(const std::string& name) {
    for (const char* suffix : {"", "0", "1"}) inputs_.erase(name + suffix);
  }

  // in_place: the gates' gradients overwrite the gates.
  void run(const cpu::LstmPlan& plan, const Parallel& parallel, bool in_place = false) {
    for (auto& output : outputs) output.second.fill_canary();
    cpu::lstm_backward(args(in_place), plan, parallel);
  }

  // `run`, `steps` steps at a time.
  void run_in_pieces(const cpu::LstmPlan& plan, const Parallel& parallel, int64_t steps) {
    const LstmShape& shape = problem_.values.shape;
    const int64_t storage = dtype_size(problem_.dtype);
    for (auto& output : outputs) output.second.fill_canary();
    const LstmBackwardArgs whole = args();
    cpu::LstmBackward backward(whole, plan, parallel);
    for (int64_t done = 0; done < shape.steps; done += steps) {
      const int64_t count = std::min(steps, shape.steps - done);
      cpu::BackwardPiece pieces[kMaxDirections];
      for (int d = 0; d < shape.directions; ++d) {
        const LstmBackwardDirection& of = whole.direction[d];
        const int64_t first = problem_.layout.step_offset[d ? done : shape.steps - done - count];
        pieces[d] = {count, first, advance(of.gates, first * 4 * shape.hidden_size, storage),
                     advance(of.grad_gates, first * 4 * shape.hidden_size, storage),
                     advance(of.grad_output, first * shape.output_size, storage)};
      }
      backward.run(pieces, parallel);
    }
  }

  // The arguments for all steps. in_place: the gates are copied to their gradients.
  LstmBackwardArgs args(bool in_place = false) {
    const LstmShape& shape = problem_.values.shape;
    LstmBackwardArgs args;
    args.shape = shape;
    args.dtype = problem_.dtype;
    args.layout = &problem_.layout;
    if (!problem_.values.reset_mask.empty()) args.reset_mask = layer_.marks();
    for (int d = 0; d < shape.directions; ++d) {
      LstmBackwardDirection& to = args.direction[d];
      to.weights = layer_.weights(d);
      to.weights.w_ih = to.weights.b_ih = to.weights.b_hh = nullptr;  // not read
      to.c_0 = layer_.c_0(d);
      to.gates = inputs_[named("gates", d)].data();
      to.cells = inputs_[named("cells", d)].data();
      to.grad_y = inputs_["y"].at(d * shape.output_size);
      to.grad_h_n = inputs_[named("h_n", d)].data();
      to.grad_c_n = inputs_[named("c_n", d)].data();
      to.grad_cell_states = inputs_["cell_states"].at(d * shape.hidden_size);
      to.grad_gates = outputs[named("grad_gates", d)].data();
      if (in_place) {
        const Array& gates = inputs_[named("gates", d)];
        std::memcpy(to.grad_gates, gates.data(), gates.size() * dtype_size(problem_.dtype));
        to.gates = to.grad_gates;
      }
      if (shape.projection) to.grad_output = outputs[named("grad_output", d)].data();
      if (!outputs.count(named("grad_h_0", d))) continue;
      to.grad_h_0 = outputs[named("grad_h_0", d)].data();
      to.grad_c_0 = outputs[named("grad_c_0", d)].data();
    }
    return args;
  }

  static std::string named(const char* name, int d) { return text(name, d); }

  Outputs outputs;

 private:
  const Problem& problem_;
  LayerArrays layer_;
  Outputs inputs_;
};

// ---- Comparison with the reference -------------------------------------------------------------

// Compares arrays with truth, and remembers the largest error in multiples of the tolerance.
class Verifier {
 public:
  // Each step adds a few roundings to what it takes over from the one before. Those of 16-bit
  // types lie between what is stored and its neighbour, since the reference rounds the state too;
  // what they sum up in float is small beside it.
  Verifier(const Problem& problem, double& worst)
      : problem_(problem), tolerance_(epsilon(problem.dtype)), worst_(worst) {
    if (dtype_size(problem.dtype) > 2) tolerance_ *= 8 + problem.values.shape.steps;
  }

  // `columns` columns from `first` on of a sequence's rows of `stride`; padding is untouched.
  void sequence(const Array& got, int64_t stride, int64_t first, const Values& truth,
                int64_t columns) const {
    for (int64_t n = 0; n < problem_.values.shape.batch; ++n) {
      const int64_t last = problem_.packed ? problem_.lengths()[n] : problem_.values.shape.steps;
      for (int64_t t = 0; t < last; ++t) {
        for (int64_t k = 0; k < columns; ++k) {
          const int64_t at = problem_.sequence_row(t, n) * stride + first + k;
          if (t >= problem_.lengths()[n]) {
            CHECK(got.is_canary(at));
          } else {
            element(got.get(at), truth[(t * problem_.values.shape.batch + n) * columns + k]);
          }
        }
      }
    }
  }

  void data(const Array& got, const Values& truth, int64_t columns) const {
    for (int64_t n = 0; n < problem_.values.shape.batch; ++n) {
      for (int64_t t = 0; t < problem_.lengths()[n]; ++t) {
        for (int64_t k = 0; k < columns; ++k) {
          element(got.get(problem_.data_row(t, n) * columns + k),
                  truth[(t * problem_.values.shape.batch + n) * columns + k]);
        }
      }
    }
  }

  void all(const Array& got, const Values& truth) const {
    CHECK_EQ(got.size(), static_cast<int64_t>(truth.size()));
    for (int64_t i = 0; i < got.size(); ++i) element(got.get(i), truth[i]);
  }

 private:
  void element(double got, double truth) const {
    const double error = std::fabs(got - truth) / (tolerance_ * (1 + std::fabs(truth)));
    CHECK_LE(error, 1.0);
    worst_ = std::max(worst_, error);
  }

  const Problem& problem_;
  double tolerance_;
  double& worst_;
};

}  // namespace lstm_fused::test
