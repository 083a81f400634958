// SPDX-License-Identifier: BSD-3-Clause
// Packed weights: what is packed comes back, damaged blocks are refused; sums of int8 products are
// exact, also at the ends of their range; and a layer's bits depend neither on the plan nor on the
// threads, with int8 weights not on the instruction set either.
#include <cmath>
#include <cstring>
#include <vector>

#include "check.h"
#include "cpu/quantized/forward.h"
#include "parallel.h"

namespace lstm_fused::test {
namespace {

namespace quantized = cpu::quantized;
using quantized::QuantizedIsa;
using quantized::WeightType;

constexpr WeightType kTypes[] = {WeightType::kInt8, WeightType::kBFloat16, WeightType::kFloat16};

// Numbers between -1 and 1 that are the same everywhere.
class Numbers {
 public:
  float next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(static_cast<int32_t>(state_ >> 32)) * 0x1p-31f;
  }
  std::vector<float> vector(int64_t size, float factor = 1) {
    std::vector<float> values(size);
    for (float& value : values) value = next() * factor;
    return values;
  }

 private:
  uint64_t state_ = 1;
};

// One direction's float weights, and their block.
struct Direction {
  std::vector<float> w_ih, w_hh, b_ih, b_hh, w_hr;
  quantized::PackSource source;
  std::vector<uint8_t> block;

