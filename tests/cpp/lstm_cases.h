// SPDX-License-Identifier: BSD-3-Clause
// The cases that the layer is tested on, their values, and calls of the core on fenced arrays.
#pragma once

#include <algorithm>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "cpu/cpu_features.h"
#include "cpu/gradients/lstm_backward.h"
#include "cpu/gradients/rebuild_gates.h"
#include "cpu/lstm_forward.h"
#include "reference.h"

namespace lstm_fused::test {

enum class Bias { kBoth, kNone, kInputOnly, kHiddenOnly };

struct Case {
  int64_t steps, batch, input_size, hidden_size;
  int64_t projection_size = 0;  // 0: none
  int directions = 1;
  Bias bias = Bias::kBoth;
  std::vector<int64_t> lengths = {};  // empty: all of them `steps`
  bool packed = false;                // lengths must be in falling order
  double resets = 0;                  // fraction of steps that reset_mask marks

  Case project(int64_t size) const { return with(&Case::projection_size, size); }
  Case both_ways() const { return with(&Case::directions, 2); }
  Case biased(Bias which) const { return with(&Case::bias, which); }
  Case of_lengths(std::vector<int64_t> values) const { return with(&Case::lengths, values); }
  Case pack() const { return with(&Case::packed, true); }
  Case reset(double fraction) const { return with(&Case::resets, fraction); }

  std::string name() const {
    std::string lengths_text;
    for (int64_t length : lengths) lengths_text += " " + std::to_string(length);
    return text("T=", steps, " N=", batch, " D=", input_size, " H=", hidden_size,
                " P=", projection_size, " L=", directions, " bias=", static_cast<int>(bias),
                packed ? " packed" : "", " resets=", resets, " lengths:", lengths_text);
  }

 private:
  template <typename T>
  Case with(T Case::* member, const T& value) const {
    Case copy = *this;
    copy.*member = value;
    return copy;
  }
};

inline std::vector<Case> all_cases() {
  const std::vector<int64_t> ragged = {2, 0, 5, 1, 5, 0, 3}, falling = {6, 4, 4, 1};
  return {
      {1, 1, 1, 1},
      {1, 1, 3, 5},
      {5, 1, 4, 17},
      {1, 13, 8, 16},
      Case{4, 13, 7, 33}.both_ways(),
      {3, 2, 5, 130},
      Case{4, 1, 33, 130}.both_ways().reset(0.3),
      {7, 6, 1, 3},
      {40, 3, 2, 8},
      {3, 20, 3, 20},
      // Nothing to do, in every way.
      Case{3, 0, 2, 4}.both_ways(),
      Case{0, 3, 2, 4}.both_ways(),
      {3, 2, 0, 4},
      Case{3, 4, 2, 5}.both_ways().of_lengths({0, 0, 0, 0}),
      Case{3, 4, 2, 5}.project(2).of_lengths({0, 0, 0, 0}),
      // Biases.
      Case{3, 2, 3, 18}.biased(Bias::kNone),
      Case{3, 2, 3, 18}.biased(Bias::kInputOnly),
      Case{3, 2, 3, 18}.biased(Bias::kHiddenOnly),
      // Projections.
      Case{3, 2, 3, 4}.project(1),
      Case{1, 1, 3, 9}.project(4),
      Case{4, 13, 5, 19}.project(17).both_ways(),
      Case{3, 3, 4, 131}.project(70).reset(0.3),
      // Lengths.
      Case{5, 7, 3, 18}.of_lengths(ragged),
      Case{5, 7, 3, 7}.both_ways().of_lengths(ragged),
      Case{5, 7, 3, 10}.project(3).both_ways().of_lengths(ragged).reset(0.3),
      Case{6, 4, 3, 6}.both_ways().of_lengths(falling).reset(0.4),
      Case{8, 3, 5, 21}.of_lengths({3, 8, 5}),
      Case{9, 1, 2, 3}.both_ways().of_lengths({4}).reset(0.3),
      Case{3, 13, 5, 33}.both_ways().of_lengths({1, 3, 0, 2, 2, 1, 3, 3, 0, 1, 2, 3, 1}),
      // Packed.
      Case{6, 4, 3, 18}.both_ways().of_lengths(falling).pack(),
      Case{3, 5, 7, 9}.both_ways().of_lengths({3, 3, 1, 0, 0}).pack(),
      Case{6, 4, 3, 10}.project(5).both_ways().of_lengths(falling).pack(),
      // Resets; the first steps of some rows are always among them.
      Case{6, 13, 3, 7}.reset(0.3),
      Case{6, 5, 3, 18}.both_ways().reset(0.3),
      Case{5, 7, 3, 18}.both_ways().of_lengths(ragged).reset(0.3),
      Case{4, 3, 2, 5}.both_ways().reset(1),
      Case{1, 3, 2, 5}.reset(1),
  };
}

// Uniform in [-bound, bound], as `dtype` holds it; the same on every platform.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  double uniform(double bound) { return ((engine_() >> 11) * 0x1p-52 - 1) * bound; }
  bool chance(double fraction) { return (engine_() >> 11) * 0x1p-53 < fraction; }
  Values uniform(int64_t n, double bound, DType dtype) {
    Values values(n);
    for (double& value : values) value = round_to(dtype, uniform(bound));
    return values;
  }

