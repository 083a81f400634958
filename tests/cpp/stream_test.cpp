// SPDX-License-Identifier: BSD-3-Clause
// Streams have the bits of lstm_forward from packed weights, for every instruction set and dtype,
// read no byte outside of x and y; files with any bytes in their headers end in an Error or run.
#include "cpu/stream/stream.h"

#include <cstring>
#include <random>

#include "arrays.h"
#include "check.h"
#include "cpu/cpu_features.h"
#include "cpu/stream/file.h"
#include "reference.h"

namespace lstm_fused::test {
namespace {

using cpu::Stream;
using cpu::StreamModel;

struct Sizes {
  int64_t batch, input_size, hidden_size, projection_size;
  int layers;
  int64_t head_size;
};

Values random_values(int64_t n, std::mt19937& random) {
  std::uniform_real_distribution<double> uniform(-0.5, 0.5);
  Values values(n);
  for (double& value : values) value = uniform(random);
  return values;
}

// Values as the dtype holds them.
Values as_held(const Array& array) {
  Values values(array.size());
  for (int64_t i = 0; i < array.size(); ++i) values[i] = array.get(i);
  return values;
}

double tolerance(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 1e-13;
    case DType::kFloat32:
      return 5e-6;
    case DType::kFloat16:
      return 2.5e-3;
    default:
      return 2e-2;
  }
}

void check_close(const Array& got, const Values& wanted, DType dtype) {
  CHECK_EQ(got.size(), static_cast<int64_t>(wanted.size()));
  for (int64_t i = 0; i < got.size(); ++i) {
    if (std::abs(got.get(i) - wanted[i]) <= tolerance(dtype)) continue;
    report_failure(__FILE__, __LINE__, text("element ", i, ": ", got.get(i), ", ", wanted[i]));
    return;
  }
}

void check_stream(DType dtype, const Sizes& sizes) {
  const Scope scope(dtype_name(dtype), " N=", sizes.batch, " D=", sizes.input_size,
                    " H=", sizes.hidden_size, " P=", sizes.projection_size,
                    " layers=", sizes.layers, " O=", sizes.head_size);
  constexpr int64_t kSteps = 5;
  std::mt19937 random(1);
  const int64_t H = sizes.hidden_size;
  const int64_t P = sizes.projection_size > 0 ? sizes.projection_size : H;
  const int64_t out_size = sizes.head_size > 0 ? sizes.head_size : P;

  // The truth, layer by layer; and the weights for the stream.
  std::vector<Array> arrays;
  const auto array_of = [&](int64_t n) {
    arrays.push_back(Array::input(dtype, random_values(n, random)));
    return arrays.back();
  };
  const Array x = array_of(kSteps * sizes.batch * sizes.input_size);
  Values values = as_held(x);
  std::vector<cpu::StreamLayerWeights> layers;
  Values h_n, c_n;
  for (int i = 0; i < sizes.layers; ++i) {
    LayerValues layer;
    layer.shape = {kSteps, sizes.batch, i == 0 ? sizes.input_size : P, H, P, 1, P != H};
    layer.lengths.assign(sizes.batch, kSteps);
    layer.x = values;
    if (dtype == DType::kBFloat16 || dtype == DType::kFloat16) {
      layer.round_state = [dtype](double value) { return widen(dtype, narrow(dtype, value)); };
    }
    const int64_t D = layer.shape.input_size;
    const Array w_ih = array_of(4 * H * D), w_hh = array_of(4 * H * P), b_ih = array_of(4 * H);
    DirectionValues& direction = layer.direction[0];
    direction.w_ih = as_held(w_ih);
    direction.w_hh = as_held(w_hh);
    direction.b_ih = as_held(b_ih);
    direction.h_0.assign(sizes.batch * P, 0);
    direction.c_0.assign(sizes.batch * H, 0);
    cpu::StreamLayerWeights weights{D, H, P, {w_ih.data(), w_hh.data(), b_ih.data()}};
    if (P != H) {
      const Array w_hr = array_of(P * H);
      direction.w_hr = as_held(w_hr);
      weights.weights.w_hr = w_hr.data();
    }
    layers.push_back(weights);
    const ForwardTruth truth = reference_forward(layer, 0);
    values = truth.y;
    h_n = truth.h_n;
    c_n = truth.c_n;
  }
  cpu::StreamHeadWeights head;
  if (sizes.head_size > 0) {
    const Array weight = array_of(sizes.head_size * P), bias = array_of(sizes.head_size);
    head = {sizes.head_size, weight.data(), bias.data()};
    Values outputs;
    for (int64_t row = 0; row < kSteps * sizes.batch; ++row) {
      for (int64_t o = 0; o < sizes.head_size; ++o) {
        double sum = bias.get(o);
        for (int64_t p = 0; p < P; ++p) sum += weight.get(o * P + p) * values[row * P + p];
        outputs.push_back(sum);
      }
    }
    values = outputs;
  }

  const auto model = std::make_shared<const StreamModel>(dtype, layers, head, cpu::Parallel{});
  Stream stream(model, sizes.batch);
  Array y(dtype, kSteps * sizes.batch * out_size);
  stream.run(kSteps, x.data(), y.data());
  check_close(y, values, dtype);
  Array h(dtype, sizes.batch * P), c(dtype, sizes.batch * H);
  stream.get_state(sizes.layers - 1, h.data(), c.data());
  check_close(h, h_n, dtype);
  check_close(c, c_n, dtype);

  // Steps one at a time, each from a copy of the stream, have its bits.
  auto steps = std::make_unique<Stream>(model, sizes.batch);
  for (int64_t t = 0; t < kSteps; ++t) {
    steps = std::make_unique<Stream>(*steps);
    Array row(dtype, sizes.batch * out_size);
    steps->step(x.at(t * sizes.batch * sizes.input_size), row.data());
    const bool same = std::memcmp(row.data(), y.at(t * sizes.batch * out_size),
                                  sizes.batch * out_size * dtype_size(dtype)) == 0;
    if (!same) report_failure(__FILE__, __LINE__, text("step ", t, " differs in its bits"));
  }
  stream.reset(nullptr);
  Array again(dtype, y.size());
  stream.run(kSteps, x.data(), again.data());
  if (!again.same_bits(y)) report_failure(__FILE__, __LINE__, "a reset is no new stream");
}

void check_errors() {
  const float weight[8] = {};
  const cpu::StreamLayerWeights layer{1, 1, 1, {weight, weight}}, wide{2, 1, 1, {weight, weight}};
  const auto make = [&](const std::vector<cpu::StreamLayerWeights>& layers, int64_t batch) {
    return error_of([&] {
      Stream stream(std::make_shared<const StreamModel>(DType::kFloat32, layers,
                                                        cpu::StreamHeadWeights{}, cpu::Parallel{}),
                    batch);
    });
  };
  CHECK_EQ(make({layer}, 1), "");
  CHECK_EQ(make({}, 1), "a stream needs at least one layer, got none");
  CHECK_EQ(make({layer}, 0), "a stream's batch_size must be at least 1, got 0");
  CHECK_EQ(make({layer, wide}, 1), "layer 1 takes 2 features, but the layer before gives 1");
}

uint32_t crc32(const unsigned char* data, size_t size) {
  uint32_t crc = ~0u;
  for (size_t i = 0; i < size; ++i) {
    crc ^= data[i];
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? 0xEDB88320u : 0);
  }
  return ~crc;
}

