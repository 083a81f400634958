// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/quantized/forward.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "common/error.h"
#include "common/integers.h"
#include "cpu/group.h"
#include "cpu/runtime/scratch.h"

namespace lstm_fused::cpu::quantized {
namespace {

constexpr int64_t kFloat = sizeof(float);

// A partition's own copies of what it multiplies: its worker prepares them, so that they are in its
// cache.
class PreparedRows {
 public:
  PreparedRows() = default;
  PreparedRows(int64_t rows, int64_t groups)
      : stride_(operand_bytes(groups)), rows_(rows * stride_), scales_(rows * kFloat) {}

  Operand prepare(const QuantizedTable& table, const Rows& source, int64_t rows, int64_t k_size) {
    table.prepare_rows({source, rows, k_size, static_cast<uint8_t*>(rows_.get()), stride_,
                        static_cast<float*>(scales_.get())});
    return {static_cast<const uint8_t*>(rows_.get()), stride_,
            static_cast<const float*>(scales_.get())};
  }

 private:
  int64_t stride_ = 0;
  Buffer rows_, scales_;
};

// One group's way through time, as ForwardGroup's (lstm_forward.cpp): step s reads one of two
// buffers of h and writes the other.
class QuantizedGroup {
 public:
  QuantizedGroup(const QuantizedForwardArgs& args, const QuantizedPlan& plan, const Group& group,
                 const std::vector<int64_t>& lengths);

  int64_t phases() const { return group_.steps * phases_per_step_; }
  void run(int64_t phase, int partition);
  void store_final_states() const;
  Team& team() { return team_; }

 private:
  struct Partition {
    PreparedRows x, h, cell_output;
    Buffer ahead;                     // x·W_ihᵀ + bias of the steps to come, its own panels
    std::vector<int64_t> rows;        // row of x, for each row of `ahead`
    std::vector<int64_t> step_begin;  // first row of each of the steps
    int64_t first_step = 0;
  };

  int64_t time(int64_t s) const { return group_.direction == 0 ? s : group_.steps - 1 - s; }
  int64_t panel_of(int partition, int64_t panels) const {
    return panels * partition / plan_.division.team;
  }
  float* state(int64_t s) const { return static_cast<float*>(state_[s % 2].get()); }
  void load_initial_states();
  void run_input_gemm(int64_t s, int partition);
  void run_cells(int64_t s, int partition);
  void run_output_projection(int64_t s, int partition);
  Resets next_reset(int64_t s) const {
    if (s + 1 >= group_.steps) return {};
    return group_.resets(args_.reset_mask, time(s + 1), group_.active(time(s + 1)));
  }

