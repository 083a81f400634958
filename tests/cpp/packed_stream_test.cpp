// SPDX-License-Identifier: BSD-3-Clause
// Streams over packed weights of low precision, for every instruction set and type of weights.
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "cpu/cpu_features.h"
#include "cpu/quantized/forward.h"
#include "cpu/quantized/packed_weights.h"
#include "cpu/stream/stream.h"

namespace lstm_fused::test {
namespace {

using cpu::Stream;
using cpu::StreamModel;
namespace quantized = cpu::quantized;

struct Sizes {
  int64_t batch, input_size, hidden_size, projection_size;
  int layers;
  int64_t head_size;
};

// Streams over packed weights have the bits of quantized_forward, layer by layer, and what a linear
// head makes of them.
void check_packed_stream(quantized::WeightType type, const Sizes& sizes) {
  const Scope scope(quantized::weight_type_name(type), " N=", sizes.batch, " D=", sizes.input_size,
                    " H=", sizes.hidden_size, " P=", sizes.projection_size,
                    " layers=", sizes.layers, " O=", sizes.head_size);
  constexpr int64_t kSteps = 5;
  std::mt19937 random(1);
  std::uniform_real_distribution<double> uniform(-0.5, 0.5);
  const auto array_of = [&](int64_t n) {
    std::vector<double> values(n);
    for (double& value : values) value = uniform(random);
    return Array::input(DType::kFloat32, values);
  };
  const int64_t N = sizes.batch, H = sizes.hidden_size;
  const int64_t P = sizes.projection_size > 0 ? sizes.projection_size : H;
  const SequenceLayout layout = dense_layout(kSteps, N);
  const Array x = array_of(kSteps * N * sizes.input_size);
  const auto floats = [](const Array& array) { return static_cast<const float*>(array.data()); };
  std::vector<cpu::Buffer> blocks;
  std::vector<cpu::StreamPackedWeights> layers;
  std::vector<Array> wanted = {x}, h_n, c_n, h_0, c_0;
  for (int i = 0; i < sizes.layers; ++i) {
    const int64_t D = i == 0 ? sizes.input_size : P;
    const Array w_ih = array_of(4 * H * D), w_hh = array_of(4 * H * P), bias = array_of(4 * H),
                w_hr = array_of(P * H);
    quantized::PackSource source{type, D, H, P, {}};
    source.weights = {w_ih.data(), w_hh.data(), bias.data(), bias.data(),
                      P != H ? w_hr.data() : nullptr};
    const int64_t bytes = quantized::packed_bytes(source);
    blocks.emplace_back(bytes);
    quantized::pack_layer(source, blocks.back().get());
    layers.push_back({blocks.back().get(), bytes});

    h_0.push_back(array_of(N * P));
    c_0.push_back(array_of(N * H));
    Array y(DType::kFloat32, kSteps * N * P);
    h_n.emplace_back(DType::kFloat32, N * P);
    c_n.emplace_back(DType::kFloat32, N * H);
    quantized::QuantizedForwardArgs args;
    args.shape = {kSteps, N, D, H, P, 1, P != H};
    args.layout = &layout;
    args.x = floats(wanted.back());
    args.direction[0] = {quantized::read_layer(blocks.back().get(), bytes),
                         floats(h_0.back()),
                         floats(c_0.back()),
                         static_cast<float*>(y.data()),
                         static_cast<float*>(h_n.back().data()),
                         static_cast<float*>(c_n.back().data())};
    quantized::quantized_forward(
        args, quantized::make_quantized_plan(args.shape, type, cpu::cpu_facts(1)), cpu::Parallel{});
    wanted.push_back(y);
  }
  const Array weight = array_of(sizes.head_size * P), bias = array_of(sizes.head_size);
  cpu::StreamHeadWeights head;
  if (sizes.head_size > 0) head = {sizes.head_size, weight.data(), bias.data()};
  const auto model = std::make_shared<const StreamModel>(layers, head, cpu::Parallel{});
  blocks.clear();  // the model has its own

  // Steps one at a time, each from a copy of the stream.
  auto stream = std::make_unique<Stream>(model, N);
  const auto begin = [&] {
    for (int i = 0; i < sizes.layers; ++i) stream->set_state(i, h_0[i].data(), c_0[i].data());
  };
  begin();
  const int64_t out_size = sizes.head_size > 0 ? sizes.head_size : P;
  Array y(DType::kFloat32, kSteps * N * out_size);
  for (int64_t t = 0; t < kSteps; ++t) {
    stream = std::make_unique<Stream>(*stream);
    stream->step(x.at(t * N * sizes.input_size), y.at(t * N * out_size));
  }
  if (sizes.head_size > 0) {
    std::vector<double> outputs;
    for (int64_t row = 0; row < kSteps * N; ++row) {
      for (int64_t o = 0; o < sizes.head_size; ++o) {
        double sum = bias.get(o);
        for (int64_t p = 0; p < P; ++p)
          sum += weight.get(o * P + p) * wanted.back().get(row * P + p);
        outputs.push_back(sum);
      }
    }
    for (int64_t i = 0; i < y.size(); ++i) CHECK_LT(std::abs(y.get(i) - outputs[i]), 5e-6);
  } else {
    CHECK(y.same_bits(wanted.back()));
  }
  for (int i = 0; i < sizes.layers; ++i) {
    Array h(DType::kFloat32, N * P), c(DType::kFloat32, N * H);
    stream->get_state(i, h.data(), c.data());
    CHECK(h.same_bits(h_n[i]) && c.same_bits(c_n[i]));
  }
  begin();
  Array again(DType::kFloat32, y.size());
  stream->run(kSteps, x.data(), again.data());
  CHECK(again.same_bits(y));

  // A reset of the first row alone: as a stream of zeros has it, the others as they were.
  begin();
  Stream zero(model, N), both(*stream);
  std::vector<uint8_t> mask(N, 0);
  mask[0] = 1;
  both.reset(mask.data());
  Array of_zero(DType::kFloat32, N * out_size), of_both(DType::kFloat32, N * out_size);
  zero.step(x.data(), of_zero.data());
  both.step(x.data(), of_both.data());
  for (int64_t i = 0; i < N * out_size; ++i) {
    const bool is_first = i < out_size;
    CHECK_EQ(of_both.get(i), is_first ? of_zero.get(i) : y.get(i));
  }
}

void check_packed_errors() {
  const float weight[8] = {};
  const auto block_of = [&](quantized::WeightType type, int64_t input_size, int64_t* bytes) {
    quantized::PackSource source{type, input_size, 1, 1, {}};
    source.weights = {weight, weight};
    *bytes = quantized::packed_bytes(source);
    cpu::Buffer block(*bytes);
    quantized::pack_layer(source, block.get());
    return block;
  };
  int64_t bytes[3] = {};
  const cpu::Buffer one = block_of(quantized::WeightType::kInt8, 1, &bytes[0]);
  const cpu::Buffer wide = block_of(quantized::WeightType::kInt8, 2, &bytes[1]);
  const cpu::Buffer half = block_of(quantized::WeightType::kFloat16, 1, &bytes[2]);
  const auto make = [](const std::vector<cpu::StreamPackedWeights>& layers) {
    return error_of([&] { StreamModel(layers, cpu::StreamHeadWeights{}, cpu::Parallel{}); });
  };
  const cpu::StreamPackedWeights first{one.get(), bytes[0]};
  CHECK_EQ(make({first, first}), "");
  CHECK_EQ(make({}), "a stream needs at least one layer, got none");
  CHECK_EQ(make({first, {wide.get(), bytes[1]}}),
           "layer 1 takes 2 features, but the layer before gives 1");
  CHECK_EQ(make({first, {half.get(), bytes[2]}}),
           "packed weights of a stream must have one type, got int8 and float16");
  CHECK(make({{one.get(), bytes[0] - 1}}) != "");
}

}  // namespace
}  // namespace lstm_fused::test

int main() {
  using namespace lstm_fused;
  for (cpu::Isa isa : cpu::available_isas()) {
    cpu::set_max_isa(cpu::isa_name(isa));
    const test::Scope scope(cpu::isa_name(isa));
    for (auto type : {cpu::quantized::WeightType::kInt8, cpu::quantized::WeightType::kBFloat16,
                      cpu::quantized::WeightType::kFloat16}) {
      for (const test::Sizes& sizes : std::initializer_list<test::Sizes>{{1, 1, 1, 0, 1, 0},
                                                                         {3, 5, 33, 0, 2, 0},
                                                                         {2, 3, 20, 7, 3, 0},
                                                                         {7, 4, 9, 5, 2, 3},
                                                                         {9, 2, 70, 0, 2, 4}}) {
        test::check_packed_stream(type, sizes);
      }
    }
  }
  cpu::set_max_isa("any");
  test::check_packed_errors();
  return test::exit_status();
}
