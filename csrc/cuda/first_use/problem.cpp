// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/first_use/problem.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <sstream>

#include "common/integers.h"

namespace lstm_fused::cuda {
namespace {

class Layout {
 public:
  int64_t take(int64_t bytes) {
    const int64_t begin = end_;
    end_ += round_up(bytes, 256);
    return begin;
  }
  int64_t end() const { return end_; }

 private:
  int64_t end_ = 0;
};

// The elements of arrays, of all directions.
struct Counts {
  explicit Counts(const LstmShape& s)
      : features(s.steps * s.batch * s.input_size),
        sequence(s.directions * s.steps * s.batch * s.hidden_size),
        state(s.directions * s.batch * s.hidden_size),
        gates(kGates * sequence),
        w_ih(s.directions * kGates * s.hidden_size * s.input_size),
        w_hh(s.directions * kGates * s.hidden_size * s.hidden_size),
        bias(s.directions * kGates * s.hidden_size),
        peephole(s.directions * kPeepholes * s.hidden_size) {}

  int64_t features, sequence, state, gates, w_ih, w_hh, bias, peephole;
};

// For numbers that all types represent: zero, and normal ones of float16 with 8 bits.
uint16_t to_float16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value == 0) return 0;
  const uint32_t exponent = (bits >> 23 & 0xff) - 127 + 15;
  return static_cast<uint16_t>((bits >> 16 & 0x8000) | exponent << 10 | (bits >> 13 & 0x3ff));
}

float from_float16(uint16_t bits) {
  const int exponent = bits >> 10 & 0x1f, mantissa = bits & 0x3ff;
  const float sign = bits & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 0x1f) {
    return mantissa ? std::numeric_limits<float>::quiet_NaN()
                    : sign * std::numeric_limits<float>::infinity();
  }
  const float value = exponent == 0
                          ? std::ldexp(static_cast<float>(mantissa), -24)
                          : std::ldexp(static_cast<float>(mantissa | 0x400), exponent - 25);
  return sign * value;
}

float read(const char* memory, DType dtype, int64_t index) {
  if (dtype == DType::kFloat32) {
    float value;
    std::memcpy(&value, memory + index * 4, sizeof value);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, memory + index * 2, sizeof bits);
  if (dtype == DType::kFloat16) return from_float16(bits);
  const uint32_t wide = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

void write(char* memory, DType dtype, int64_t index, float value) {
  if (dtype == DType::kFloat32) {
    std::memcpy(memory + index * 4, &value, sizeof value);
    return;
  }
  uint32_t wide;
  std::memcpy(&wide, &value, sizeof wide);
  const auto bits =
      dtype == DType::kFloat16 ? to_float16(value) : static_cast<uint16_t>(wide >> 16);
  std::memcpy(memory + index * 2, &bits, sizeof bits);
}

// Fills arrays with multiples of a power of two, from -128 to 127 of them.
class Numbers {
 public:
  Numbers(char* memory, DType dtype) : memory_(memory), dtype_(dtype) {}

  void fill(int64_t begin, int64_t count, float unit) {
    for (int64_t i = 0; i < count; ++i) {
      state_ = state_ * 1664525u + 1013904223u;
      const int number = static_cast<int>(state_ >> 24) - 128;
      write(memory_ + begin, dtype_, i, static_cast<float>(number) * unit);
    }
  }

 private:
  char* const memory_;
  const DType dtype_;
  uint32_t state_ = 1;
};

// Rows of all lengths, every other one whole.
int64_t length_of_row(const LstmShape& shape, int64_t row) {
  return row % 2 == 0 ? shape.steps : row / 2 % (shape.steps + 1);
}

struct NamedArray {
  const char* name;
  int64_t begin, count;
  DType dtype;
  int64_t ragged_columns = 0;  // of (L, T, N, columns), which past a row's length may hold anything
};

std::vector<NamedArray> compared_arrays(const LstmShape& shape, DType dtype, bool backward,
                                        bool has_options) {
  const ProblemOutputs at = lay_out_outputs(shape, dtype);
  const Counts counts(shape);
  if (backward) {
    std::vector<NamedArray> arrays = {
        {"the gradient of the gates", at.grad_gates, counts.gates, dtype},
        {"the gradient of h_0", at.grad_h_0, counts.state, dtype},
        {"the gradient of c_0", at.grad_c_0, counts.state, dtype}};
    if (has_options) {
      arrays.push_back({"the gradient of peepholes", at.grad_peephole, counts.peephole, dtype});
      arrays.push_back({"the gradient of a reset's h", at.grad_reset_h, counts.state, dtype});
      arrays.push_back({"the gradient of a reset's c", at.grad_reset_c, counts.state, dtype});
    }
    return arrays;
  }
  return {{"y", at.y, counts.sequence, dtype},
          {"h_n", at.h_n, counts.state, dtype},
          {"c_n", at.c_n, counts.state, dtype},
          {"the cell states", at.cell_states, counts.sequence, dtype},
          {"the saved gates", at.gates, counts.gates, dtype, kGates * shape.hidden_size},
          {"the saved cells", at.cells, counts.sequence, DType::kFloat32, shape.hidden_size}};
}

// Whether a row takes part in the step of an element.
bool is_defined(const LstmShape& shape, const NamedArray& array, int64_t index) {
  if (array.ragged_columns == 0) return true;
  const int64_t row = index / array.ragged_columns % (shape.steps * shape.batch);
  return row / shape.batch < length_of_row(shape, row % shape.batch);
}

}  // namespace

