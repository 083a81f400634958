// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <numeric>

#include "common/error.h"
#include "common/lstm.h"

namespace lstm_fused {
namespace {

void fill_offsets(SequenceLayout& layout) {
  layout.step_offset.assign(layout.active.size() + 1, 0);
  std::partial_sum(layout.active.begin(), layout.active.end(), layout.step_offset.begin() + 1);
}

// Bounds within which every product of sizes, gates, directions and bytes, and every estimate of a
// plan, fits int64. Nothing that a machine could hold or finish comes near them.
constexpr double kMaxSize = 1ll << 40;
constexpr double kMaxElements = 1ll << 48;  // of weights; of the rows of x, gates and y
constexpr double kMaxWork = 1ll << 60;      // multiply-adds

void check_magnitude(const LstmShape& shape) {
  // In float64, which neither overflows nor is wrong by more than a billionth.
  const auto t = static_cast<double>(shape.steps), n = static_cast<double>(shape.batch);
  const auto d = static_cast<double>(shape.input_size), h = static_cast<double>(shape.hidden_size);
  const auto p = static_cast<double>(shape.output_size);
  // NOTE: rows of T = 0 or N = 0 too, whose strides and states are products as well.
  const double rows = (t + 1) * (n + 1);
  const double weights = kGates * h * (d + p + h) + p * h;
  LSTM_CHECK(std::max({t, n, d, h, p}) <= kMaxSize && rows * (d + kGates * h + p) <= kMaxElements &&
                 weights <= kMaxElements && rows * weights <= kMaxWork,
             "T, N, input_size, hidden_size and proj_size are too large for one call: got ",
             shape.steps, ", ", shape.batch, ", ", shape.input_size, ", ", shape.hidden_size,
             " and ", shape.output_size);
}

}  // namespace

void check_shape(const LstmShape& shape) {
  LSTM_CHECK(shape.steps >= 0 && shape.batch >= 0 && shape.input_size >= 0,
             "T, N and input_size must be at least 0, got ", shape.steps, ", ", shape.batch,
             " and ", shape.input_size);
  LSTM_CHECK(shape.hidden_size >= 1, "hidden_size must be at least 1, got ", shape.hidden_size);
  LSTM_CHECK(shape.output_size >= 1, "proj_size must be at least 1, got ", shape.output_size);
  LSTM_CHECK(shape.directions >= 1 && shape.directions <= kMaxDirections,
             "directions must be 1 or 2, got ", shape.directions);
  LSTM_CHECK(shape.projection || shape.output_size == shape.hidden_size,
             "h_0 must have hidden_size = ", shape.hidden_size,
             " features without projection, got ", shape.output_size);
  check_magnitude(shape);
}

void check_samples(const LstmShape& shape, int64_t samples) {
  LSTM_CHECK(samples >= 1 && shape.batch % samples == 0,
             "samples must be at least 1 and divide the ", shape.batch, " rows of h_0, got ",
             samples);
}

SequenceLayout dense_layout(int64_t steps, int64_t batch) {
  SequenceLayout layout;
  layout.active.assign(steps, batch);
  fill_offsets(layout);
  return layout;
}

SequenceLayout padded_layout(int64_t steps, const std::vector<int64_t>& lengths) {
  const int64_t batch = static_cast<int64_t>(lengths.size());
  SequenceLayout layout;
  layout.active.assign(steps, 0);
  for (int64_t n = 0; n < batch; ++n) {
    LSTM_CHECK(lengths[n] >= 0 && lengths[n] <= steps, "lengths must be between 0 and T = ", steps,
               ", got ", lengths[n], " for row ", n);
    if (lengths[n] > 0) ++layout.active[lengths[n] - 1];
  }
  // Rows that end at t or later take part in step t.
  for (int64_t t = steps - 2; t >= 0; --t) layout.active[t] += layout.active[t + 1];
  fill_offsets(layout);

  // NOTE: a stable sort keeps equal rows in batch order, so that dense batches need no map.
  layout.row_of.resize(batch);
  std::iota(layout.row_of.begin(), layout.row_of.end(), int64_t{0});
  if (std::is_sorted(lengths.begin(), lengths.end(), std::greater<>())) {
    layout.row_of.clear();
  } else {
    std::stable_sort(layout.row_of.begin(), layout.row_of.end(),
                     [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
  }
  return layout;
}

SequenceLayout packed_layout(const std::vector<int64_t>& batch_sizes) {
  SequenceLayout layout;
  layout.active = batch_sizes;
  layout.packed = true;
  for (size_t t = 0; t < batch_sizes.size(); ++t) {
    LSTM_CHECK(batch_sizes[t] > 0 && (t == 0 || batch_sizes[t] <= batch_sizes[t - 1]),
               "batch_sizes must be positive and never increase, got ", batch_sizes[t], " at step ",
               t);
  }
  fill_offsets(layout);
  return layout;
}

}  // namespace lstm_fused
