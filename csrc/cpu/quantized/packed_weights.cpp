// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/quantized/packed_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/error.h"
#include "common/integers.h"
#include "common/pointers.h"

namespace lstm_fused::cpu::quantized {
namespace {

constexpr int64_t kMaxSize = 1 << 24;  // no product of sizes and bytes overflows
constexpr float kMaxInt8 = 127;
// Rows whose largest weight is below it are packed as zeros: scales stay far from denormal numbers,
// which the kernels flush, and so do their products with an activation's.
constexpr float kLeastScaled = 0x1p-100f;
// By how much, of a row's largest weight, one may differ from its integer times a given scale. The
// product and the division round by some 1e-7.
constexpr float kScaledTolerance = 1e-3f;

// Positions of a matrix's parts in the block.
struct MatrixPlace {
  int64_t columns = 0, k_size = 0, panels = 0, groups = 0;
  int64_t values = 0, scales = 0, offsets = 0;
};

struct Places {
  MatrixPlace w_ih, w_hh, w_hr;
  int64_t bias = 0;
  int64_t bytes = 0;
};

class PlaceCounter {
 public:
  explicit PlaceCounter(WeightType type) : type_(type) {}

  int64_t add(int64_t bytes) {
    const int64_t begin = at_;
    at_ += round_up(bytes, kChunkBytes);
    return begin;
  }
  MatrixPlace add_matrix(int64_t columns, int64_t k_size, int64_t panels) {
    MatrixPlace place = {columns, k_size, panels, ceil_div(k_size, group_size(type_)), 0, 0, 0};
    place.values = add(panels * place.groups * kGroupBytes);
    if (type_ == WeightType::kInt8) {
      place.scales = add(panels * kPanelColumns * 4);
      place.offsets = add(panels * kPanelColumns * 4);
    }
    return place;
  }
  int64_t bytes() const { return at_; }

