// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/persistent/plan.h"

#include <algorithm>
#include <limits>
#include <sstream>

#include "common/error.h"
#include "common/integers.h"
#include "cuda/options/persistent/layout.h"
#include "cuda/persistent/group_plan.h"

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

bool begin_plan(const LstmShape& shape, DType dtype, bool allow_tf32, const DeviceFacts& facts,
                PersistentPlan* plan, std::string* why_not) {
  check_shape(shape);
  check_facts(facts);
  *why_not = refusal_of(shape, dtype, facts);
  *plan = PersistentPlan{};
  plan->product = product_for(dtype, allow_tf32);
  plan->tiles = ceil_div(shape.batch, kTileRows);
  return why_not->empty();
}

std::string too_large(const LstmShape& shape, const DeviceFacts& facts) {
  std::ostringstream text;
  text << "W_hh of H = " << shape.hidden_size << ", for N = " << shape.batch << " in "
       << shape.directions << " direction(s), does not fit " << facts.sm_count
       << " SMs all at once";
  return text.str();
}

const char* product_name(ProductKind kind) {
  switch (kind) {
    case ProductKind::kBFloat16:
      return "bfloat16";
    case ProductKind::kFloat16:
      return "float16";
    case ProductKind::kTf32:
      return "tf32";
    default:
      return "float32";
  }
}

// Cycles of a step of one block by FFMA, fitted to the model of the machine code
// (tools/cuda_report): what a warp does with a chunk of weights takes the SM's issue slots and its
// shared memory for so long; in the forward of compute capability 8.0, which has half as many units
// for FFMA, these.
int64_t ffma_cta_cycles(const PersistentPlan& plan, bool backward, const DeviceFacts& facts) {
  const int64_t work = int64_t{plan.threads / kWarpSize} * plan.chunks;
  if (backward) return 765 + 78 * work;
  const bool half_rate = facts.major == 8 && facts.minor == 0;
  return std::max<int64_t>(1230 + 37 * work, half_rate ? 90 * work : 0);
}

// Plans one block for all of W_hh. Forward and backward hold the same number of weights in a lane;
// in the backward warps work in pairs.
bool plan_cta(const LstmShape& shape, bool backward, bool has_options, const DeviceFacts& facts,
              PersistentPlan* plan) {
  const int bytes = operand_bytes(plan->product);
  plan->chunks = cta_chunks(shape.hidden_size, bytes);
  if (plan->chunks == 0) return false;
  plan->full = !has_options && has_full_warps(plan->chunks, bytes, shape.hidden_size);
  plan->threads = plan->full ? full_threads(plan->chunks, bytes, backward)
                             : cta_threads(shape.hidden_size, backward);
  if (plan->product == ProductKind::kFloat32) {
    plan->step_cycles = ffma_cta_cycles(*plan, backward, facts);
  }
  return true;
}

// Why a cell with options takes no group of blocks; empty: it may.
std::string option_group_refusal(const PersistentPlan& plan, bool has_options) {
  if (!has_options || plan.product != ProductKind::kFloat32) return "";
  return "float32 products leave groups of blocks no registers for options of the cell";
}

// Cycles of a step in a group: good enough to compare plans. Fitted to the model of the machine
// code on an H100 (tools/cuda_report). `base`: the cells, and what is exchanged there and back. A
// block moves 64 bytes a cycle. `vectors`: pairs of 16-byte vectors of weights of each lane, of
// which a pair is two mma.sync of 8 cycles, or 64 FFMA and the loads that feed them
// (`ffma_cycles`), in each of two warps of a scheduler; the `shared_vectors` of them that lie in
// shared memory are read at 128 bytes a cycle besides. A further tile costs its cells, and a round
// trip through L2 for what lanes have not in flight.
int64_t step_cycles(const PersistentPlan& plan, int64_t base, int64_t bytes, int64_t vectors,
                    int64_t shared_vectors, int64_t ffma_cycles) {
  constexpr int64_t kFurtherTile = 800;
  const int64_t pair = plan.product == ProductKind::kFloat32 ? ffma_cycles : 32;
  return base + kFurtherTile * (plan.group_tiles - 1) + bytes / 64 +
         plan.group_tiles * (vectors * pair + shared_vectors * 64);
}
constexpr int64_t kForwardBase = 1350, kBackwardBase = 1950;
// Without options, where a group has one tile: those kernels compute ahead what needs no sums. By
// tensor cores, and by FFMA.
constexpr int64_t kBackwardSingleBase = 900, kBackwardSingleFfmaBase = 1150;

