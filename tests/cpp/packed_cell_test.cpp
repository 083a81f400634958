// SPDX-License-Identifier: BSD-3-Clause
// The cell over packed weights, alone: of layers whose weights are zero, so that pre-activations
// are what the test says. Its σ and tanh, for every instruction set and type of weights.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "cpu/quantized/kernels.h"
#include "cpu/runtime/flush_denormals.h"

namespace lstm_fused::test {
namespace {

namespace quantized = cpu::quantized;
using quantized::WeightType;

// csrc/cpu/quantized/cell-inl.h promises these.
constexpr double kMaxError = 2.5e-7, kMaxTanhUlp = 3;

struct States {
  std::vector<float> h, c;
};

// Cells by their pre-activations and states, open where nothing is said.
struct Cells {
  std::vector<float> i, f, g, o, c;

  explicit Cells(size_t count)
      : i(count, 100), f(count, -100), g(count, 0), o(count, 100), c(count, 0) {}

  // One step of layers of H units, of as many cells as `rows` rows have; then of the next ones.
  States step(quantized::QuantizedIsa isa, WeightType type, int64_t rows, int64_t H) const {
    States out;
    for (size_t begin = 0; begin < c.size(); begin += rows * H) {
      States part = step_some(isa, type, rows, H, begin);
      const size_t count = std::min(part.c.size(), c.size() - begin);
      out.h.insert(out.h.end(), part.h.begin(), part.h.begin() + count);
      out.c.insert(out.c.end(), part.c.begin(), part.c.begin() + count);
    }
    return out;
  }