// The numbers of a header, from offset 24 on: docs/stream_format.md.
struct Numbers {
  uint32_t layers, type, input_size, hidden_size, proj_size, head_size, flags, reserved[3];
};

// The bytes of a file of these numbers, at most `limit`.
size_t size_of(const Numbers& n, size_t limit) {
  const uint64_t element = n.type == 0 ? 4 : n.type == 3 ? 1 : 2;
  const uint64_t outputs = n.proj_size > 0 ? n.proj_size : n.hidden_size;
  uint64_t size = 64;
  const auto array = [&](uint64_t bytes) { size += (bytes + 63) / 64 * 64; };
  const auto matrix = [&](uint64_t rows, uint64_t columns) {
    array(rows * columns * element);
    if (n.type == 3) array(rows * 4);
  };
  for (uint64_t i = 0; i < n.layers && size < limit; ++i) {
    matrix(uint64_t{4} * n.hidden_size, i == 0 ? n.input_size : outputs);
    matrix(uint64_t{4} * n.hidden_size, outputs);
    if (n.proj_size > 0) matrix(outputs, n.hidden_size);
    if (n.flags & 1) array(uint64_t{16} * n.hidden_size);
  }
  if (n.head_size > 0) {
    array(n.head_size * outputs * 4);
    array(uint64_t{4} * n.head_size);
  }
  return size < limit ? size : limit;
}

