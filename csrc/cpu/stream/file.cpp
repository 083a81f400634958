// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/stream/file.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "common/error.h"
#include "common/integers.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "a stream's file is little-endian, and read as it lies in memory"
#endif

namespace lstm_fused::cpu {
namespace {

constexpr char kMagic[8] = {'L', 'S', 'T', 'M', 'F', 'U', 'S', 'E'};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kHasBias = 1;
constexpr uint64_t kAlignment = 64;
// What keeps every product of sizes in 64 bits.
constexpr uint32_t kMaxSize = 1u << 20, kMaxLayers = 1u << 10;

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t checksum;  // CRC-32 of all bytes behind it
  uint64_t size;      // of the whole file
  uint32_t layers, weight_type;
  uint32_t input_size, hidden_size, proj_size, head_size;
  uint32_t flags;
  uint32_t reserved[3];
};
static_assert(sizeof(Header) == 64, "as docs/stream_format.md has it");
constexpr size_t kChecksummed = offsetof(Header, size);

enum WeightType : uint32_t { kFloat32, kFloat16, kBFloat16, kInt8, kWeightTypes };

// The checksum that zlib calls crc32: polynomial 0xEDB88320, reflected.
uint32_t crc32(const unsigned char* data, size_t size) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> made{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? 0xEDB88320u : 0);
      made[i] = value;
    }
    return made;
  }();
  uint32_t crc = ~0u;
  for (size_t i = 0; i < size; ++i) crc = table[(crc ^ data[i]) & 0xFF] ^ (crc >> 8);
  return ~crc;
}

float widen_half(uint16_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7FFFu;
  float value;
  if (magnitude < 0x0400u) {  // subnormal: counts in units of 2^-24
    value = static_cast<float>(magnitude) * 0x1p-24f;
    uint32_t plain;
    std::memcpy(&plain, &value, sizeof(plain));
    plain |= sign;
    std::memcpy(&value, &plain, sizeof(value));
    return value;
  }
  const uint32_t exponent = magnitude >= 0x7C00u ? 0x70000000u : 0x38000000u;  // inf, NaN
  const uint32_t widened = sign | ((magnitude << 13) + exponent);
  std::memcpy(&value, &widened, sizeof(value));
  return value;
}

// Bytes of a layer as float32 up to which its weights are widened: they come from the first caches,
// and a step is bound by the work around its products. Measured, Zen 5, N = 1, D = H: 0.17
// microseconds and 0.26 with int8 at H = 32, 0.45 and 0.37 at H = 48, 0.88 and 0.51 at H = 64.
constexpr uint64_t kMaxWidenedBytes = 96 << 10;

// Takes the arrays of a file one after the other.
class Reader {
 public:
  Reader(const unsigned char* data, uint64_t size, uint32_t weight_type)
      : data_(data), size_(size), weight_type_(weight_type) {}

  // An array of float32.
  const float* floats(uint64_t count) {
    return keep(count, reinterpret_cast<const float*>(take(count * sizeof(float))));
  }

  struct Matrix {
    const float* values = nullptr;
    const float* scales = nullptr;  // of the rows, where the file's are int8
  };

  // A matrix of the file's weight type, as float32.
  Matrix matrix(uint64_t rows, uint64_t columns) {
    const uint64_t count = rows * columns;
    if (weight_type_ == kFloat32) return {floats(count)};
    const uint64_t element = weight_type_ == kInt8 ? 1 : 2;
    const unsigned char* const from = take(count * element);
    const float* const scales = weight_type_ == kInt8 ? floats(rows) : nullptr;
    std::vector<float> values(count);
    for (uint64_t row = 0; row < rows; ++row) {
      const float scale = scales ? scales[row] : 1.0f;
      for (uint64_t i = row * columns; i < (row + 1) * columns; ++i) {
        if (weight_type_ == kInt8) {
          values[i] = scale * static_cast<float>(static_cast<int8_t>(from[i]));
          continue;
        }
        uint16_t bits;
        std::memcpy(&bits, from + i * 2, sizeof(bits));
        if (weight_type_ == kFloat16) {
          values[i] = widen_half(bits);
        } else {
          const uint32_t widened = uint32_t{bits} << 16;
          std::memcpy(&values[i], &widened, sizeof(widened));
        }
      }
    }
    arrays_.push_back(std::move(values));
    return {arrays_.back().data(), scales};
  }