 private:
  const WeightType type_;
  int64_t at_ = sizeof(PackedHeader);
};

Places places_of(const PackedHeader& header) {
  PlaceCounter counter(header.type);
  Places places;
  const int64_t panels = ceil_div(header.hidden_size, kUnits);
  places.w_ih = counter.add_matrix(kGates * header.hidden_size, header.input_size, panels);
  places.w_hh = counter.add_matrix(kGates * header.hidden_size, header.output_size, panels);
  if (header.projection) {
    places.w_hr = counter.add_matrix(header.output_size, header.hidden_size,
                                     ceil_div(header.output_size, kPanelColumns));
  }
  places.bias = counter.add(panels * kPanelColumns * 4);
  places.bytes = counter.bytes();
  return places;
}

void check_sizes(const PackedHeader& header) {
  const int64_t sizes[] = {header.input_size, header.hidden_size, header.output_size};
  for (const int64_t size : sizes) {
    LSTM_CHECK(size >= 1 && size <= kMaxSize,
               "input_size, hidden_size and proj_size of packed weights must be between 1 and ",
               kMaxSize, ", got ", sizes[0], ", ", sizes[1], " and ", sizes[2]);
  }
  LSTM_CHECK(header.type != WeightType::kInt8 || *std::max_element(sizes, sizes + 3) <= kMaxInt8K,
             "input_size, hidden_size and proj_size of int8 weights must be at most ", kMaxInt8K,
             ", got ", sizes[0], ", ", sizes[1], " and ", sizes[2]);
}

PackedHeader header_of(const PackSource& source) {
  PackedHeader header = {};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.version = kFormatVersion;
  header.type = source.type;
  header.input_size = source.input_size;
  header.hidden_size = source.hidden_size;
  header.output_size = source.output_size;
  header.projection = source.weights.w_hr != nullptr;
  header.has_bias = source.weights.b_ih != nullptr;
  check_sizes(header);
  return header;
}

// ---- Elements
// ------------------------------------------------------------------------------------

template <typename T>
T bits_as(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

uint32_t float_bits(float value) { return bits_as<uint32_t>(&value); }
float float_of(uint32_t bits) { return bits_as<float>(&bits); }

// Rounding of finite values to 16 bits, to nearest even.
uint16_t to_bfloat16(float value) {
  const uint32_t bits = float_bits(value);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

uint16_t to_float16(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  if (magnitude >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // overflows
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 rounds at 2^-24.
    const uint32_t rounded = float_bits(float_of(magnitude) + 0.5f) - 0x3F000000u;
    return static_cast<uint16_t>(sign | rounded);
  }
  const uint32_t rounded = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
  return static_cast<uint16_t>(sign | rounded);
}

float from_float16(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, magnitude = (half & 0x7FFFu) << 13;
  if (magnitude < 0x00800000u) {
    const float subnormal = float_of((half & 0x03FFu) | 0x3F000000u) - 0.5f;
    return float_of(sign | float_bits(subnormal));
  }
  return float_of(sign | (magnitude + 0x38000000u));
}

// Where the value of column `lane` of a chunk and number `k` of a group stands.
int64_t element_index(WeightType type, int64_t lane, int64_t k) {
  return type == WeightType::kFloat16 ? k * kUnits + lane : lane * group_size(type) + k;
}

// Row of a weight in nn.LSTM's layout that a panel's slot and lane hold; -1 past the end.
int64_t source_row(bool gate_order, int64_t columns, int64_t panel, int64_t slot, int64_t lane) {
  if (gate_order) {
    const int64_t hidden_size = columns / kGates, unit = panel * kUnits + lane;
    return unit < hidden_size ? slot * hidden_size + unit : -1;
  }
  const int64_t column = (panel * kPanelSlots + slot) * kUnits + lane;
  return column < columns ? column : -1;
}

// ---- Packing
// -------------------------------------------------------------------------------------

struct MatrixSource {
  const char* name;
  const float* weights;  // (columns, K)
  const float* scales;   // (columns) or null
  bool gate_order;
};

float largest_of(const MatrixSource& source, const float* row, int64_t k_size) {
  float largest = 0;
  for (int64_t k = 0; k < k_size; ++k) {
    LSTM_CHECK(std::isfinite(row[k]), source.name, " must be finite to be quantized, got ", row[k]);
    largest = std::max(largest, std::fabs(row[k]));
  }
  return largest;
}

// Packs a row of int8: values, scale, offset.
void pack_int8_row(const MatrixSource& source, const float* row, int64_t index, int64_t k_size,
                   uint8_t* chunk, int64_t lane, float* scale, int32_t* offset) {
  const float largest = largest_of(source, row, k_size);
  *scale = source.scales ? source.scales[index] : largest / kMaxInt8;
  int32_t sum = 0;
  if (largest < kLeastScaled) {
    *scale = 0;
  } else {
    const float tolerance = largest * kScaledTolerance;
    // NOTE: what is no int8, or -128, comes from given scales alone.
    for (int64_t k = 0; k < k_size; ++k) {
      const float value = std::nearbyint(row[k] / *scale);
      LSTM_CHECK(value >= -kMaxInt8 - 1 && value <= kMaxInt8 &&
                     (!source.scales || std::fabs(row[k] - value * *scale) <= tolerance),
                 source.name, " must be integers from -128 to 127 times scales, got ", row[k],
                 " with scale ", *scale);
      const auto integer = static_cast<int8_t>(value);
      const int64_t at = element_index(WeightType::kInt8, lane, k % 4);
      chunk[k / 4 * kGroupBytes + at] = static_cast<uint8_t>(integer);
      sum += integer;
    }
  }
  *offset = -128 * sum;
}

void pack_16_bit_row(WeightType type, const MatrixSource& source, const float* row, int64_t k_size,
                     uint8_t* chunk, int64_t lane) {
  const float largest = largest_of(source, row, k_size);
  const bool is_half = type == WeightType::kFloat16;
  const bool fits = is_half ? to_float16(largest) < 0x7C00u : to_bfloat16(largest) < 0x7F80u;
  LSTM_CHECK(fits, source.name, " must fit ", weight_type_name(type), ", got ", largest);
  for (int64_t k = 0; k < k_size; ++k) {
    const uint16_t value = is_half ? to_float16(row[k]) : to_bfloat16(row[k]);
    const int64_t at = element_index(type, lane, k % 2);
    std::memcpy(chunk + k / 2 * kGroupBytes + at * 2, &value, sizeof(value));
  }
}

void pack_matrix(WeightType type, const MatrixSource& source, const MatrixPlace& place,
                 void* block) {
  uint8_t* values = static_cast<uint8_t*>(advance(block, place.values, 1));
  float* scales = static_cast<float*>(advance(block, place.scales, 1));
  int32_t* offsets = static_cast<int32_t*>(advance(block, place.offsets, 1));
  for (int64_t column = 0; column < place.panels * kPanelColumns; ++column) {
    const int64_t panel = column / kPanelColumns, slot = column / kUnits % kPanelSlots;
    const int64_t lane = column % kUnits;
    const int64_t index = source_row(source.gate_order, place.columns, panel, slot, lane);
    if (index < 0) continue;
    const float* row = source.weights + index * place.k_size;
    uint8_t* chunk = values + panel * place.groups * kGroupBytes + slot * kChunkBytes;
    if (type == WeightType::kInt8) {
      pack_int8_row(source, row, index, place.k_size, chunk, lane, scales + column,
                    offsets + column);
    } else {
      pack_16_bit_row(type, source, row, place.k_size, chunk, lane);
    }
  }
}

PackedMatrix view_of(WeightType type, const MatrixPlace& place, const void* block) {
  PackedMatrix matrix = {place.columns, place.k_size, place.panels, place.groups};
  matrix.values = static_cast<const uint8_t*>(advance(block, place.values, 1));
  if (type == WeightType::kInt8) {
    matrix.scales = static_cast<const float*>(advance(block, place.scales, 1));
    matrix.offsets = static_cast<const int32_t*>(advance(block, place.offsets, 1));
  }
  return matrix;
}

float element_value(WeightType type, const uint8_t* chunk, int64_t lane, int64_t k) {
  const int64_t index = element_index(type, lane, k);
  if (type == WeightType::kInt8) return static_cast<int8_t>(chunk[index]);
  const auto bits = bits_as<uint16_t>(chunk + index * 2);
  return type == WeightType::kFloat16 ? from_float16(bits) : float_of(uint32_t{bits} << 16);
}

void unpack_matrix(WeightType type, const PackedMatrix& matrix, bool gate_order, float* out) {
  const int64_t group = group_size(type);
  for (int64_t column = 0; column < matrix.panels * kPanelColumns; ++column) {
    const int64_t panel = column / kPanelColumns, slot = column / kUnits % kPanelSlots;
    const int64_t lane = column % kUnits;
    const int64_t index = source_row(gate_order, matrix.columns, panel, slot, lane);
    if (index < 0) continue;
    const uint8_t* chunk = matrix.values + panel * matrix.groups * kGroupBytes + slot * kChunkBytes;
    const float scale = matrix.scales ? matrix.scales[column] : 1.0f;
    for (int64_t k = 0; k < matrix.k_size; ++k) {
      out[index * matrix.k_size + k] =
          scale * element_value(type, chunk + k / group * kGroupBytes, lane, k % group);
    }
  }
}

}  // namespace

int64_t group_size(WeightType type) { return type == WeightType::kInt8 ? 4 : 2; }

const char* weight_type_name(WeightType type) {
  switch (type) {
    case WeightType::kInt8:
      return "int8";
    case WeightType::kBFloat16:
      return "bfloat16";
    default:
      return "float16";
  }
}

WeightType parse_weight_type(const std::string& name) {
  for (WeightType type : {WeightType::kInt8, WeightType::kBFloat16, WeightType::kFloat16}) {
    if (name == weight_type_name(type)) return type;
  }
  fail("weights must be int8, bfloat16 or float16, got ", name);
}

int64_t packed_bytes(const PackSource& source) { return places_of(header_of(source)).bytes; }

void pack_layer(const PackSource& source, void* block) {
  const PackedHeader header = header_of(source);
  const Places places = places_of(header);
  const auto weight = [](const void* from) { return static_cast<const float*>(from); };
  std::memset(block, 0, places.bytes);
  std::memcpy(block, &header, sizeof(header));
  const LstmWeights& from = source.weights;
  pack_matrix(source.type, {"w_ih", weight(from.w_ih), source.w_ih_scales, true}, places.w_ih,
              block);
  pack_matrix(source.type, {"w_hh", weight(from.w_hh), source.w_hh_scales, true}, places.w_hh,
              block);
  if (from.w_hr) {
    pack_matrix(source.type, {"w_hr", weight(from.w_hr), source.w_hr_scales, false}, places.w_hr,
                block);
  }
  if (!from.b_ih) return;
  float* bias = static_cast<float*>(advance(block, places.bias, 1));
  for (int64_t column = 0; column < places.w_ih.panels * kPanelColumns; ++column) {
    const int64_t row = source_row(true, kGates * source.hidden_size, column / kPanelColumns,
                                   column / kUnits % kPanelSlots, column % kUnits);
    if (row < 0) continue;
    const float b_ih = weight(from.b_ih)[row], b_hh = weight(from.b_hh)[row];
    LSTM_CHECK(std::isfinite(b_ih), "b_ih must be finite to be quantized, got ", b_ih);
    LSTM_CHECK(std::isfinite(b_hh), "b_hh must be finite to be quantized, got ", b_hh);
    bias[column] = b_ih + b_hh;
  }
}

PackedLayer read_layer(const void* block, int64_t bytes) {
  LSTM_CHECK(bytes >= static_cast<int64_t>(sizeof(PackedHeader)),
             "packed weights must begin with a header of ", sizeof(PackedHeader), " bytes, got ",
             bytes, " bytes");
  const auto header = bits_as<PackedHeader>(block);
  LSTM_CHECK(std::memcmp(header.magic, kMagic, sizeof(kMagic)) == 0,
             "packed weights must be made by lstm_fused.quantize, got something else");
  LSTM_CHECK(header.version == kFormatVersion, "packed weights must have format version ",
             kFormatVersion, ", got ", header.version,
             ": this version of lstm_fused does not read them; quantize the model anew");
  const auto type = static_cast<uint32_t>(header.type);
  LSTM_CHECK(type >= 1 && type <= 3 && header.projection <= 1 && header.has_bias <= 1,
             "packed weights have a header that is damaged");
  check_sizes(header);
  LSTM_CHECK(header.projection || header.output_size == header.hidden_size,
             "packed weights have a header that is damaged");
  const Places places = places_of(header);
  LSTM_CHECK(bytes == places.bytes, "packed weights of this header must have ", places.bytes,
             " bytes, got ", bytes);

  PackedLayer layer;
  layer.type = header.type;
  layer.input_size = header.input_size;
  layer.hidden_size = header.hidden_size;
  layer.output_size = header.output_size;
  layer.projection = header.projection != 0;
  layer.has_bias = header.has_bias != 0;
  layer.w_ih = view_of(layer.type, places.w_ih, block);
  layer.w_hh = view_of(layer.type, places.w_hh, block);
  if (layer.projection) layer.w_hr = view_of(layer.type, places.w_hr, block);
  layer.bias = static_cast<const float*>(advance(block, places.bias, 1));
  return layer;
}

void unpack_layer(const PackedLayer& layer, const UnpackedWeights& out) {
  unpack_matrix(layer.type, layer.w_ih, true, out.w_ih);
  unpack_matrix(layer.type, layer.w_hh, true, out.w_hh);
  if (layer.projection) unpack_matrix(layer.type, layer.w_hr, false, out.w_hr);
  if (!layer.has_bias) return;
  const int64_t rows = kGates * layer.hidden_size;
  for (int64_t column = 0; column < layer.w_ih.panels * kPanelColumns; ++column) {
    const int64_t row = source_row(true, rows, column / kPanelColumns,
                                   column / kUnits % kPanelSlots, column % kUnits);
    if (row >= 0) out.b_ih[row] = layer.bias[column];
  }
  std::memset(out.b_hh, 0, rows * sizeof(float));
}

}  // namespace lstm_fused::cpu::quantized