// Partitions the units over a group's blocks and the tiles over groups; false if not all blocks
// would be resident together. Every block takes an SM for itself, since its threads take all
// registers, so that as many blocks are resident as there are SMs.
bool partition(const LstmShape& shape, const DeviceFacts& facts, int units, PersistentPlan* plan) {
  plan->group = true;
  plan->threads = kGroupThreads;
  plan->units = units;
  plan->max_shared_bytes = facts.shared_per_block;
  const int64_t blocks = ceil_div(shape.hidden_size, units);
  const int64_t max_groups = facts.sm_count / (blocks * shape.directions);
  if (facts.registers_per_sm < kGroupThreads * (kGroupRegisters + 1) || max_groups == 0) {
    return false;
  }
  // As few tiles as possible for every group.
  const int64_t tiles = std::max<int64_t>(plan->tiles, 1);
  const int64_t group_tiles = ceil_div(tiles, max_groups);
  const int k_splits = kGroupWarps * kWarpUnits / units;
  if (group_tiles * kLaneRows > kGroupCells * k_splits) return false;
  plan->group_blocks = static_cast<int>(blocks);
  plan->group_tiles = static_cast<int>(group_tiles);
  plan->groups = static_cast<int>(ceil_div(tiles, group_tiles));
  return true;
}

// Lays out the workspace; each group has `exchange_bytes`.
void set_workspace(const LstmShape& shape, int64_t exchange_bytes, PersistentPlan* plan) {
  constexpr int64_t kAlignment = 256;
  const int64_t groups = int64_t{plan->groups} * shape.directions;
  plan->exchange_begin = round_up(groups * int64_t{sizeof(uint32_t)}, kAlignment);
  plan->lengths_begin = plan->exchange_begin + round_up(groups * exchange_bytes, kAlignment);
  plan->workspace_bytes = plan->lengths_begin + shape.batch * int64_t{sizeof(int64_t)};
}

bool plan_group_forward(const LstmShape& shape, bool has_options, const DeviceFacts& facts,
                        PersistentPlan* best) {
  const int64_t bytes = operand_bytes(best->product);
  const int64_t chunks = ceil_div(shape.hidden_size * bytes, kChunkBytes);
  const PersistentPlan common = *best;
  for (int k_splits = 1; k_splits <= kGroupWarps; k_splits *= 2) {
    PersistentPlan plan = common;
    if (!partition(shape, facts, kGroupWarps * kWarpUnits / k_splits, &plan)) continue;
    // NOTE: of a cell with options there is no product by FFMA.
    const bool is_ffma = plan.product == ProductKind::kFloat32;
    plan.warp_chunks = group_warp_chunks(static_cast<int>(chunks), k_splits, is_ffma);
    const int row_chunks = k_splits * plan.warp_chunks;
    const int64_t shared_chunks = std::max(0, plan.warp_chunks - kGroupChunks);
    const int64_t group_rows = int64_t{plan.group_tiles} * kTileRows;
    const int64_t columns = plan.group_tiles * kLaneRows;
    plan.shared_bytes =
        kLaneBytes + group_rows * int64_t{sizeof(int)} +
        kTileRows * int64_t{group_tile_stride(plan.group_tiles * row_chunks, is_ffma)} +
        (columns + ceil_div(columns, k_splits)) * kGroupThreads * kLaneBytes +
        plan.units * kLaneBytes + shared_chunks * kGates * kGroupThreads * kLaneBytes +
        (has_options ? group_option_forward_bytes(plan.units) : 0);
    if (plan.shared_bytes > facts.shared_per_block) continue;
    const int word_bytes = has_options ? option_word_bytes(static_cast<int>(bytes)) : 1;
    if (plan.group_tiles * row_chunks * 4 * word_bytes > kMaxLanePieces * kWarpSize) continue;
    const int64_t h_bytes = group_rows * row_chunks * kChunkBytes * word_bytes;
    set_workspace(shape, 2 * h_bytes, &plan);
    // NOTE: of more than two chunks lanes add up more parts.
    const int64_t ffma_cycles = plan.warp_chunks <= 2 ? 115 : 205;
    plan.step_cycles = step_cycles(plan, kForwardBase, h_bytes, 2 * plan.warp_chunks,
                                   2 * shared_chunks, ffma_cycles);
    if (best->group && plan.step_cycles >= best->step_cycles) continue;
    *best = plan;
  }
  return best->group;
}