  uint64_t position() const { return position_; }

 private:
  const unsigned char* take(uint64_t bytes) {
    const uint64_t padded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    LSTM_CHECK(padded <= size_ - position_,
               "the file of a stream ends early: its sizes need more than ", size_, " bytes");
    const unsigned char* const at = data_ + position_;
    position_ += padded;
    return at;
  }

  // NOTE: copied, since the caller's bytes need not be aligned.
  const float* keep(uint64_t count, const void* from) {
    std::vector<float> values(count);
    if (count > 0) std::memcpy(values.data(), from, count * sizeof(float));
    arrays_.push_back(std::move(values));
    return arrays_.back().data();
  }

  const unsigned char* const data_;
  const uint64_t size_;
  const uint32_t weight_type_;
  uint64_t position_ = sizeof(Header);
  std::vector<std::vector<float>> arrays_;
};

void check_header(const Header& header, const unsigned char* bytes, size_t size) {
  LSTM_CHECK(std::memcmp(header.magic, kMagic, sizeof(kMagic)) == 0,
             "this is no file of a stream: it does not begin with \"LSTMFUSE\"");
  LSTM_CHECK(header.version == kVersion, "the file of a stream has format version ", header.version,
             ", and this library reads version ", kVersion);
  LSTM_CHECK(header.size == size, "the file of a stream should have ", header.size,
             " bytes, and has ", size, ": it was cut off or added to");
  const uint32_t found = crc32(bytes + kChecksummed, size - kChecksummed);
  LSTM_CHECK(found == header.checksum, "the file of a stream is damaged: its checksum is ", found,
             " in place of ", header.checksum);
  LSTM_CHECK(header.weight_type < kWeightTypes, "the file of a stream has an unknown weight type, ",
             header.weight_type);
  LSTM_CHECK(header.layers >= 1 && header.layers <= kMaxLayers,
             "the file of a stream must have 1 to ", kMaxLayers, " layers, got ", header.layers);
  for (const uint32_t value : {header.input_size, header.hidden_size}) {
    LSTM_CHECK(value >= 1 && value <= kMaxSize, "a size in the file of a stream must be 1 to ",
               kMaxSize, ", got ", value);
  }
  for (const uint32_t value : {header.proj_size, header.head_size}) {
    LSTM_CHECK(value <= kMaxSize, "a size in the file of a stream must be at most ", kMaxSize,
               ", got ", value);
  }
  LSTM_CHECK(header.proj_size == 0 || header.proj_size < header.hidden_size,
             "the file of a stream has proj_size ", header.proj_size,
             ", which must be below hidden_size ", header.hidden_size);
  const bool is_plain = (header.flags & ~kHasBias) == 0 && header.reserved[0] == 0 &&
                        header.reserved[1] == 0 && header.reserved[2] == 0;
  LSTM_CHECK(is_plain, "the file of a stream uses features that this library does not know");
}

struct FileLayer {
  StreamLayerWeights weights;
  const float* w_ih_scales = nullptr;  // int8
  const float* w_hh_scales = nullptr;
  const float* w_hr_scales = nullptr;
};

FileLayer read_layer(Reader& reader, const Header& header, uint32_t index) {
  FileLayer layer;
  StreamLayerWeights& own = layer.weights;
  const uint64_t gates = uint64_t{kGates} * header.hidden_size;
  own.hidden_size = header.hidden_size;
  own.output_size = header.proj_size > 0 ? header.proj_size : header.hidden_size;
  own.input_size = index == 0 ? header.input_size : own.output_size;
  const Reader::Matrix w_ih = reader.matrix(gates, own.input_size);
  const Reader::Matrix w_hh = reader.matrix(gates, own.output_size);
  own.weights.w_ih = w_ih.values;
  own.weights.w_hh = w_hh.values;
  layer.w_ih_scales = w_ih.scales;
  layer.w_hh_scales = w_hh.scales;
  if (header.proj_size > 0) {
    const Reader::Matrix w_hr = reader.matrix(own.output_size, header.hidden_size);
    own.weights.w_hr = w_hr.values;
    layer.w_hr_scales = w_hr.scales;
  }
  if (header.flags & kHasBias) own.weights.b_ih = reader.floats(gates);
  return layer;
}