  Direction(WeightType type, int64_t D, int64_t H, int64_t P, bool projection, Numbers& numbers) {
    w_ih = numbers.vector(4 * H * D, 0.5f);
    w_hh = numbers.vector(4 * H * P, 0.5f);
    b_ih = numbers.vector(4 * H);
    b_hh = numbers.vector(4 * H);
    if (projection) w_hr = numbers.vector(P * H);
    source.type = type;
    source.input_size = D;
    source.hidden_size = H;
    source.output_size = P;
    source.weights = {w_ih.data(), w_hh.data(), b_ih.data(), b_hh.data(),
                      projection ? w_hr.data() : nullptr};
    pack();
  }
  void pack() {
    block.resize(quantized::packed_bytes(source));
    quantized::pack_layer(source, block.data());
  }
  quantized::PackedLayer layer() const {
    return quantized::read_layer(block.data(), static_cast<int64_t>(block.size()));
  }
};

// Half of the last bit that the type keeps of a row's largest weight.
double rounding_of(WeightType type, const std::vector<float>& weights, int64_t row, int64_t size) {
  double largest = 0;
  for (int64_t k = 0; k < size; ++k) {
    largest = std::max(largest, std::fabs(double{weights[row * size + k]}));
  }
  if (type == WeightType::kInt8) return largest / 127 / 2 * 1.0001;
  return largest * (type == WeightType::kBFloat16 ? 0x1p-8 : 0x1p-11);
}

void check_unpacked(WeightType type, const std::vector<float>& weights,
                    const std::vector<float>& unpacked, int64_t columns) {
  for (size_t i = 0; i < weights.size(); ++i) {
    const double most = rounding_of(type, weights, static_cast<int64_t>(i) / columns, columns);
    CHECK_LE(std::fabs(double{weights[i]} - unpacked[i]), most);
  }
}

void test_packing() {
  Numbers numbers;
  for (const WeightType type : kTypes) {
    for (const int64_t H : {1, 3, 16, 17, 40}) {
      for (const int64_t D : {1, 2, 5, 33}) {
        const bool projection = H > 1 && D > 1;
        const int64_t P = projection ? H - 1 : H;
        const Scope scope(quantized::weight_type_name(type), " H=", H, " D=", D);
        const Direction direction(type, D, H, P, projection, numbers);
        std::vector<float> w_ih(4 * H * D), w_hh(4 * H * P), b_ih(4 * H), b_hh(4 * H), w_hr(P * H);
        quantized::unpack_layer(direction.layer(),
                                {w_ih.data(), w_hh.data(), b_ih.data(), b_hh.data(), w_hr.data()});
        check_unpacked(type, direction.w_ih, w_ih, D);
        check_unpacked(type, direction.w_hh, w_hh, P);
        if (projection) check_unpacked(type, direction.w_hr, w_hr, H);
        for (int64_t i = 0; i < 4 * H; ++i) {
          CHECK_EQ(b_ih[i], direction.b_ih[i] + direction.b_hh[i]);
          CHECK_EQ(b_hh[i], 0.0f);
        }
      }
    }
  }
}

void test_refusals() {
  Numbers numbers;
  Direction direction(WeightType::kInt8, 5, 7, 7, false, numbers);
  const auto refusal_of = [&](size_t at, uint8_t value, int64_t less) {
    std::vector<uint8_t> damaged = direction.block;
    damaged[at] = value;
    return error_of([&] {
      quantized::read_layer(damaged.data(), static_cast<int64_t>(damaged.size()) - less);
    });
  };
  CHECK_EQ(refusal_of(0, 'L', 0), "");
  CHECK(refusal_of(0, 'X', 0).find("got something else") != std::string::npos);
  CHECK(refusal_of(8, 2, 0).find("format version 1, got 2") != std::string::npos);
  CHECK(refusal_of(12, 9, 0).find("damaged") != std::string::npos);
  CHECK(refusal_of(0, 'L', 1).find("bytes, got") != std::string::npos);
  CHECK(refusal_of(16, 77, 0).find("bytes, got") != std::string::npos);         // another D
  CHECK(refusal_of(23, 0x80, 0).find("must be between") != std::string::npos);  // negative
  CHECK(refusal_of(40, 2, 0).find("damaged") != std::string::npos);

  for (const float bad : {INFINITY, -INFINITY, NAN}) {
    for (const WeightType type : kTypes) {
      direction.source.type = type;
      direction.w_hh[3] = bad;
      CHECK(error_of([&] { direction.pack(); }).find("w_hh must be finite") == 0);
    }
  }
  direction.w_hh[3] = 1e6f;
  CHECK(error_of([&] { direction.pack(); }).find("w_hh must fit float16") == 0);
}

// x·W_ihᵀ of integers: every table must give the one float32 that the exact sum rounds to.
void check_exact(int64_t rows, int64_t D, int64_t H, bool at_the_ends, Numbers& numbers) {
  Direction direction(WeightType::kInt8, D, H, H, false, numbers);
  std::vector<float> scales(4 * H, 1.0f), x(rows * D);
  for (int64_t i = 0; i < 4 * H * D; ++i) {
    const float any = std::nearbyint(numbers.next() * 127);
    direction.w_ih[i] = at_the_ends ? (i / D % 2 ? 127.0f : -128.0f) : any;
  }
  direction.b_ih.assign(4 * H, 0.0f);
  direction.b_hh.assign(4 * H, 0.0f);
  direction.source.w_ih_scales = scales.data();
  direction.pack();
  // The largest of each row is 32767, so that values are the integers themselves.
  for (int64_t i = 0; i < rows * D; ++i) {
    const float end = i / D % 2 ? -32767.0f : 32767.0f;
    x[i] = at_the_ends || i % D == 0 ? end : std::nearbyint(numbers.next() * 32767);
  }

  const quantized::PackedLayer layer = direction.layer();
  for (const QuantizedIsa isa : quantized::available_quantized_isas()) {
    const Scope scope(quantized::quantized_isa_name(isa), " rows=", rows, " D=", D, " H=", H);
    const quantized::QuantizedTable& table = quantized::quantized_table(isa, WeightType::kInt8);
    const int64_t stride = quantized::operand_bytes(layer.w_ih.groups);
    std::vector<uint8_t> prepared(rows * stride, 0xFF);
    std::vector<float> row_scales(rows), out(rows * layer.w_ih.panels * 64, NAN);
    table.prepare_rows(
        {{x.data(), D, nullptr}, rows, D, prepared.data(), stride, row_scales.data()});
    quantized::InputGemm gemm;
    gemm.rows = rows;
    gemm.panel_end = layer.w_ih.panels;
    gemm.operand = {prepared.data(), stride, row_scales.data()};
    gemm.matrix = layer.w_ih;
    gemm.bias = layer.bias;
    gemm.out = out.data();
    gemm.out_stride = layer.w_ih.panels * 64;
    table.input_gemm(gemm);
    for (int64_t j = 0; j < rows; ++j) {
      CHECK_EQ(row_scales[j], 1.0f);
      for (int64_t column = 0; column < 4 * H; ++column) {
        int64_t sum = 0;
        for (int64_t k = 0; k < D; ++k) {
          sum += static_cast<int64_t>(x[j * D + k]) *
                 static_cast<int64_t>(direction.w_ih[column * D + k]);
        }
        const int64_t unit = column % H, gate = column / H;
        const float got = out[j * gemm.out_stride + unit / 16 * 64 + gate * 16 + unit % 16];
        const float high = static_cast<float>(sum >> 8), low = static_cast<float>(sum & 255);
        CHECK_EQ(got, high * 256.0f + low);
      }
    }
  }
}

void test_exact_sums() {
  Numbers numbers;
  for (const int64_t rows : {1, 2, 3, 4, 7}) {
    for (const int64_t D : {1, 3, 4, 17, 64, 130}) check_exact(rows, D, 17, false, numbers);
  }
  check_exact(2, 1100, 3, false, numbers);
  // 32767 · 128 · 512 is the most that int32 has room for; 255 · 128 · 65536 bytes' products.
  for (const int64_t D : {511, 512, 513, 1500, 65536}) check_exact(2, D, 1, true, numbers);
}

// ---- A layer
// -------------------------------------------------------------------------------------

struct Layer {
  LstmShape shape;
  SequenceLayout layout;
  std::vector<Direction> directions;
  std::vector<float> x, h_0, c_0;
  std::vector<uint8_t> resets;