// Headers at random over bytes at random, sealed with their size and checksum: mostly of the size
// that the numbers ask for, or some other.
void check_files() {
  std::mt19937 random(2);
  const uint32_t small[] = {1, 2, 3, 5}, any[] = {0, 1, 4, 31, 1u << 20, 1u << 31, ~0u};
  int sound = 0;
  for (int round = 0; round < 20000; ++round) {
    uint32_t fields[10] = {};
    for (int i = 0; i < 10; ++i) {
      const bool is_optional = i == 1 || i >= 4;
      fields[i] = is_optional && random() % 2 == 0 ? 0 : small[random() % std::size(small)];
      if (i >= 6) fields[i] = i == 6 ? random() % 2 : 0;
    }
    if (random() % 2 == 0) fields[random() % 10] = any[random() % std::size(any)];
    if (round % 16 == 0) fields[3] = 61;  // weights of 8 and 16 bits stay packed
    Numbers numbers;
    static_assert(sizeof(numbers) == sizeof(fields), "as many numbers");
    std::memcpy(&numbers, fields, sizeof(numbers));
    size_t size = random() % 8 == 0 ? random() % 4096 : size_of(numbers, 1 << 17);
    // Memory of its own size, so that a read behind its end is seen.
    const std::unique_ptr<unsigned char[]> file(new unsigned char[size]);
    for (size_t i = 0; i < size; ++i) file[i] = static_cast<unsigned char>(random() % 64);
    if (size >= 64) {
      const uint32_t version = 1;
      const uint64_t whole = size;
      std::memcpy(&file[0], "LSTMFUSE", 8);
      std::memcpy(&file[8], &version, 4);
      std::memcpy(&file[16], &whole, 8);
      std::memcpy(&file[24], &numbers, sizeof(numbers));
      const uint32_t checksum = crc32(&file[16], size - 16);
      std::memcpy(&file[12], &checksum, 4);
    }
    try {
      Stream stream(cpu::read_stream_file(file.get(), size, cpu::Parallel{}), 1);
      const std::vector<float> x(stream.model().input_size());
      std::vector<float> y(stream.model().output_size());
      stream.step(x.data(), y.data());
      ++sound;
    } catch (const Error&) {
    }
  }
  CHECK_LT(2000, sound);  // so many that all of the reader has run
}

}  // namespace
}  // namespace lstm_fused::test

int main() {
  using namespace lstm_fused;
  for (cpu::Isa isa : cpu::available_isas()) {
    cpu::set_max_isa(cpu::isa_name(isa));
    const test::Scope scope(cpu::isa_name(isa));
    for (DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16}) {
      for (const test::Sizes& sizes : std::initializer_list<test::Sizes>{{1, 1, 1, 0, 1, 0},
                                                                         {1, 1, 16, 0, 1, 1},
                                                                         {3, 5, 33, 0, 2, 0},
                                                                         {2, 3, 20, 7, 3, 0},
                                                                         {7, 4, 9, 5, 2, 3},
                                                                         {13, 2, 70, 0, 1, 40}}) {
        test::check_stream(dtype, sizes);
      }
    }
  }
  cpu::set_max_isa("any");
  test::check_errors();
  test::check_files();
  return test::exit_status();
}
