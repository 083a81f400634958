// SPDX-License-Identifier: BSD-3-Clause
// Plans of the persistent kernels for the devices of today: which shapes run on one block, which on
// a group, which are refused, and that no plan asks for more than its device has.
#include <string>
#include <vector>

#include "check.h"
#include "common/types.h"
#include "cuda/device_facts.h"
#include "cuda/persistent/plan.h"

namespace lstm_fused::test {
namespace {

using cuda::DeviceFacts;
using cuda::PersistentPlan;

struct Device {
  const char* name;
  DeviceFacts facts;
};

DeviceFacts facts_of(int major, int minor, int sm_count, int64_t shared_kib, int threads) {
  DeviceFacts facts;
  facts.major = major;
  facts.minor = minor;
  facts.sm_count = sm_count;
  facts.shared_per_sm = shared_kib * 1024;
  facts.shared_per_block = (shared_kib - 1) * 1024;  // the system keeps 1 KiB of each block's
  facts.registers_per_sm = 65536;
  facts.max_threads_per_sm = threads;
  return facts;
}

const std::vector<Device>& devices() {
  static const std::vector<Device> all = {
      {"A100", facts_of(8, 0, 108, 164, 2048)},      {"H100", facts_of(9, 0, 132, 228, 2048)},
      {"B200", facts_of(10, 0, 148, 228, 2048)},     {"RTX 4090", facts_of(8, 9, 128, 100, 1536)},
      {"RTX 5090", facts_of(12, 0, 170, 100, 1536)},
  };
  return all;
}

const Device& device(const std::string& name) {
  for (const Device& one : devices()) {
    if (one.name == name) return one;
  }
  fail("no device ", name);
}

LstmShape shape_of(int64_t batch, int64_t hidden, int directions = 1) {
  return {100, batch, 16, hidden, hidden, directions, false};
}

// "block", "group", or why not.
std::string choice(const Device& device, const LstmShape& shape, DType dtype, bool backward,
                   bool allow_tf32 = true, bool has_options = false) {
  PersistentPlan plan;
  std::string why_not;
  const auto can_run =
      backward ? cuda::can_run_persistent_backward : cuda::can_run_persistent_forward;
  const bool can = can_run(shape, dtype, allow_tf32, has_options, device.facts, &plan, &why_not);
  if (!can) return why_not;
  return plan.group ? "group" : "block";
}

// The most rows that run; hidden sizes here never fit one block.
int64_t max_batch(const Device& device, int64_t hidden, DType dtype, bool backward,
                  int directions = 1) {
  int64_t rows = 0;
  while (choice(device, shape_of(rows + 8, hidden, directions), dtype, backward) == "group") {
    rows += 8;
  }
  return rows;
}

void check_bounds(const Device& one, const LstmShape& shape, DType dtype, bool backward, bool tf32,
                  bool options) {
  const int64_t batch = shape.batch, hidden = shape.hidden_size;
  const Scope scope(one.name, " ", dtype_name(dtype), " N=", batch, " H=", hidden,
                    " L=", shape.directions, backward ? " backward" : " forward",
                    options ? " with options" : "");
  PersistentPlan plan;
  std::string why_not;
  const auto can = backward ? cuda::can_run_persistent_backward : cuda::can_run_persistent_forward;
  if (!can(shape, dtype, tf32, options, one.facts, &plan, &why_not)) {
    CHECK(!why_not.empty());
    return;
  }
  CHECK(why_not.empty() && !describe(plan).empty());
  CHECK_EQ(plan.tiles, (batch + 7) / 8);
  CHECK_EQ(plan.threads % cuda::kWarpSize, 0);
  CHECK_EQ(plan.group, hidden > (dtype == DType::kFloat32 ? 96 : 128));
  CHECK_LE(plan.shared_bytes, one.facts.shared_per_block);
  if (!plan.group) {
    // Eight units for each warp, or sixteen where 16-bit weights of H fill all warps.
    const bool full = !options && dtype != DType::kFloat32 && (hidden == 64 || hidden == 128);
    CHECK_EQ(plan.full, full);
    const int lane_units = full && (backward || hidden == 128) ? 2 : 1;
    CHECK_LE(hidden, plan.threads / 4 * lane_units);
    if (full) CHECK_EQ(hidden, plan.threads / 4 * lane_units);
    CHECK_EQ(plan.workspace_bytes, 0);
    CHECK_EQ(plan.shared_bytes > 0, options && backward);
    return;
  }
  // All blocks are resident together, one on each SM, and hold all units and rows.
  CHECK_LE(plan.group_blocks * plan.groups * shape.directions, one.facts.sm_count);
  CHECK_LE(hidden, plan.group_blocks * plan.units);
  CHECK_LT((plan.group_blocks - 1) * plan.units, hidden);
  CHECK_LE(plan.tiles, int64_t{plan.groups} * plan.group_tiles);
  // The workspace: a word for each group, the exchange area, a copy of the lengths.
  CHECK_LE(plan.groups * shape.directions * 4, plan.exchange_begin);
  CHECK_LT(plan.exchange_begin, plan.lengths_begin);
  CHECK_EQ(plan.workspace_bytes - plan.lengths_begin, batch * 8);
}

void test_bounds() {
  for (const Device& one : devices()) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      for (const bool backward : {false, true}) {
        for (const bool tf32 : {false, true}) {
          for (const bool options : {false, true}) {
            for (const int directions : {1, 2}) {
              for (int64_t batch : {0, 1, 8, 13, 64, 200, 1000, 5000}) {
                for (int64_t hidden : {1, 8, 17, 64, 96, 97, 128, 129, 200, 256, 384, 512, 650, 768,
                                       1000, 1024, 1500, 2048, 4096}) {
                  check_bounds(one, shape_of(batch, hidden, directions), dtype, backward, tf32,
                               options);
                }
              }
            }
          }
        }
      }
    }
  }
}