  Layer(WeightType type, LstmShape sizes, const std::vector<int64_t>& lengths)
      : shape(sizes), layout(padded_layout(sizes.steps, lengths)) {
    Numbers numbers;
    for (int d = 0; d < shape.directions; ++d) {
      directions.emplace_back(type, shape.input_size, shape.hidden_size, shape.output_size,
                              shape.projection, numbers);
    }
    const int64_t rows = shape.steps * shape.batch;
    x = numbers.vector(rows * shape.input_size, 2);
    h_0 = numbers.vector(shape.batch * shape.output_size);
    c_0 = numbers.vector(shape.batch * shape.hidden_size);
    for (int64_t i = 0; i < rows; ++i) resets.push_back(numbers.next() > 0.8f);
  }

  // y, cell states, h_n and c_n, one after the other.
  std::vector<float> run(const quantized::QuantizedPlan& plan, const Parallel& parallel) const {
    const int64_t L = shape.directions, H = shape.hidden_size, P = shape.output_size;
    const int64_t rows = shape.steps * shape.batch, states = shape.batch * (H + P);
    std::vector<float> out(rows * L * (P + H) + L * states, 0.0f);
    float* cells = out.data() + rows * L * P;
    float* final = cells + rows * L * H;
    quantized::QuantizedForwardArgs args;
    args.shape = shape;
    args.layout = &layout;
    args.x = x.data();
    args.reset_mask = resets.data();
    for (int64_t d = 0; d < L; ++d) {
      args.direction[d] = {
          directions[d].layer(), h_0.data(),         c_0.data(),
          out.data() + d * P,    final + d * states, final + d * states + shape.batch * P,
          cells + d * H};
    }
    quantized::quantized_forward(args, plan, parallel);
    return out;
  }
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void test_plans() {
  const std::vector<std::pair<LstmShape, std::vector<int64_t>>> cases = {
      {{7, 5, 3, 50, 50, 1, false}, {7, 7, 7, 7, 7}},
      {{6, 7, 20, 33, 12, 2, true}, {6, 0, 3, 6, 1, 5, 6}},
      {{9, 1, 70, 40, 40, 2, false}, {9}},
      {{4, 1, 20, 141, 141, 1, false}, {4}},
      {{3, 2, 9, 130, 130, 1, false}, {3, 2}},
      {{3, 13, 5, 8, 3, 1, true}, {3, 3, 2, 3, 3, 1, 3, 3, 3, 0, 3, 3, 3}},
  };
  for (const WeightType type : kTypes) {
    for (const auto& [shape, lengths] : cases) {
      const Layer layer(type, shape, lengths);
      std::vector<float> wanted;
      for (const QuantizedIsa isa : quantized::available_quantized_isas()) {
        quantized::QuantizedPlan plan;
        plan.isa = isa;
        plan.division.input_gemm_steps = 1;
        const std::vector<float> first = layer.run(plan, kOneThread.parallel);
        if (wanted.empty()) wanted = first;
        for (const float value : first) CHECK(std::isfinite(value));
        for (int groups = 1; groups <= 3; ++groups) {
          for (int team = 1; team <= 4; ++team) {
            plan.division.row_groups = groups;
            plan.division.team = team;
            plan.division.input_gemm_steps = 1 + (groups + team) % 4;
            const Pool& pool = next_pool();
            const Scope scope(quantized::describe_quantized(plan, type), ", ", pool.name);
            CHECK(same_bits(layer.run(plan, pool.parallel), first));
          }
        }
        const Scope scope(quantized::quantized_isa_name(isa));
        if (type == WeightType::kInt8) CHECK(same_bits(first, wanted));
      }
    }
  }
}

void test_plan_choices() {
  cpu::CpuFacts facts;
  facts.isa = cpu::Isa::kAvx512Bf16;
  facts.threads = 2;
  const LstmShape small = {1, 1, 64, 64, 64, 1, false}, large = {100, 1, 512, 512, 512, 1, false};
  const LstmShape rows = {100, 2, 64, 64, 64, 1, false}, medium = {100, 1, 128, 128, 128, 1, false};
  const auto plan = [&](const LstmShape& shape) {
    return quantized::make_quantized_plan(shape, WeightType::kInt8, facts);
  };
  CHECK_EQ(plan(small).division.team, 1);
  CHECK_EQ(plan(rows).division.row_groups, 2);
  CHECK_EQ(plan(rows).division.team, 1);
  CHECK_EQ(plan(medium).division.team, 1);
  CHECK_EQ(plan(large).division.team, 2);
  CHECK_EQ(plan(large).division.row_groups, 1);
  CHECK(plan(large).isa == QuantizedIsa::kAvx512);
  facts.vnni = true;
  CHECK(plan(large).isa == QuantizedIsa::kAvx512Vnni);
  facts.isa = cpu::Isa::kAvx2;
  CHECK(plan(large).isa == QuantizedIsa::kAvxVnni);
  facts.isa = cpu::Isa::kBaseline;
  CHECK(plan(large).isa == QuantizedIsa::kBaseline);
}

}  // namespace
}  // namespace lstm_fused::test

int main() {
  lstm_fused::test::test_packing();
  lstm_fused::test::test_refusals();
  lstm_fused::test::test_exact_sums();
  lstm_fused::test::test_plans();
  lstm_fused::test::test_plan_choices();
  return lstm_fused::test::exit_status();
}