 private:
  std::mt19937_64 engine_;
};

// One layer's inputs: as values, and where their rows lie in the core's layouts.
struct Problem {
  Problem(const Case& of, DType dtype);

  // Row of x or y; row of M data rows.
  int64_t sequence_row(int64_t t, int64_t n) const {
    return packed ? first_row(t) + n : t * values.shape.batch + n;
  }
  int64_t data_row(int64_t t, int64_t n) const { return first_row(t) + rank[n]; }
  int64_t sequence_rows() const {
    return packed ? data_rows() : values.shape.steps * values.shape.batch;
  }
  int64_t data_rows() const { return std::accumulate(lengths().begin(), lengths().end(), 0); }
  const std::vector<int64_t>& lengths() const { return values.lengths; }

  // (T, N, columns) values side by side, laid out as x or y. Padding is NaN.
  Array sequence(const std::vector<const Values*>& parts, int64_t columns) const;
  // (T, N, columns) values as M rows.
  Array data(DType type, const Values& dense, int64_t columns) const;

  DType dtype;
  bool packed;
  SequenceLayout layout;
  std::vector<int64_t> rank;  // the sorted row of a batch row
  LayerValues values;

 private:
  int64_t first_row(int64_t t) const {
    int64_t rows = 0;
    for (int64_t length : lengths()) rows += std::min(length, t);
    return rows;
  }
};