bool plan_group_backward(const LstmShape& shape, bool has_options, const DeviceFacts& facts,
                         PersistentPlan* best) {
  const int bytes = operand_bytes(best->product);
  const int64_t output_tiles = ceil_div(shape.hidden_size, 2 * kWarpUnits);
  const PersistentPlan common = *best;
  for (const int units : kGroupUnits) {
    PersistentPlan plan = common;
    if (!partition(shape, facts, units, &plan)) continue;
    const int chunks = group_backward_chunks(units, bytes);
    plan.warp_output_tiles = static_cast<int>(ceil_div(output_tiles, kGroupWarps));
    const int64_t vectors = int64_t{plan.warp_output_tiles} * chunks;
    const int64_t shared_vectors = std::max<int64_t>(0, vectors - group_backward_vectors(chunks));
    plan.shared_bytes = kLaneBytes + kGroupThreads * kLaneBytes +
                        plan.group_tiles * tile_bytes(chunks) +
                        shared_vectors * 2 * kGroupThreads * kLaneBytes +
                        (has_options ? group_option_backward_bytes(units) : 0);
    if (plan.shared_bytes > facts.shared_per_block) continue;
    const int64_t part_bytes = int64_t{plan.group_blocks} * units * plan.group_tiles * kTileRows *
                               static_cast<int64_t>(sizeof(float));  // one block's
    set_workspace(shape, 2 * plan.group_blocks * part_bytes, &plan);
    const bool is_single = plan.group_tiles == 1 && !has_options;
    const int64_t single_base =
        plan.product == ProductKind::kFloat32 ? kBackwardSingleFfmaBase : kBackwardSingleBase;
    plan.step_cycles = step_cycles(plan, is_single ? single_base : kBackwardBase, 2 * part_bytes,
                                   vectors, shared_vectors, 320);
    if (best->group && plan.step_cycles >= best->step_cycles) continue;
    *best = plan;
  }
  return best->group;
}

}  // namespace

bool can_run_groups(const LstmShape& shape, DType dtype, bool allow_tf32, bool has_options,
                    bool backward, const DeviceFacts& facts, PersistentPlan* plan,
                    std::string* why_not) {
  if (!begin_plan(shape, dtype, allow_tf32, facts, plan, why_not)) return false;
  *why_not = option_group_refusal(*plan, has_options);
  if (!why_not->empty()) return false;
  const auto plan_group = backward ? plan_group_backward : plan_group_forward;
  if (plan_group(shape, has_options, facts, plan)) return true;
  *why_not = too_large(shape, facts);
  return false;
}

bool can_run_persistent_forward(const LstmShape& shape, DType dtype, bool allow_tf32,
                                bool has_options, const DeviceFacts& facts, PersistentPlan* plan,
                                std::string* why_not) {
  if (!begin_plan(shape, dtype, allow_tf32, facts, plan, why_not)) return false;
  if (plan_cta(shape, false, has_options, facts, plan)) return true;
  return can_run_groups(shape, dtype, allow_tf32, has_options, false, facts, plan, why_not);
}

bool can_run_persistent_backward(const LstmShape& shape, DType dtype, bool allow_tf32,
                                 bool has_options, const DeviceFacts& facts, PersistentPlan* plan,
                                 std::string* why_not) {
  if (!begin_plan(shape, dtype, allow_tf32, facts, plan, why_not)) return false;
  if (plan_cta(shape, true, has_options, facts, plan)) {
    if (!has_options) return true;
    plan->shared_bytes = cta_option_backward_bytes(plan->chunks, operand_bytes(plan->product));
    if (plan->shared_bytes <= facts.shared_per_block) return true;
    *why_not = "a block lacks shared memory for W_hh and options of the cell";
    return false;
  }
  return can_run_groups(shape, dtype, allow_tf32, has_options, true, facts, plan, why_not);
}

std::string describe(const PersistentPlan& plan) {
  std::ostringstream text;
  text << "persistent, " << product_name(plan.product) << ", ";
  if (!plan.group) {
    text << "a block of " << plan.threads << " threads";
    if (plan.shared_bytes > 0) text << " and " << plan.shared_bytes << " bytes of shared memory";
    text << " for each of " << plan.tiles << " tile(s) of " << kTileRows << " rows";
    return text.str();
  }
  text << plan.groups << " group(s) x " << plan.group_blocks << " blocks of " << plan.threads
       << " threads and " << plan.shared_bytes << " bytes of shared memory, " << plan.group_tiles
       << " tile(s) of " << kTileRows << " rows each, " << plan.units << " units a block";
  return text.str();
}

}  // namespace lstm_fused::cuda