ProblemInputs lay_out_inputs(const LstmShape& shape, DType dtype) {
  const Counts counts(shape);
  const int64_t size = dtype_size(dtype);
  Layout layout;
  ProblemInputs at;
  at.x = layout.take(counts.features * size);
  at.lengths = layout.take(shape.batch * int64_t{sizeof(int64_t)});
  at.reset_mask = layout.take(shape.steps * shape.batch);
  at.w_ih = layout.take(counts.w_ih * size);
  at.w_hh = layout.take(counts.w_hh * size);
  at.b_ih = layout.take(counts.bias * size);
  at.b_hh = layout.take(counts.bias * size);
  at.h_0 = layout.take(counts.state * size);
  at.c_0 = layout.take(counts.state * size);
  at.grad_y = layout.take(counts.sequence * size);
  at.grad_cell_states = layout.take(counts.sequence * size);
  at.grad_h_n = layout.take(counts.state * size);
  at.grad_c_n = layout.take(counts.state * size);
  at.peephole = layout.take(counts.peephole * size);
  at.h_mask = layout.take(counts.state * size);
  at.keep_c = layout.take(counts.sequence);
  at.keep_h = layout.take(counts.sequence);
  at.reset_h = layout.take(counts.state * size);
  at.reset_c = layout.take(counts.state * size);
  at.bytes = layout.end();
  return at;
}

ProblemOutputs lay_out_outputs(const LstmShape& shape, DType dtype) {
  const Counts counts(shape);
  const int64_t size = dtype_size(dtype), accumulator = accumulator_size(dtype);
  Layout layout;
  ProblemOutputs at;
  at.y = layout.take(counts.sequence * size);
  at.cell_states = layout.take(counts.sequence * size);
  at.h_n = layout.take(counts.state * size);
  at.c_n = layout.take(counts.state * size);
  at.gates = layout.take(counts.gates * size);
  at.cells = layout.take(counts.sequence * accumulator);
  at.grad_gates = layout.take(counts.gates * size);
  at.grad_h_0 = layout.take(counts.state * size);
  at.grad_c_0 = layout.take(counts.state * size);
  at.grad_peephole = layout.take(counts.peephole * size);
  at.grad_reset_h = layout.take(counts.state * size);
  at.grad_reset_c = layout.take(counts.state * size);
  at.bytes = layout.end();
  return at;
}

std::vector<char> make_inputs(const LstmShape& shape, DType dtype) {
  const ProblemInputs at = lay_out_inputs(shape, dtype);
  const Counts counts(shape);
  std::vector<char> memory(static_cast<size_t>(at.bytes));
  Numbers numbers(memory.data(), dtype);
  // Pre-activations come to about 1, and gradients grow little on their way.
  constexpr float kUnit = 1.0f / 128, kWeightUnit = 1.0f / 1024;
  numbers.fill(at.x, counts.features, kUnit);
  numbers.fill(at.w_ih, counts.w_ih, kUnit);
  numbers.fill(at.w_hh, counts.w_hh, kWeightUnit);
  numbers.fill(at.b_ih, counts.bias, kUnit);
  numbers.fill(at.b_hh, counts.bias, kUnit);
  numbers.fill(at.h_0, counts.state, kUnit);
  numbers.fill(at.c_0, counts.state, kUnit);
  numbers.fill(at.grad_y, counts.sequence, kUnit);
  numbers.fill(at.grad_cell_states, counts.sequence, kUnit);
  numbers.fill(at.grad_h_n, counts.state, kUnit);
  numbers.fill(at.grad_c_n, counts.state, kUnit);
  numbers.fill(at.peephole, counts.peephole, kUnit);
  numbers.fill(at.h_mask, counts.state, kUnit);
  numbers.fill(at.reset_h, counts.state, kUnit);
  numbers.fill(at.reset_c, counts.state, kUnit);
  for (int64_t i = 0; i < counts.sequence; ++i) {
    memory[static_cast<size_t>(at.keep_c + i)] = i % 5 == 1;
    memory[static_cast<size_t>(at.keep_h + i)] = i % 7 == 2;
  }
  for (int64_t n = 0; n < shape.batch; ++n) {
    const int64_t length = length_of_row(shape, n);
    std::memcpy(memory.data() + at.lengths + n * 8, &length, sizeof length);
  }
  for (int64_t i = 0; i < shape.steps * shape.batch; ++i) {
    memory[static_cast<size_t>(at.reset_mask + i)] = i % 11 == 3;
  }
  return memory;
}

double allowed_difference(DType dtype, bool allow_tf32) {
  switch (dtype) {
    case DType::kBFloat16:
      return 4 * 2e-2;
    case DType::kFloat16:
      return 4 * 2.5e-3;
    default:
      return allow_tf32 ? 4 * 2.5e-3 : 4 * 5e-6;  // TF32 has as many bits as float16
  }
}

std::string find_difference(const LstmShape& shape, DType dtype, bool backward, bool has_options,
                            double allowed, const std::vector<char>& expected,
                            const std::vector<char>& found) {
  for (const NamedArray& array : compared_arrays(shape, dtype, backward, has_options)) {
    double magnitude = 1, worst = 0;
    for (int64_t i = 0; i < array.count; ++i) {
      if (!is_defined(shape, array, i)) continue;
      const double wanted = read(expected.data() + array.begin, array.dtype, i);
      const double got = read(found.data() + array.begin, array.dtype, i);
      magnitude = std::max(magnitude, std::abs(wanted));
      const double difference = std::abs(got - wanted);
      // NaN counts as infinitely far from all numbers.
      worst = std::max(
          worst, std::isnan(difference) ? std::numeric_limits<double>::infinity() : difference);
    }
    if (worst <= allowed * magnitude) continue;
    std::ostringstream text;
    text << array.name << ": " << worst << " off stepwise's, wanted at most "
         << allowed * magnitude;
    return text.str();
  }
  return "";
}

}  // namespace lstm_fused::cuda