 private:
  States step_some(quantized::QuantizedIsa isa, WeightType type, int64_t rows, int64_t H,
                   size_t begin) const {
    const std::vector<float> zeros(4 * H * H, 0.0f);
    quantized::PackSource source;
    source.type = type;
    source.input_size = source.hidden_size = source.output_size = H;
    source.weights.w_ih = source.weights.w_hh = zeros.data();
    std::vector<uint8_t> block(quantized::packed_bytes(source));
    quantized::pack_layer(source, block.data());
    const quantized::PackedLayer layer =
        quantized::read_layer(block.data(), static_cast<int64_t>(block.size()));

    const quantized::QuantizedTable& table = quantized::quantized_table(isa, type);
    const int64_t stride = quantized::operand_bytes(layer.w_hh.groups);
    std::vector<uint8_t> prepared(rows * stride);
    std::vector<float> scales(rows), h_0(rows * H, 0.0f), ahead(rows * layer.w_hh.panels * 64);
    States out = {std::vector<float>(rows * H), std::vector<float>(rows * H)};
    for (int64_t at = 0; at < rows * H; ++at) {
      const int64_t unit = at % H;
      const size_t j = std::min(begin + at, c.size() - 1);
      float* panel = ahead.data() + (at / H * layer.w_hh.panels + unit / 16) * 64 + unit % 16;
      panel[0] = i[j];
      panel[16] = f[j];
      panel[32] = g[j];
      panel[48] = o[j];
      out.c[at] = c[j];
    }
    const cpu::FlushDenormals flush;
    table.prepare_rows({{h_0.data(), H, nullptr}, rows, H, prepared.data(), stride, scales.data()});
    quantized::RecurrentStep step;
    step.cell.rows = rows;
    step.cell.hidden_size = H;
    step.cell.panel_end = layer.w_hh.panels;
    step.cell.c = out.c.data();
    step.cell.h = {out.h.data(), H, nullptr};
    step.operand = {prepared.data(), stride, scales.data()};
    step.matrix = layer.w_hh;
    step.ahead = ahead.data();
    step.ahead_stride = layer.w_hh.panels * 64;
    table.recurrent_step(step);
    return out;
  }
};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double ulps(float got, double exact) {
  if (exact == 0) return got == 0 ? 0 : HUGE_VAL;
  const double ulp = std::ldexp(1.0, std::ilogb(exact) - 23);
  return std::fabs(got - exact) / ulp;
}

// All exponents with both signs, and the range where the functions bend.
std::vector<float> numbers() {
  std::vector<float> x;
  for (float magnitude = 1e-30f; magnitude < 1e30f; magnitude *= 1.07f) {
    x.push_back(magnitude);
    x.push_back(-magnitude);
  }
  for (int i = -4000; i <= 4000; ++i) x.push_back(static_cast<float>(i) / 160);
  return x;
}

void test_accuracy(quantized::QuantizedIsa isa, WeightType type, int64_t rows, int64_t H) {
  const std::vector<float> x = numbers();
  Cells input(x.size()), forget(x.size()), cell(x.size()), output(x.size());
  input.i = x;
  input.g.assign(x.size(), 100);
  forget.f = x;
  forget.c.assign(x.size(), 1);
  cell.g = x;
  output.g.assign(x.size(), 100);
  output.o = x;
  const States of_input = input.step(isa, type, rows, H),
               of_forget = forget.step(isa, type, rows, H);
  const States of_cell = cell.step(isa, type, rows, H), of_output = output.step(isa, type, rows, H);
  for (size_t j = 0; j < x.size(); ++j) {
    const Scope scope("x = ", x[j]);
    const double gate = sigmoid(x[j]);
    CHECK_LE(std::fabs(of_input.c[j] - gate), kMaxError);
    CHECK_LE(std::fabs(of_forget.c[j] - gate), kMaxError);
    CHECK_LE(std::fabs(of_output.h[j] - std::tanh(1.0) * gate), kMaxError);
    CHECK_LE(ulps(of_cell.c[j], std::tanh(double{x[j]})), kMaxTanhUlp);
    CHECK_LE(ulps(of_cell.h[j], std::tanh(double{of_cell.c[j]})), kMaxTanhUlp);
    CHECK(std::fabs(of_cell.c[j]) <= 1 && std::fabs(of_cell.h[j]) <= 1);
    CHECK(of_input.c[j] >= 0 && of_input.c[j] <= 1 && of_forget.c[j] >= 0 && of_forget.c[j] <= 1);
  }
}

void test_ends(quantized::QuantizedIsa isa, WeightType type) {
  // Closed gates let nothing through, however large; infinite pre-activations are their limits.
  const float infinity = std::numeric_limits<float>::infinity();
  Cells cells(17);
  cells.i.assign(17, -infinity);
  cells.f = {-infinity, -1e30f, -200, -100, -90, -89, -88.5f, -87.5f, infinity,
             1e30f,     200,    100,  90,   60,  30,  20,     17};
  cells.c.assign(17, 3e38f);
  const States states = cells.step(isa, type, 1, 17);
  for (size_t j = 0; j < cells.c.size(); ++j) {
    const Scope scope("f = ", cells.f[j]);
    CHECK_EQ(states.c[j], cells.f[j] < 0 ? 0.0f : 3e38f);
    CHECK_EQ(states.h[j], cells.f[j] < 0 ? 0.0f : 1.0f);
  }
  for (std::vector<float> Cells::* of : {&Cells::i, &Cells::f, &Cells::g, &Cells::o}) {
    Cells with_nan(33);
    with_nan.g.assign(33, 0.5f);
    (with_nan.*of)[20] = NAN;
    const States out = with_nan.step(isa, type, 1, 33);
    for (size_t j = 0; j < 33; ++j) CHECK_EQ(std::isnan(out.h[j]), j == 20);
  }
}

}  // namespace
}  // namespace lstm_fused::test

int main() {
  using namespace lstm_fused::test;
  for (const auto isa : quantized::available_quantized_isas()) {
    for (const auto type : {WeightType::kInt8, WeightType::kBFloat16, WeightType::kFloat16}) {
      const Scope scope(quantized::quantized_isa_name(isa), ", ",
                        quantized::weight_type_name(type));
      // Whole vectors, masked ones, and rows that share vectors.
      test_accuracy(isa, type, 1, 48);
      test_accuracy(isa, type, 2, 31);
      test_accuracy(isa, type, 7, 3);
      test_ends(isa, type);
    }
  }
  return exit_status();
}