  const QuantizedForwardArgs& args_;
  const LstmShape& shape_;
  const QuantizedDirection& direction_;
  const PackedLayer& layer_;
  const QuantizedPlan& plan_;
  const QuantizedTable& table_;
  const Group group_;
  const int phases_per_step_;
  std::vector<int64_t> lengths_;  // of the group's rows
  Buffer state_[2];               // (rows, P) float32
  Buffer cell_output_;            // (rows, H) float32: o·tanh(c), with projection
  Buffer c_;                      // (rows, H) float32
  std::vector<Partition> partitions_;
  Team team_;
};

QuantizedGroup::QuantizedGroup(const QuantizedForwardArgs& args, const QuantizedPlan& plan,
                               const Group& group, const std::vector<int64_t>& lengths)
    : args_(args),
      shape_(args.shape),
      direction_(args.direction[group.direction]),
      layer_(direction_.layer),
      plan_(plan),
      table_(quantized_table(plan.isa, layer_.type)),
      group_(group),
      phases_per_step_(shape_.projection ? 2 : 1),
      lengths_(lengths.begin() + group.begin, lengths.begin() + group.end),
      partitions_(plan.division.team),
      team_(plan.division.team) {
  const int64_t rows = group.rows();
  for (Buffer& state : state_) state = Buffer(rows * shape_.output_size * kFloat);
  if (shape_.projection) cell_output_ = Buffer(rows * shape_.hidden_size * kFloat);
  c_ = Buffer(rows * shape_.hidden_size * kFloat);
  load_initial_states();

  const int64_t steps = plan.division.input_gemm_steps;
  const int64_t panels = ceil_div(layer_.w_ih.panels, plan.division.team);
  for (Partition& partition : partitions_) {
    partition.x = PreparedRows(steps * rows, layer_.w_ih.groups);
    partition.h = PreparedRows(rows, layer_.w_hh.groups);
    if (shape_.projection) partition.cell_output = PreparedRows(rows, layer_.w_hr.groups);
    partition.ahead = Buffer(steps * rows * panels * kPanelColumns * kFloat);
    partition.rows.reserve(steps * rows);
    partition.step_begin.reserve(steps);
  }
}

// Both buffers begin as h_0: a row of the reverse direction begins at any step.
void QuantizedGroup::load_initial_states() {
  const auto load = [](void* to, int64_t j, const float* from, int64_t n, int64_t size) {
    float* row = static_cast<float*>(to) + j * size;
    if (from) {
      std::memcpy(row, from + n * size, size * kFloat);
    } else {
      std::memset(row, 0, size * kFloat);
    }
  };
  for (int64_t j = 0; j < group_.rows(); ++j) {
    const int64_t n = group_.batch_row(j);
    const bool reset = group_.resets_first(args_.reset_mask, j, lengths_[j]);
    for (const Buffer& state : state_) {
      load(state.get(), j, reset ? nullptr : direction_.h_0, n, shape_.output_size);
    }
    load(c_.get(), j, reset ? nullptr : direction_.c_0, n, shape_.hidden_size);
  }
}

void QuantizedGroup::run(int64_t phase, int partition) {
  const int64_t s = phase / phases_per_step_;
  if (phase % phases_per_step_ == 0) {
    if (s % plan_.division.input_gemm_steps == 0) run_input_gemm(s, partition);
    run_cells(s, partition);
  } else {
    run_output_projection(s, partition);
  }
}

// x·W_ihᵀ + bias of steps s, s + 1, … for the partition's own units.
void QuantizedGroup::run_input_gemm(int64_t s, int partition) {
  Partition& own = partitions_[partition];
  const int64_t count = std::min(plan_.division.input_gemm_steps, group_.steps - s);

  // List the rows of x: those of each step, one step after the other.
  own.first_step = s;
  own.rows.clear();
  own.step_begin.clear();
  for (int64_t i = 0; i < count; ++i) {
    const int64_t t = time(s + i);
    const int64_t first = group_.layout->sequence_row(t, shape_.batch);
    own.step_begin.push_back(static_cast<int64_t>(own.rows.size()));
    for (int64_t j = 0; j < group_.active(t); ++j) {
      own.rows.push_back(first + group_.batch_row(j));
    }
  }

  InputGemm gemm;
  gemm.rows = static_cast<int64_t>(own.rows.size());
  gemm.panel_begin = panel_of(partition, layer_.w_ih.panels);
  gemm.panel_end = panel_of(partition + 1, layer_.w_ih.panels);
  gemm.operand = own.x.prepare(table_, {args_.x, shape_.input_size, own.rows.data()}, gemm.rows,
                               shape_.input_size);
  gemm.matrix = layer_.w_ih;
  gemm.bias = layer_.bias;
  gemm.out = static_cast<float*>(own.ahead.get());
  gemm.out_stride = (gemm.panel_end - gemm.panel_begin) * kPanelColumns;
  table_.input_gemm(gemm);
}

void QuantizedGroup::run_cells(int64_t s, int partition) {
  Partition& own = partitions_[partition];
  const int64_t t = time(s);
  RecurrentStep step;
  ForwardStep& cell = step.cell;
  cell.rows = group_.active(t);
  cell.hidden_size = shape_.hidden_size;
  cell.panel_begin = panel_of(partition, layer_.w_hh.panels);
  cell.panel_end = panel_of(partition + 1, layer_.w_hh.panels);
  // Serpentine sweep: a step begins with the panels that are still in a cache.
  cell.descending = s % 2;
  cell.c = c_.get();
  if (shape_.projection) {
    cell.h = {cell_output_.get(), shape_.hidden_size, nullptr};
    cell.h_is_state = false;
  } else {
    cell.h = {state(s + 1), shape_.output_size, nullptr};
    cell.y = group_.sequence_rows<MutableRows>(static_cast<void*>(direction_.y),
                                               shape_.directions * shape_.output_size, kFloat, t);
  }
  cell.cell_states =
      group_.sequence_rows<MutableRows>(static_cast<void*>(direction_.cell_states),
                                        shape_.directions * shape_.hidden_size, kFloat, t);
  cell.next_reset = next_reset(s);
  step.operand =
      own.h.prepare(table_, {state(s), shape_.output_size, nullptr}, cell.rows, shape_.output_size);
  step.matrix = layer_.w_hh;
  step.ahead_stride = (cell.panel_end - cell.panel_begin) * kPanelColumns;
  step.ahead = static_cast<const float*>(own.ahead.get()) +
               own.step_begin[s - own.first_step] * step.ahead_stride;
  table_.recurrent_step(step);
}

void QuantizedGroup::run_output_projection(int64_t s, int partition) {
  const int64_t t = time(s);
  OutputProjection projection;
  projection.rows = group_.active(t);
  projection.panel_begin = panel_of(partition, layer_.w_hr.panels);
  projection.panel_end = panel_of(partition + 1, layer_.w_hr.panels);
  projection.operand = partitions_[partition].cell_output.prepare(
      table_, {cell_output_.get(), shape_.hidden_size, nullptr}, projection.rows,
      shape_.hidden_size);
  projection.matrix = layer_.w_hr;
  projection.y = group_.sequence_rows<MutableRows>(
      static_cast<void*>(direction_.y), shape_.directions * shape_.output_size, kFloat, t);
  projection.h = {state(s + 1), shape_.output_size, nullptr};
  projection.reset = next_reset(s);
  table_.output_projection(projection);
}

void QuantizedGroup::store_final_states() const {
  for (int64_t j = 0; j < group_.rows(); ++j) {
    const int64_t n = group_.batch_row(j);
    // The buffer that the row's last step wrote: its own last in the forward direction.
    const int64_t last = group_.direction == 0 ? lengths_[j] : group_.steps;
    std::memcpy(direction_.h_n + n * shape_.output_size, state(last) + j * shape_.output_size,
                shape_.output_size * kFloat);
    std::memcpy(direction_.c_n + n * shape_.hidden_size,
                static_cast<const float*>(c_.get()) + j * shape_.hidden_size,
                shape_.hidden_size * kFloat);
  }
}

void check_layers(const QuantizedForwardArgs& args) {
  const LstmShape& shape = args.shape;
  for (int d = 0; d < shape.directions; ++d) {
    const PackedLayer& layer = args.direction[d].layer;
    LSTM_CHECK(layer.input_size == shape.input_size && layer.hidden_size == shape.hidden_size &&
                   layer.output_size == shape.output_size && layer.projection == shape.projection,
               "packed weights must be of input_size ", shape.input_size, ", hidden_size ",
               shape.hidden_size, " and ", shape.output_size, " output features, got ",
               layer.input_size, ", ", layer.hidden_size, " and ", layer.output_size);
    LSTM_CHECK(layer.type == args.direction[0].layer.type,
               "packed weights of a layer must have one type, got ",
               weight_type_name(args.direction[0].layer.type), " and ",
               weight_type_name(layer.type));
  }
}

}  // namespace

void quantized_forward(const QuantizedForwardArgs& args, const QuantizedPlan& plan,
                       const Parallel& parallel) {
  check_shape(args.shape);
  check_layers(args);
  const std::vector<int64_t> lengths = sorted_lengths(*args.layout, args.shape.batch);
  std::vector<std::unique_ptr<QuantizedGroup>> groups;
  for (const Group& group : make_groups(args.shape, *args.layout, lengths, plan.division)) {
    groups.push_back(std::make_unique<QuantizedGroup>(args, plan, group, lengths));
  }
  const int team = plan.division.team;
  parallel.for_each(static_cast<int64_t>(groups.size()) * team, [&](int64_t i) {
    QuantizedGroup& group = *groups[i / team];
    group.team().work(static_cast<int>(i % team), group.phases(),
                      [&](int64_t phase, int partition) { group.run(phase, partition); });
  });
  for (const auto& group : groups) group->store_final_states();
}

}  // namespace lstm_fused::cpu::quantized
