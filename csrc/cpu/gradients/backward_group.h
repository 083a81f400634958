// SPDX-License-Identifier: BSD-3-Clause
// One group's way back through a layer's steps, and the weights that it reads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/lstm.h"
#include "cpu/group.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/option_kernels.h"
#include "cpu/plan.h"
#include "cpu/runtime/scratch.h"
#include "cpu/runtime/team.h"

namespace lstm_fused::cpu {

// A direction's next steps, and their rows of data, in memory that need not hold others.
struct BackwardPiece {
  int64_t steps = 0;
  int64_t first_row = 0;        // of the steps' rows of data
  const void* gates = nullptr;  // (rows, 4H) storage
  void* grad_gates = nullptr;   // out (rows, 4H) storage; may be gates
  void* grad_output = nullptr;  // out (rows, P) storage; null without output projection
  void* cell_output = nullptr;  // out (rows, H) storage: o·tanh(c), with options; or null
  // out (rows, 4H) storage, with norms: gradient of h·W_hh; grad_gates is then that of x·W_ih
  void* grad_recurrent = nullptr;
};

// The weights of the recurrence as its kernels want them; without data where the plan is to read
// them as they are.
struct BackwardWeights {
  PanelMatrix w_hh;  // dh = d(pre-activations)·W_hh
  PanelMatrix w_hr;  // d(o·tanh(c)) = dh·W_hr, with output projection
};

// Backpropagation through time of one group. Step k reads the gate gradients of the step before it,
// which is the later one in time, from one buffer of operand rows and writes its own to the other.
class BackwardGroup {
 public:
  BackwardGroup(const LstmBackwardArgs& args, const LstmPlan& plan, const KernelTable& table,
                const BackwardWeights& weights, const Group& group);

  // Phases of the steps before `steps`; the last one of all is for the gradients of h_0.
  int64_t phases(int64_t steps) const {
    const bool is_end = steps == args_.shape.steps;
    return is_end ? group_.steps * phases_per_step_ + 1 : steps * phases_per_step_;
  }
  int direction() const { return group_.direction; }
  void begin_piece(const BackwardPiece& piece) { piece_ = piece; }
  void run(int64_t phase, int partition);
  void store_initial_gradients(const std::vector<int64_t>& lengths) const;
  // sums (columns) accumulator += what each row's gradients of the options' parameters are, one row
  // after the other.
  enum class Parameter { kPeephole, kGains, kCellNorm, kBias };
  void add_parameter_gradients(Parameter parameter, int64_t columns, void* sums) const;
  Team& team() { return team_; }

 private:
  int64_t time(int64_t k) const { return group_.direction == 0 ? group_.steps - 1 - k : k; }
  // Rows of step k that step k - 1, the next in time, had too; the others end with step k.
  int64_t rows_with_later_step(int64_t k) const {
    return k == 0 ? 0 : std::min(group_.active(time(k - 1)), group_.active(time(k)));
  }
  // Rows of step k that step k + 1, the one before in time, has too; the others begin with step k.
  int64_t rows_with_earlier_step(int64_t k) const {
    return k + 1 == group_.steps ? 0 : std::min(group_.active(time(k + 1)), group_.active(time(k)));
  }
  int64_t panel_of(int partition, int64_t panels) const { return panels * partition / plan_.team; }

  void run_initial_gradients(int64_t k, int partition);
  void run_output_gradients(int64_t k, int partition);
  void run_cells(int64_t k, int partition);
  // With options (backward_group_options.cpp).
  void make_option_buffers();
  void run_option_initial_gradients(int64_t k, int partition);
  void run_option_output_gradients(int64_t k, int partition);
  void run_option_cells(int64_t k, int partition);
  void store_option_gradients() const;
  OptionBackwardStep option_step(int64_t k, int64_t row) const;
  // With norms (backward_group_norms.cpp).
  bool has_norms() const { return direction_.options.cell_norm; }
  void run_norm_phase(int64_t k, int64_t part, int partition);
  void run_normalised_cells(int64_t k, int partition);
  StateGradientStep returned_gradient(int64_t k, int64_t row, const Rows& product) const;
  void multiply(const Product& product, int64_t rows, int64_t columns, int partition,
                const Buffer& out, int64_t row) const;
  Product recurrent_gemm(int64_t k, int64_t row) const;
  Product product_with(const Buffer& operands, int64_t stride, int64_t row, int64_t size,
                       const PanelMatrix& packed, const void* weights, int64_t columns) const;
  // The group's rows of step t within those of the piece.
  template <typename View, typename Pointer>
  View piece_rows(Pointer base, int64_t stride, int64_t t) const {
    return group_.data_rows<View>(base, stride, storage_, t, piece_.first_row);
  }
  Rows grad_y_rows(int64_t t) const {
    return group_.sequence_rows<Rows>(
        direction_.grad_y, args_.shape.directions * args_.shape.output_size, storage_, t);
  }
  Rows grad_h_n_rows() const {
    return group_.batch_rows<Rows>(direction_.grad_h_n, args_.shape.output_size, storage_);
  }

  const LstmBackwardArgs& args_;
  const LstmBackwardDirection& direction_;
  const LstmPlan& plan_;
  const KernelTable& table_;
  const BackwardWeights& weights_;
  const Group group_;
  BackwardPiece piece_;
  const int64_t storage_, accumulator_, operand_;  // bytes of an element
  const int64_t gates_stride_, output_stride_;
  const int phases_per_step_;
  Buffer grad_gates_[2];  // (rows, 4H) operand
  Buffer grad_output_;    // (rows, P) operand, with output projection
  Buffer dc_;             // (rows, H) accumulator
  Buffer c_0_;            // (rows, H) accumulator
  // With options; those not wanted are empty. All are accumulators.
  Buffer products_;         // (rows, whole panels): what goes back to h
  Buffer output_products_;  // (rows, whole panels), with output projection: to o·tanh(c)
  Buffer carry_;            // (rows, H): what zoneout kept of the gradient of h
  Buffer grad_peephole_;    // (rows, 3H)
  // With norms: (rows, 3H), (rows, 4H), and the parameters' (rows, 8H), (rows, 2H), (rows, 4H).
  Buffer output_gradients_, grad_activations_;
  Buffer grad_gains_, grad_cell_norm_, grad_bias_;
  Buffer grad_reset_h_, grad_reset_c_;  // (rows, P) and (rows, H)
  Team team_;
};

}  // namespace lstm_fused::cpu
