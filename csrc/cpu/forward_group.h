// SPDX-License-Identifier: BSD-3-Clause
// One group's way through a layer, forward, and the weights that it reads.
#pragma once

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

// One direction's weights, in the form that the plan wants.
struct PackedWeights {
  PanelMatrix w_ih, w_hh, w_hr;
  Buffer bias;  // gate order
};

// One group's way through time. Its state lives in two buffers of operand rows: step s reads the
// one and writes the other, since every unit reads all of h.
class ForwardGroup {
 public:
  ForwardGroup(const LstmForwardArgs& args, const LstmPlan& plan, const KernelTable& table,
               const PackedWeights& weights, const Group& group,
               const std::vector<int64_t>& lengths);

  int64_t steps() const { return group_.steps; }
  int64_t phases() const { return group_.steps * phases_per_step_; }
  int phases_per_step() const { return phases_per_step_; }
  void run(int64_t phase, int partition);
  void store_final_states() const;
  Team& team() { return team_; }

 private:
  // A partition's input GEMM: x·W_ih of the steps to come, for its own units.
  struct InputGemm {
    Buffer preactivations, x;
    std::vector<int64_t> rows;        // row of x, for each row of `preactivations`
    std::vector<int64_t> step_begin;  // first row of each of the steps
    int64_t first_step = 0;
  };

  int64_t time(int64_t s) const { return group_.direction == 0 ? s : group_.steps - 1 - s; }
  int64_t panel_of(int partition, int64_t panels) const { return panels * partition / plan_.team; }
  void load_initial_states(const std::vector<int64_t>& lengths);
  ForwardStep cell_step(int64_t s, int partition);
  void run_cells(int64_t s, int partition);
  // With options (forward_group_options.cpp), and those with norms (forward_group_norms.cpp).
  void load_option_states();
  void run_option_cells(int64_t s, int partition);
  void hand_on_state(int64_t s, int64_t row_begin, int64_t row_end, int64_t begin, int64_t end);
  void store_option_states() const;
  NextStateStep next_state_step(int64_t s);
  OptionForwardStep option_step(const ForwardStep& plain, int64_t s) const;
  bool has_norms() const { return direction_.options.cell_norm; }
  void make_norm_buffers();
  void run_norm_products(int64_t s, int partition);
  void run_normalised_cells(int64_t s, int partition);
  void run_output_projection(int64_t s, int partition);
  void run_input_gemm(int64_t s, int partition);
  Resets next_reset(int64_t s) const {
    if (s + 1 >= group_.steps) return {};
    return group_.resets(args_.reset_mask, time(s + 1), group_.active(time(s + 1)));
  }

  const LstmForwardArgs& args_;
  const LstmForwardDirection& direction_;
  const LstmPlan& plan_;
  const KernelTable& table_;
  const PackedWeights& weights_;
  const Group group_;
  const int64_t storage_, accumulator_;  // bytes of an element
  const int64_t operand_;                // of the state: storage rows where the plan is `dot`
  const int64_t cell_output_stride_, state_stride_;
  const int phases_per_step_;
  std::vector<int64_t> lengths_;        // of the group's rows
  Buffer state_[2];                     // (rows, P) operand
  Buffer cell_output_;                  // (rows, H) operand: o·tanh(c), with output projection
  Buffer c_;                            // (rows, H) accumulator
  Buffer h_prev_;                       // (rows, H) accumulator, where an option keeps h
  std::vector<Buffer> preactivations_;  // of each partition's units, with options
  // With norms, whole panels of all partitions, accumulators.
  int64_t panels_stride_ = 0;
  Buffer input_products_;               // (input_gemm_steps·rows, panels_stride_): x·W_ih
  Buffer recurrent_products_;           // (rows, panels_stride_): h_prev·W_hh
  Buffer output_parts_;                 // (rows, 2H)
  std::vector<InputGemm> input_gemms_;  // for each partition
  Team team_;
};

// Has `packer` bring the weights of a layer's directions into the kernels' layout when it runs;
// `weights` holds one for each.
void add_weights(const LstmForwardArgs& args, const LstmPlan& plan, const KernelTable& table,
                 Packer& packer, std::vector<PackedWeights>& weights);
// Brings them there at once.
void pack_weights(const LstmForwardArgs& args, const LstmPlan& plan, const KernelTable& table,
                  const Parallel& parallel, std::vector<PackedWeights>& weights);

}  // namespace lstm_fused::cpu
