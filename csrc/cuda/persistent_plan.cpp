// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/persistent_plan.h"

#include <limits>
#include <sstream>

#include "common/error.h"
#include "common/integers.h"

namespace lstm_fused::cuda {
namespace {

// Steps and rows are `int` in the kernels, and so are their sums with a tile's rows.
constexpr int64_t kMaxCount = std::numeric_limits<int>::max() - 64;

ProductKind product_for(DType dtype, bool allow_tf32) {
  switch (dtype) {
    case DType::kBFloat16:
      return ProductKind::kBFloat16;
    case DType::kFloat16:
      return ProductKind::kFloat16;
    default:
      return allow_tf32 ? ProductKind::kTf32 : ProductKind::kFloat32;
  }
}

// Fewest chunks of those compiled that hold a row of W_hh; 0: none does.
int cta_chunks(int64_t hidden, int bytes) {
  for (const int chunks : bytes == 2 ? kCtaChunks16 : kCtaChunks32) {
    if (hidden <= chunk_units(chunks, bytes)) return chunks;
  }
  return 0;
}

// Why no persistent kernel takes such a call; empty: some may.
std::string refusal_of(const LstmShape& shape, DType dtype, const DeviceFacts& facts) {
  std::ostringstream text;
  if (shape.projection) {
    text << "persistent kernels have no projection";
  } else if (dtype == DType::kFloat64) {
    text << "persistent kernels have no float64";
  } else if (facts.major < 8) {
    text << "persistent kernels need compute capability 8.0, got " << facts.major << "."
         << facts.minor;
  } else if (shape.steps > kMaxCount || shape.batch > kMaxCount) {
    text << "persistent kernels count steps and rows in 32 bits, got T = " << shape.steps
         << ", N = " << shape.batch;
  }
  return text.str();
}

// One block for all of W_hh. Forward and backward hold the same number of weights in a lane; in the
// backward warps work in pairs.
bool plan_cta(const LstmShape& shape, DType dtype, bool allow_tf32, int warps_together,
              const DeviceFacts& facts, PersistentPlan* plan, std::string* why_not) {
  check_shape(shape);
  *why_not = refusal_of(shape, dtype, facts);
  if (!why_not->empty()) return false;
  *plan = PersistentPlan{};
  plan->product = product_for(dtype, allow_tf32);
  plan->tiles = ceil_div(shape.batch, kTileRows);
  plan->chunks = cta_chunks(shape.hidden_size, operand_bytes(plan->product));
  if (plan->chunks == 0) {
    *why_not = "H is too large";
    return false;
  }
  const int64_t units = round_up(shape.hidden_size, warps_together * kWarpUnits);
  plan->threads = static_cast<int>(units / kWarpUnits) * kWarpSize;
  return true;
}

}  // namespace

bool can_run_persistent_forward(const LstmShape& shape, DType dtype, bool allow_tf32,
                                const DeviceFacts& facts, PersistentPlan* plan,
                                std::string* why_not) {
  return plan_cta(shape, dtype, allow_tf32, 1, facts, plan, why_not);
}

bool can_run_persistent_backward(const LstmShape& shape, DType dtype, bool allow_tf32,
                                 const DeviceFacts& facts, PersistentPlan* plan,
                                 std::string* why_not) {
  return plan_cta(shape, dtype, allow_tf32, 2, facts, plan, why_not);
}

}  // namespace lstm_fused::cuda
