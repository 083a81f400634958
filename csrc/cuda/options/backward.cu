// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/direction_weights.h"
#include "cuda/options/backward.h"
#include "cuda/options/backward_norms.cuh"
#include "cuda/options/persistent/recurrence.h"
#include "cuda/options/sums.h"
#include "cuda/status.h"
#include "cuda/workspace.h"

namespace lstm_fused::cuda {
namespace {

class OptionsBackward {
 public:
  OptionsBackward(const OptionsBackwardCall& call, const LstmPlan& plan,
                  const OptionRecurrence* directions, void* workspace, const Blas& blas);
  template <typename Storage>
  void run() const;
  void run_persistent(const LstmPlan& plan) const;
  void clear_sums() const;
  void store_sums() const;

 private:
  bool has_norms() const { return call_.direction[0].recurrence.options.cell_norm != nullptr; }
  void* part(int64_t offset) const { return static_cast<char*>(workspace_) + offset; }
  // Rows of direction d of an accumulator of the workspace; null where the step needs none.
  void* part(int64_t offset, int d, int64_t columns, bool wanted) const {
    return wanted ? advance(part(offset), d * s_.batch * columns, accumulator_) : nullptr;
  }
  void multiply_by_w_hr(const RecurrentWeights& weights, const int64_t* t) const;
  void multiply_by_w_hh(const RecurrentWeights& weights, const int64_t* t) const;
  OptionBackwardArgs step_args(int64_t k) const;
  void set_norms(int d, int64_t row, OptionBackwardDirection& out) const;
  template <typename Storage>
  void launch_cells(const OptionBackwardArgs& args) const;

