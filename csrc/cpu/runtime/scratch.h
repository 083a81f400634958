// SPDX-License-Identifier: BSD-3-Clause
// Memory that lives as long as a call: aligned buffers, and weights packed into panels.
//
// A thread, of a pool too, keeps the memory of its last large buffers, 32 MiB at most, for its next
// call: fresh memory costs a page fault for every 4 KiB, which takes longer than packing weights
// into it. It is freed when the thread ends, or by release_scratch.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "common/integers.h"
#include "common/pointers.h"
#include "cpu/kernels/kernels.h"
#include "cpu/runtime/team.h"

namespace lstm_fused::cpu {

constexpr int64_t kCacheLine = 64;

// Uninitialised bytes on a cache line boundary.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t bytes);
  void* get() const { return data_.get(); }

 private:
  struct Release {
    int64_t bytes;
    void operator()(void* block) const;
  };
  std::unique_ptr<void, Release> data_;
};

// Frees what all threads keep for their next calls; gives its bytes. May be called while kernels
// run on other threads: what their buffers hold is not kept, and stays.
int64_t release_scratch();

// A matrix in panels (see kernels.h). Empty until the packer that it is added to has run.
struct PanelMatrix {
  Buffer data;
  int64_t panels = 0;
};

// Packs several matrices at once, spread over the threads by panels.
class Packer {
 public:
  explicit Packer(const KernelTable& table) : table_(table) {}

  // Bᵀ = source (4H, K) in gate order: one panel for W units.
  void add_gates(const void* source, int64_t hidden_size, int64_t k_size, PanelMatrix& out) {
    add({source, kPanelSlots * hidden_size, k_size, Kind::kGates, &out},
        ceil_div(hidden_size, table_.vector_width));
  }
  // Bᵀ = source (columns, K).
  void add_transposed(const void* source, int64_t columns, int64_t k_size, PanelMatrix& out) {
    add({source, columns, k_size, Kind::kTransposed, &out}, ceil_div(columns, table_.nr()));
  }
  // B = source (K, columns).
  void add_untransposed(const void* source, int64_t columns, int64_t k_size, PanelMatrix& out) {
    add({source, columns, k_size, Kind::kUntransposed, &out}, ceil_div(columns, table_.nr()));
  }

  void run(const Parallel& parallel) const;

 private:
  enum class Kind { kGates, kTransposed, kUntransposed };
  struct Item {
    const void* source;
    int64_t columns, k_size;
    Kind kind;
    PanelMatrix* out;
    int64_t bytes = 0;
  };

  void add(Item item, int64_t panels);

  const KernelTable& table_;
  std::vector<Item> items_;
};

}  // namespace lstm_fused::cpu
