// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/blas.h"
#include "cuda/direction_weights.h"
#include "cuda/options/forward.h"
#include "cuda/options/forward_norms.cuh"
#include "cuda/options/persistent/recurrence.h"
#include "cuda/status.h"
#include "cuda/workspace.h"

namespace lstm_fused::cuda {
namespace {

class OptionsForward {
 public:
  OptionsForward(const OptionsForwardCall& call, const LstmPlan& plan);
  template <typename Storage>
  void run();
  void run_persistent() const;

 private:
  void* workspace(int64_t offset) const { return static_cast<char*>(call_.workspace) + offset; }
  bool has_norms() const { return call_.direction[0].options.cell_norm != nullptr; }
  bool is_training() const { return call_.direction[0].cells != nullptr; }
  void* preactivations(int d) const;
  void multiply_input() const;
  void multiply_entering(const RecurrentWeights& weights, const int64_t* t) const;
  void project(const RecurrentWeights& weights) const;
  OptionForwardArgs step_args(int64_t step) const;
  template <typename Storage>
  void launch_cells(const OptionForwardArgs& args) const;
  template <typename Storage>
  void launch_output(const OptionForwardArgs& args) const;

  const OptionsForwardCall& call_;
  const LstmPlan& plan_;
  const LstmShape& s_;
  const int64_t storage_, accumulator_;  // bytes of an element
  const int64_t gates_;                  // 4H
  const Blas blas_;
  const OptionsForwardWorkspace parts_;
};

OptionsForward::OptionsForward(const OptionsForwardCall& call, const LstmPlan& plan)
    : call_(call),
      plan_(plan),
      s_(call.shape),
      storage_(dtype_size(call.dtype)),
      accumulator_(accumulator_size(call.dtype)),
      gates_(kGates * call.shape.hidden_size),
      blas_(call.blas_handle, call.stream, call.dtype, plan.allow_tf32),
      parts_(options_forward_workspace(call.shape, call.dtype, call.direction[0].cells != nullptr,
                                       plan.preactivations_in_gates,
                                       options_kernels(plan, has_norms()))) {}

void* OptionsForward::preactivations(int d) const {
  return plan_.preactivations_in_gates ? call_.direction[d].gates
                                       : advance(workspace(parts_.preactivations),
                                                 d * s_.steps * s_.batch * gates_, accumulator_);
}

// The input GEMM: x·W_ihᵀ, for all steps at once.
void OptionsForward::multiply_input() const {
  for (int d = 0; d < s_.directions; ++d) {
    Gemm gemm;
    gemm.m = s_.steps * s_.batch;
    gemm.n = gates_;
    gemm.k = s_.input_size;
    gemm.a = {call_.x, s_.input_size};
    gemm.b = {call_.direction[d].weights.w_ih, s_.input_size, true};
    gemm.c = preactivations(d);
    gemm.c_stride = gates_;
    gemm.c_accumulator = true;
    blas_.gemm(gemm);
  }
}

// The recurrent GEMM of steps t: added onto the input GEMM's, but for norms, which want both.
void OptionsForward::multiply_entering(const RecurrentWeights& weights, const int64_t* t) const {
  Gemm gemm;
  gemm.m = s_.batch;
  gemm.n = gates_;
  gemm.k = s_.output_size;
  gemm.a = {workspace(parts_.entering), s_.output_size, false, s_.batch * s_.output_size};
  gemm.b = {weights.w_hh, s_.output_size, true, gates_ * s_.output_size};
  gemm.c = has_norms() ? workspace(parts_.recurrent)
                       : advance(preactivations(0), t[0] * s_.batch * gates_, accumulator_);
  gemm.c_stride = gates_;
  gemm.c_batch_stride = has_norms() ? s_.batch * gates_ : direction_stride(s_, t, gates_);
  gemm.c_accumulator = true;
  gemm.beta = has_norms() ? 0 : 1;
  gemm.batch = s_.directions;
  blas_.gemm(gemm);
}

// h = cell_output·W_hrᵀ.
void OptionsForward::project(const RecurrentWeights& weights) const {
  Gemm gemm;
  gemm.m = s_.batch;
  gemm.n = s_.output_size;
  gemm.k = s_.hidden_size;
  gemm.a = {workspace(parts_.cell_output), s_.hidden_size, false, s_.batch * s_.hidden_size};
  gemm.b = {weights.w_hr, s_.hidden_size, true, s_.output_size * s_.hidden_size};
  gemm.c = workspace(parts_.h);
  gemm.c_stride = s_.output_size;
  gemm.c_batch_stride = s_.batch * s_.output_size;
  gemm.batch = s_.directions;
  blas_.gemm(gemm);
}

OptionForwardArgs OptionsForward::step_args(int64_t step) const {
  const int64_t t[] = {step, s_.steps - 1 - step}, t_prev[] = {step - 1, s_.steps - step};
  const int64_t hidden = s_.hidden_size, y_columns = s_.directions * s_.output_size;
  OptionForwardArgs args;
  args.steps = s_.steps;
  args.batch = s_.batch;
  args.hidden_size = hidden;
  args.output_size = s_.output_size;
  args.directions = s_.directions;
  args.first_call = step == 0;
  args.lengths = call_.lengths;
  args.reset_mask = call_.reset_mask;
  args.options = call_.options;
  for (int i = 0; i < s_.directions; ++i) {
    const LstmForwardDirection& d = call_.direction[i];
    const int64_t row = t[i] * s_.batch, states = i * s_.batch;
    OptionForwardDirection& out = args.direction[i];
    out.step = t[i];
    out.next = i == 0 ? t[i] + 1 : t[i] - 1;
    out.preactivations = advance(preactivations(i), row * gates_, accumulator_);
    out.b_ih = d.weights.b_ih;
    out.b_hh = d.weights.b_hh;
    out.h_0 = d.h_0;
    out.c_0 = d.c_0;
    // NOTE: what is of the step before is out of range at the first one, where no row reads it.
    if (is_training()) {
      if (step > 0) out.c_prev = advance(d.cells, t_prev[i] * s_.batch * hidden, accumulator_);
      out.c = advance(d.cells, row * hidden, accumulator_);
    } else {
      out.c = advance(workspace(parts_.cell), states * hidden, accumulator_);
      out.c_prev = out.c;
    }
    if (step > 0) out.y_prev = advance(d.y, t_prev[i] * s_.batch * y_columns, storage_);
    out.y = advance(d.y, row * y_columns, storage_);
    if (s_.projection) {
      out.cell_output = advance(workspace(parts_.cell_output), states * hidden, storage_);
      out.h = advance(workspace(parts_.h), states * s_.output_size, storage_);
    }
    if (step + 1 < s_.steps) {
      out.entering = advance(workspace(parts_.entering), states * s_.output_size, storage_);
    }
    out.h_n = d.h_n;
    out.c_n = d.c_n;
    out.cell_states = advance(d.cell_states, row * s_.directions * hidden, storage_);
    out.gates = advance(d.gates, row * gates_, storage_);
    out.options = d.options;
    if (!has_norms()) continue;
    out.recurrent = advance(workspace(parts_.recurrent), states * gates_, accumulator_);
    out.norms.normalised = advance(d.norms.normalised, row * kNorms * gates_, storage_);
    out.norms.scales = advance(d.norms.scales, row * kNorms, accumulator_);
    out.output_parts = advance(workspace(parts_.output_parts), states * 2 * hidden, accumulator_);
  }
  return args;
}

template <typename Storage>
void OptionsForward::launch_cells(const OptionForwardArgs& args) const {
  if (has_norms()) {
    const dim3 grid(static_cast<unsigned>(s_.batch), 1, static_cast<unsigned>(s_.directions));
    option_norm_forward_kernel<Storage>
        <<<grid, norm_threads(s_.hidden_size), 0, call_.stream>>>(args);
    return check_launch("option_norm_forward_kernel");
  }
  const RowGrid launch = row_grid(s_.batch, s_.hidden_size, 1, s_.directions);
  option_forward_kernel<Storage><<<launch.grid, launch.block, 0, call_.stream>>>(args);
  check_launch("option_forward_kernel");
}

template <typename Storage>
void OptionsForward::launch_output(const OptionForwardArgs& args) const {
  const RowGrid launch = row_grid(s_.batch, s_.output_size, 1, s_.directions);
  option_output_kernel<Storage><<<launch.grid, launch.block, 0, call_.stream>>>(args);
  check_launch("option_output_kernel");
}

template <typename Storage>
void OptionsForward::run() {
  const void *w_hh[kMaxDirections] = {}, *w_hr[kMaxDirections] = {};
  for (int i = 0; i < s_.directions; ++i) {
    w_hh[i] = call_.direction[i].weights.w_hh;
    w_hr[i] = call_.direction[i].weights.w_hr;
  }
  const RecurrentWeights weights =
      recurrent_weights(s_, call_.dtype, w_hh, w_hr, /*composite=*/false, workspace(parts_.w_hh),
                        workspace(parts_.w_hr), call_.stream, blas_);
  multiply_input();

  // Write what enters the first step.
  OptionForwardArgs first = step_args(0);
  for (int i = 0; i < s_.directions; ++i) {
    OptionForwardDirection& d = first.direction[i];
    d.next = d.step;
    d.h = nullptr;
    d.entering = advance(workspace(parts_.entering), i * s_.batch * s_.output_size, storage_);
  }
  launch_output<Storage>(first);

  for (int64_t step = 0; step < s_.steps; ++step) {
    const int64_t t[] = {step, s_.steps - 1 - step};
    multiply_entering(weights, t);
    const OptionForwardArgs args = step_args(step);
    launch_cells<Storage>(args);
    if (!s_.projection) continue;
    project(weights);
    launch_output<Storage>(args);
  }
}

void OptionsForward::run_persistent() const {
  multiply_input();
  void* sums[kMaxDirections] = {};
  for (int i = 0; i < s_.directions; ++i) sums[i] = preactivations(i);
  launch_persistent_option_forward(call_, plan_, sums, workspace(parts_.recurrence));
}

}  // namespace

void options_forward(const OptionsForwardCall& call, const LstmPlan& plan) {
  check_shape(call.shape);
  if (call.shape.batch == 0) return;
  OptionsForward forward(call, plan);
  if (plan.variant != Variant::kStepwise) return forward.run_persistent();
  dispatch_storage(call.dtype, [&](auto storage) { forward.run<decltype(storage)>(); });
}

}  // namespace lstm_fused::cuda