  const OptionsBackwardCall& call_;
  const OptionRecurrence* directions_;
  void* workspace_;
  const LstmShape& s_;
  const int64_t storage_, accumulator_;  // bytes of an element
  const int64_t gates_;                  // 4H
  const Blas& blas_;
  const OptionsBackwardWorkspace parts_;
};

OptionsBackward::OptionsBackward(const OptionsBackwardCall& call, const LstmPlan& plan,
                                 const OptionRecurrence* directions, void* workspace,
                                 const Blas& blas)
    : call_(call),
      directions_(directions),
      workspace_(workspace),
      s_(call.shape),
      storage_(dtype_size(call.dtype)),
      accumulator_(accumulator_size(call.dtype)),
      gates_(kGates * call.shape.hidden_size),
      blas_(blas),
      parts_(
          options_backward_workspace(call.shape, call.dtype, options_kernels(plan, has_norms()))) {}

// dh = grad_output·W_hr of steps t.
void OptionsBackward::multiply_by_w_hr(const RecurrentWeights& weights, const int64_t* t) const {
  const int64_t output = s_.output_size, hidden = s_.hidden_size;
  Gemm gemm;
  gemm.m = s_.batch;
  gemm.n = hidden;
  gemm.k = output;
  gemm.a = {advance(directions_[0].grad_output, t[0] * s_.batch * output, storage_), output, false,
            direction_stride(s_, t, output)};
  gemm.b = {weights.w_hr, hidden, false, output * hidden};
  gemm.c = part(parts_.dh);
  gemm.c_stride = hidden;
  gemm.c_batch_stride = s_.batch * hidden;
  gemm.c_accumulator = true;
  gemm.batch = s_.directions;
  blas_.gemm(gemm);
}

// product = grad_gates·W_hh of steps t; with norms grad_recurrent·W_hh.
void OptionsBackward::multiply_by_w_hh(const RecurrentWeights& weights, const int64_t* t) const {
  const int64_t output = s_.output_size;
  const void* grads = has_norms() ? directions_[0].grad_recurrent : directions_[0].grad_gates;
  Gemm gemm;
  gemm.m = s_.batch;
  gemm.n = output;
  gemm.k = gates_;
  gemm.a = {advance(grads, t[0] * s_.batch * gates_, storage_), gates_, false,
            direction_stride(s_, t, gates_)};
  gemm.b = {weights.w_hh, output, false, gates_ * output};
  gemm.c = part(parts_.product);
  gemm.c_stride = output;
  gemm.c_batch_stride = s_.batch * output;
  gemm.c_accumulator = true;
  gemm.batch = s_.directions;
  blas_.gemm(gemm);
}

OptionBackwardArgs OptionsBackward::step_args(int64_t k) const {
  const int64_t t[] = {s_.steps - 1 - k, k}, before[] = {t[0] - 1, t[1] + 1};
  const int64_t hidden = s_.hidden_size, output = s_.output_size, states = s_.batch * hidden;
  OptionBackwardArgs args;
  args.steps = s_.steps;
  args.batch = s_.batch;
  args.hidden_size = hidden;
  args.output_size = output;
  args.directions = s_.directions;
  args.first_call = k == 0;
  args.lengths = call_.lengths;
  args.reset_mask = call_.reset_mask;
  args.options = call_.options;
  for (int i = 0; i < s_.directions; ++i) {
    const LstmBackwardDirection& d = call_.direction[i].recurrence;
    const OptionRecurrence& all = directions_[i];
    const int64_t row = t[i] * s_.batch, unit = row * hidden;
    OptionBackwardDirection& out = args.direction[i];
    out.step = t[i];
    out.later = i == 0 ? t[i] + 1 : t[i] - 1;
    out.options = d.options;
    out.product = part(parts_.product, i, output, true);
    out.carry =
        part(parts_.carry, i, hidden, d.options.keep_h != nullptr || call_.options.zoneout_h > 0);
    out.grad_reset_h = part(parts_.grad_reset_h, i, output, d.grad_options.reset_h != nullptr);
    out.grad_y = advance(d.grad_y, row * s_.directions * output, storage_);
    out.grad_h_n = d.grad_h_n;
    out.grad_h_0 = d.grad_h_0;
    out.grad_output = advance(all.grad_output, row * output, storage_);
    out.dh = part(parts_.dh, i, hidden, s_.projection);
    out.gates = advance(d.gates, row * gates_, storage_);
    out.cells = advance(d.cells, unit, accumulator_);
    // NOTE: out of range at the last call, where no row reads it.
    if (k + 1 < s_.steps) out.c_prev = advance(d.cells, before[i] * states, accumulator_);
    out.c_0 = d.c_0;
    out.grad_c_n = d.grad_c_n;
    out.grad_cell_states = advance(d.grad_cell_states, unit * s_.directions, storage_);
    out.dc = part(parts_.cell, i, hidden, true);
    out.grad_gates = advance(all.grad_gates, row * gates_, storage_);
    out.grad_c_0 = d.grad_c_0;
    out.cell_output = advance(all.cell_output, unit, storage_);
    out.grad_peephole =
        part(parts_.grad_peephole, i, kPeepholes * hidden, d.grad_options.peephole != nullptr);
    out.grad_reset_c = part(parts_.grad_reset_c, i, hidden, d.grad_options.reset_c != nullptr);
    if (has_norms()) set_norms(i, row, out);
  }
  return args;
}

void OptionsBackward::set_norms(int d, int64_t row, OptionBackwardDirection& out) const {
  const LstmBackwardDirection& from = call_.direction[d].recurrence;
  const CellOptionGradients& wanted = from.grad_options;
  out.norms.normalised = advance(from.norms.normalised, row * kNorms * gates_, storage_);
  out.norms.scales = advance(from.norms.scales, row * kNorms, accumulator_);
  out.grad_recurrent = advance(directions_[d].grad_recurrent, row * gates_, storage_);
  out.scratch = part(parts_.scratch, d, kNormScratch * s_.hidden_size, true);
  out.grad_gains = part(parts_.grad_gains, d, kNorms * gates_, wanted.gains != nullptr);
  out.grad_cell_norm =
      part(parts_.grad_cell_norm, d, 2 * s_.hidden_size, wanted.cell_norm != nullptr);
  out.grad_bias = part(parts_.grad_bias, d, gates_, call_.direction[d].grad_b_ih != nullptr);
}

template <typename Storage>
void OptionsBackward::launch_cells(const OptionBackwardArgs& args) const {
  if (has_norms()) {
    const dim3 grid(static_cast<unsigned>(s_.batch), 1, static_cast<unsigned>(s_.directions));
    option_norm_backward_kernel<Storage>
        <<<grid, norm_threads(s_.hidden_size), 0, call_.stream>>>(args);
    return check_launch("option_norm_backward_kernel");
  }
  const RowGrid launch = row_grid(s_.batch, s_.hidden_size, 1, s_.directions);
  option_backward_kernel<Storage><<<launch.grid, launch.block, 0, call_.stream>>>(args);
  check_launch("option_backward_kernel");
}

template <typename Storage>
void OptionsBackward::run() const {
  const cudaStream_t stream = call_.stream;
  const void *w_hh[kMaxDirections] = {}, *w_hr[kMaxDirections] = {};
  for (int i = 0; i < s_.directions; ++i) {
    w_hh[i] = call_.direction[i].recurrence.weights.w_hh;
    w_hr[i] = call_.direction[i].recurrence.weights.w_hr;
  }
  const RecurrentWeights weights =
      recurrent_weights(s_, call_.dtype, w_hh, w_hr, /*composite=*/false, part(parts_.w_hh),
                        part(parts_.w_hr), stream, blas_);
  const RowGrid outputs = row_grid(s_.batch, s_.output_size, 1, s_.directions);
  OptionBackwardArgs args;
  for (int64_t k = 0; k < s_.steps; ++k) {
    const int64_t t[] = {s_.steps - 1 - k, k};
    args = step_args(k);
    if (s_.projection) {
      option_state_gradient_kernel<Storage><<<outputs.grid, outputs.block, 0, stream>>>(args);
      check_launch("option_state_gradient_kernel");
      multiply_by_w_hr(weights, t);
    }
    launch_cells<Storage>(args);
    multiply_by_w_hh(weights, t);
  }
  for (OptionBackwardDirection& d : args.direction) d.later = d.step;
  option_initial_gradient_kernel<Storage><<<outputs.grid, outputs.block, 0, stream>>>(args);
  check_launch("option_initial_gradient_kernel");
}

void OptionsBackward::run_persistent(const LstmPlan& plan) const {
  PersistentOptionSums sums[kMaxDirections];
  for (int i = 0; i < s_.directions; ++i) {
    const CellOptionGradients& wanted = call_.direction[i].recurrence.grad_options;
    const auto sum = [&](int64_t offset, int64_t columns, const void* to) {
      return static_cast<float*>(part(offset, i, columns, to != nullptr));
    };
    sums[i].peephole = sum(parts_.grad_peephole, kPeepholes * s_.hidden_size, wanted.peephole);
    sums[i].reset_h = sum(parts_.grad_reset_h, s_.output_size, wanted.reset_h);
    sums[i].reset_c = sum(parts_.grad_reset_c, s_.hidden_size, wanted.reset_c);
  }
  launch_persistent_option_backward(call_, plan, directions_, sums, part(parts_.recurrence));
}

void OptionsBackward::clear_sums() const {
  check_cuda(cudaMemsetAsync(part(parts_.sums), 0, parts_.sums_end - parts_.sums, call_.stream),
             "cudaMemsetAsync");
}

// Hands over the options' gradients.
void OptionsBackward::store_sums() const {
  const int64_t hidden = s_.hidden_size, output = s_.output_size;
  for (int i = 0; i < s_.directions; ++i) {
    const CellOptionGradients& to = call_.direction[i].recurrence.grad_options;
    const auto sum = [&](int64_t offset, int64_t columns, void* out, void* twin = nullptr) {
      sum_rows(call_.dtype, part(offset, i, columns, true), s_.batch, columns, out, twin,
               call_.stream);
    };
    const auto round = [&](int64_t offset, int64_t columns, void* out) {
      round_values(call_.dtype, part(offset, i, columns, true), s_.batch * columns, out,
                   call_.stream);
    };
    sum(parts_.grad_peephole, kPeepholes * hidden, to.peephole);
    round(parts_.grad_reset_h, output, to.reset_h);
    round(parts_.grad_reset_c, hidden, to.reset_c);
    if (!has_norms()) continue;
    sum(parts_.grad_gains, kNorms * gates_, to.gains);
    sum(parts_.grad_cell_norm, 2 * hidden, to.cell_norm);
    sum(parts_.grad_bias, gates_, call_.direction[i].grad_b_ih, call_.direction[i].grad_b_hh);
  }
}

}  // namespace

void options_recurrence(const OptionsBackwardCall& call, const LstmPlan& plan,
                        const OptionRecurrence* directions, void* workspace, const Blas& blas) {
  const OptionsBackward backward(call, plan, directions, workspace, blas);
  backward.clear_sums();
  if (call.shape.batch > 0 && plan.variant != Variant::kStepwise) {
    backward.run_persistent(plan);
  } else if (call.shape.batch > 0) {
    dispatch_storage(call.dtype, [&](auto storage) { backward.run<decltype(storage)>(); });
  }
  backward.store_sums();
}

}  // namespace lstm_fused::cuda
