// SPDX-License-Identifier: BSD-3-Clause
// Weights of low precision for inference: one direction of one layer in one block of memory.
//
// The block is the same on all machines (little-endian) and for all instruction sets, and holds no
// pointers: it may be saved, mapped and copied as bytes. It is, each part at a multiple of 64 bytes
// from the start:
//
//   PackedHeader
//   w_ih   matrix (4H, D), columns in gate order
//   w_hh   matrix (4H, P), columns in gate order
//   w_hr   matrix (P, H), columns in plain order     with projection
//   bias   float32 (panels, 64) b_ih + b_hh, gate order; zero without bias
//
// A matrix (columns, K) is cut into panels of 64 columns, and K into groups of G, which is 4 for
// int8 and 2 for 16-bit weights. Columns and k past the end are zero.
//
//   values   (panels, ceil(K / G), 4 slots) chunks of 64 bytes: 16 columns, G of K
//              int8, bfloat16   [16 columns][G]
//              float16          [G][16 columns]
//   scales   int8 only: float32 (panels, 64); a weight is scale · value
//   offsets  int8 only: int32 (panels, 64), -128 · the sum of a column's values
//
// Orders of the columns, kUnits = 16:
//   gate order    panel p, slot q, lane l = gate q of unit p·kUnits + l
//   plain order   panel p, slot q, lane l = column (4p + q)·kUnits + l
#pragma once

#include <cstdint>
#include <string>

#include "common/lstm.h"
#include "cpu/kernels/kernels.h"

namespace lstm_fused::cpu::quantized {

enum class WeightType : uint32_t { kInt8 = 1, kBFloat16 = 2, kFloat16 = 3 };

// What state_dicts and files are told apart by. A change of the layout needs another number.
constexpr uint32_t kFormatVersion = 1;
constexpr char kMagic[8] = {'L', 'S', 'T', 'M', 'P', 'A', 'C', 'K'};

constexpr int64_t kUnits = 16;                              // columns of a chunk
constexpr int64_t kPanelColumns = kPanelSlots * kUnits;     // 64
constexpr int64_t kChunkBytes = 64;                         // a cache line, an AVX-512 register
constexpr int64_t kGroupBytes = kPanelSlots * kChunkBytes;  // of a panel

// The sums of K products of a byte 0 … 255 and a weight -128 … 127 must fit int32.
constexpr int64_t kMaxInt8K = 1 << 16;
static_assert(255 * 128 * kMaxInt8K <= INT32_MAX, "sums of bytes must not overflow");

struct PackedHeader {
  char magic[8];
  uint32_t version;
  WeightType type;
  int64_t input_size, hidden_size, output_size;  // D, H, P
  uint32_t projection;                           // 0 or 1; without it P = H
  uint32_t has_bias;                             // 0 or 1
  uint64_t reserved[2];                          // 0
};
static_assert(sizeof(PackedHeader) == 64, "the header is the block's first 64 bytes");

// A matrix within a block. int8 has scales and offsets, the other types have none.
struct PackedMatrix {
  int64_t columns = 0, k_size = 0;
  int64_t panels = 0, groups = 0;
  const uint8_t* values = nullptr;
  const float* scales = nullptr;
  const int32_t* offsets = nullptr;
};

// A block, read.
struct PackedLayer {
  WeightType type = WeightType::kInt8;
  int64_t input_size = 0, hidden_size = 0, output_size = 0;
  bool projection = false, has_bias = false;
  PackedMatrix w_ih, w_hh, w_hr;
  const float* bias = nullptr;
};

// Where one direction's weights are unpacked to, float32, in nn.LSTM's own layout.
struct UnpackedWeights {
  float* w_ih = nullptr;  // (4H, D)
  float* w_hh = nullptr;  // (4H, P)
  float* b_ih = nullptr;  // (4H) or null
  float* b_hh = nullptr;  // (4H) or null
  float* w_hr = nullptr;  // (P, H) or null
};

// What a block is made of. Scales, one for each row of a weight, are for weights that are products
// of them and integers already; null: the largest weight of a row is 127 times its scale.
struct PackSource {
  WeightType type = WeightType::kInt8;
  int64_t input_size = 0, hidden_size = 0, output_size = 0;
  LstmWeights weights;                 // float32
  const float* w_ih_scales = nullptr;  // (4H)
  const float* w_hh_scales = nullptr;  // (4H)
  const float* w_hr_scales = nullptr;  // (P)
};

// G, the number of k in a group.
int64_t group_size(WeightType type);
const char* weight_type_name(WeightType type);
WeightType parse_weight_type(const std::string& name);  // throws Error for another name

// Bytes of a block. Throws Error for sizes that are not positive or too large.
int64_t packed_bytes(const PackSource& source);

// Writes a block of packed_bytes(source). Throws Error, naming the weight, where one is not finite,
// or not so in the type.
void pack_layer(const PackSource& source, void* block);

// Views a block. Throws Error, with the reason, unless it is whole and of kFormatVersion.
PackedLayer read_layer(const void* block, int64_t bytes);

// Writes the weights that the block stands for; b_ih is the sum of both biases, b_hh is zero.
void unpack_layer(const PackedLayer& layer, const UnpackedWeights& out);

}  // namespace lstm_fused::cpu::quantized