void test_choices() {
  for (const Device& one : devices()) {
    const Scope scope(one.name);
    for (const bool backward : {false, true}) {
      for (const int64_t batch : {1, 64, 4096}) {
        CHECK_EQ(choice(one, shape_of(batch, 128), DType::kBFloat16, backward), "block");
        CHECK_EQ(choice(one, shape_of(batch, 128, 2), DType::kFloat16, backward), "block");
        CHECK_EQ(choice(one, shape_of(batch, 96), DType::kFloat32, backward), "block");
        CHECK_EQ(choice(one, shape_of(batch, 96), DType::kFloat32, backward, false), "block");
      }
      for (const int64_t hidden : {129, 256, 512, 768, 1024}) {
        CHECK_EQ(choice(one, shape_of(16, hidden), DType::kBFloat16, backward), "group");
      }
      CHECK_EQ(choice(one, shape_of(16, 512), DType::kFloat32, backward), "group");
      CHECK_EQ(choice(one, shape_of(16, 256, 2), DType::kFloat32, backward), "group");
      CHECK_NE(choice(one, shape_of(1, 4096), DType::kBFloat16, backward), "group");
      // Options take shared memory, of which W_hh leaves some.
      CHECK_EQ(choice(one, shape_of(64, 128), DType::kFloat16, backward, true, true), "block");
      CHECK_EQ(choice(one, shape_of(16, 256), DType::kFloat16, backward, true, true), "group");
      CHECK_EQ(choice(one, shape_of(16, 256), DType::kFloat32, backward, true, true), "group");
      CHECK_EQ(choice(one, shape_of(16, 256), DType::kFloat32, backward, false, true),
               "float32 products leave groups of blocks no registers for options of the cell");
    }
  }
  // The largest: 32 MB of weights on 132 SMs with registers and shared memory, not on 108.
  CHECK_EQ(choice(device("H100"), shape_of(8, 2048), DType::kBFloat16, false), "group");
  CHECK_NE(choice(device("A100"), shape_of(8, 2048), DType::kBFloat16, false), "group");
  CHECK_NE(choice(device("RTX 4090"), shape_of(8, 2048), DType::kBFloat16, false), "group");
  // More rows for smaller weights and for larger chips.
  for (const bool backward : {false, true}) {
    const int64_t rows_1024 = max_batch(device("H100"), 1024, DType::kBFloat16, backward);
    const int64_t rows_256 = max_batch(device("H100"), 256, DType::kBFloat16, backward);
    CHECK_LE(64, rows_1024);
    CHECK_LE(2 * rows_1024, rows_256);
    CHECK_LE(max_batch(device("A100"), 512, DType::kBFloat16, backward),
             max_batch(device("B200"), 512, DType::kBFloat16, backward));
    CHECK_LE(2 * max_batch(device("H100"), 512, DType::kBFloat16, backward, 2),
             max_batch(device("H100"), 512, DType::kBFloat16, backward) + 16);
  }
}

void test_refusals() {
  const Device& h100 = device("H100");
  LstmShape projected = shape_of(8, 64);
  projected.output_size = 32;
  projected.projection = true;
  for (const bool backward : {false, true}) {
    CHECK_EQ(choice(h100, projected, DType::kFloat32, backward),
             "persistent kernels have no projection");
    CHECK_EQ(choice(h100, shape_of(8, 64), DType::kFloat64, backward),
             "persistent kernels have no float64");
    CHECK_EQ(
        choice({"V100", facts_of(7, 0, 80, 96, 2048)}, shape_of(8, 64), DType::kFloat16, backward),
        "persistent kernels need compute capability 8.0, got 7.0");
    CHECK_EQ(choice(h100, shape_of(8, 5000), DType::kBFloat16, backward),
             "W_hh of H = 5000, for N = 8 in 1 direction(s), does not fit 132 SMs all at once");
  }
}

}  // namespace
}  // namespace lstm_fused::test

int main() {
  lstm_fused::test::test_bounds();
  lstm_fused::test::test_choices();
  lstm_fused::test::test_refusals();
  return lstm_fused::test::exit_status();
}