// Whether the layers keep the file's type.
bool keeps_packed(const Header& header) {
  if (header.weight_type == kFloat32) return false;
  const uint64_t output_size = header.proj_size > 0 ? header.proj_size : header.hidden_size;
  const uint64_t k_size = std::max(header.input_size, header.hidden_size);
  if (header.weight_type == kInt8 && k_size > quantized::kMaxInt8K) return false;
  const uint64_t first = uint64_t{header.input_size} + output_size;
  const uint64_t widest = header.layers > 1 ? std::max(first, 2 * output_size) : first;
  return kGates * header.hidden_size * widest * sizeof(float) > kMaxWidenedBytes;
}

std::shared_ptr<const StreamModel> make_packed_model(const Header& header,
                                                     const std::vector<FileLayer>& layers,
                                                     const StreamHeadWeights& head,
                                                     const Parallel& parallel) {
  const auto type = header.weight_type == kInt8       ? quantized::WeightType::kInt8
                    : header.weight_type == kBFloat16 ? quantized::WeightType::kBFloat16
                                                      : quantized::WeightType::kFloat16;
  // The file has the sum of both biases.
  const std::vector<float> no_bias(kGates * uint64_t{header.hidden_size});
  std::vector<Buffer> blocks;
  std::vector<StreamPackedWeights> packed;
  for (const FileLayer& layer : layers) {
    const StreamLayerWeights& own = layer.weights;
    quantized::PackSource source{
        type,        own.input_size,    own.hidden_size,   own.output_size,
        own.weights, layer.w_ih_scales, layer.w_hh_scales, layer.w_hr_scales};
    if (own.weights.b_ih) source.weights.b_hh = no_bias.data();
    const int64_t bytes = quantized::packed_bytes(source);
    blocks.emplace_back(bytes);
    quantized::pack_layer(source, blocks.back().get());
    packed.push_back({blocks.back().get(), bytes});
  }
  return std::make_shared<const StreamModel>(packed, head, parallel);
}

}  // namespace

std::shared_ptr<const StreamModel> read_stream_file(const void* data, size_t size,
                                                    const Parallel& parallel) {
  const auto* const bytes = static_cast<const unsigned char*>(data);
  LSTM_CHECK(size >= sizeof(Header), "this is no file of a stream: it has ", size,
             " bytes, fewer than the ", sizeof(Header), " of a header");
  Header header;
  std::memcpy(&header, bytes, sizeof(header));
  check_header(header, bytes, size);

  Reader reader(bytes, size, header.weight_type);
  std::vector<FileLayer> layers;
  for (uint32_t i = 0; i < header.layers; ++i) layers.push_back(read_layer(reader, header, i));
  const auto output_size = static_cast<uint64_t>(layers.back().weights.output_size);
  StreamHeadWeights head;
  if (header.head_size > 0) {
    head.out_features = header.head_size;
    head.weight = reader.floats(uint64_t{header.head_size} * output_size);
    head.bias = reader.floats(header.head_size);
  }
  LSTM_CHECK(reader.position() == size, "the file of a stream has ", size - reader.position(),
             " bytes more than its sizes need");
  if (keeps_packed(header)) return make_packed_model(header, layers, head, parallel);
  std::vector<StreamLayerWeights> weights;
  for (const FileLayer& layer : layers) weights.push_back(layer.weights);
  return std::make_shared<const StreamModel>(DType::kFloat32, weights, head, parallel);
}

}  // namespace lstm_fused::cpu