inline Problem::Problem(const Case& of, DType dtype) : dtype(dtype), packed(of.packed) {
  const int64_t T = of.steps, N = of.batch, H = of.hidden_size;
  const int64_t P = of.projection_size ? of.projection_size : H;
  values.shape = {T, N, of.input_size, H, P, of.directions, of.projection_size > 0};
  values.lengths = of.lengths.empty() ? std::vector<int64_t>(N, T) : of.lengths;

  // Lay out the rows.
  if (packed) {
    std::vector<int64_t> batch_sizes(T, 0);
    for (int64_t length : values.lengths) {
      for (int64_t t = 0; t < length; ++t) ++batch_sizes[t];
    }
    layout = packed_layout(batch_sizes);
  } else {
    layout = of.lengths.empty() ? dense_layout(T, N) : padded_layout(T, values.lengths);
  }
  rank.resize(N);
  for (int64_t j = 0; j < N; ++j) rank[layout.row_of.empty() ? j : layout.row_of[j]] = j;

  // Draw the values; nn.LSTM's initialisation for the weights.
  uint64_t seed = 1;
  for (char c : of.name()) seed = seed * 31 + static_cast<unsigned char>(c);
  Random random(seed);
  const double bound = 1 / std::sqrt(static_cast<double>(H));
  values.x = random.uniform(T * N * of.input_size, 2, dtype);
  for (int d = 0; d < of.directions; ++d) {
    DirectionValues& to = values.direction[d];
    to.w_ih = random.uniform(4 * H * of.input_size, bound, dtype);
    to.w_hh = random.uniform(4 * H * P, bound, dtype);
    if (of.bias == Bias::kBoth || of.bias == Bias::kInputOnly) {
      to.b_ih = random.uniform(4 * H, bound, dtype);
    }
    if (of.bias == Bias::kBoth || of.bias == Bias::kHiddenOnly) {
      to.b_hh = random.uniform(4 * H, bound, dtype);
    }
    if (values.shape.projection) to.w_hr = random.uniform(P * H, bound, dtype);
    to.h_0 = random.uniform(N * P, 1, dtype);
    to.c_0 = random.uniform(N * H, 1, dtype);
  }
  if (dtype == DType::kBFloat16 || dtype == DType::kFloat16) {
    values.round_state = [dtype](double value) { return round_to(dtype, value); };
  }
  if (of.resets == 0) return;

  // Mark steps, those past a row's length too. Where a row's first step is marked, its initial
  // state must not matter.
  values.reset_mask.resize(T * N);
  for (uint8_t& mark : values.reset_mask) mark = random.chance(of.resets);
  for (int64_t n = 0; n < N; ++n) {
    const int64_t length = values.lengths[n];
    if (length == 0) continue;
    if (n % 3 == 1) values.reset_mask[n] = values.reset_mask[(length - 1) * N + n] = 1;
    for (int d = 0; d < of.directions; ++d) {
      if (!is_marked(values, time_of(0, length, d), n)) continue;
      DirectionValues& to = values.direction[d];
      std::fill_n(to.h_0.begin() + n * P, P, std::nan(""));
      std::fill_n(to.c_0.begin() + n * H, H, std::nan(""));
    }
  }
}

inline Array Problem::sequence(const std::vector<const Values*>& parts, int64_t columns) const {
  const int64_t stride = columns * static_cast<int64_t>(parts.size());
  Array out(dtype, Values(sequence_rows() * stride, std::nan("")));
  for (size_t part = 0; part < parts.size(); ++part) {
    for (int64_t n = 0; n < values.shape.batch; ++n) {
      for (int64_t t = 0; t < lengths()[n]; ++t) {
        for (int64_t k = 0; k < columns; ++k) {
          out.set(sequence_row(t, n) * stride + part * columns + k,
                  (*parts[part])[(t * values.shape.batch + n) * columns + k]);
        }
      }
    }
  }
  return out;
}

inline Array Problem::data(DType type, const Values& dense, int64_t columns) const {
  Array out(type, data_rows() * columns);
  for (int64_t n = 0; n < values.shape.batch; ++n) {
    for (int64_t t = 0; t < lengths()[n]; ++t) {
      for (int64_t k = 0; k < columns; ++k) {
        out.set(data_row(t, n) * columns + k, dense[(t * values.shape.batch + n) * columns + k]);
      }
    }
  }
  return out;
}

inline IncomingGradients draw_gradients(const Problem& problem, Random& random) {
  const auto& shape = problem.values.shape;
  const auto draw = [&](int64_t rows, int64_t columns) {
    return random.uniform(rows * columns, 1, problem.dtype);
  };
  return {draw(shape.steps * shape.batch, shape.output_size),
          draw(shape.steps * shape.batch, shape.hidden_size), draw(shape.batch, shape.output_size),
          draw(shape.batch, shape.hidden_size)};
}

// The instruction sets of this processor that have kernels of their own for the dtype.
inline std::vector<cpu::Isa> distinct_isas(DType dtype) {
  std::vector<cpu::Isa> isas;
  for (cpu::Isa isa : cpu::available_isas()) {
    const cpu::KernelTable& table = cpu::kernel_table(isa, dtype);
    if (isas.empty() || &table != &cpu::kernel_table(isas.back(), dtype)) isas.push_back(isa);
  }
  return isas;
}

}  // namespace lstm_fused::test
