// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/scratch.h"

namespace lstm_fused::cpu {

void Packer::add(const Item& item, int64_t panels) {
  item.out->panels = panels;
  const int64_t rows = round_up(item.k_size, table_.k_multiple);
  item.out->data = Buffer(panels * rows * kPanelSlots * table_.vector_width * table_.operand_size);
  items_.push_back(item);
}

void Packer::run(const Parallel& parallel) const {
  for (const Item& item : items_) {
    const int64_t shares = std::min<int64_t>(parallel.threads, item.out->panels);
    parallel.for_each(shares, [&](int64_t share) {
      const int64_t begin = item.out->panels * share / shares;
      const int64_t end = item.out->panels * (share + 1) / shares;
      void* out = item.out->data.get();
      if (item.kind == Kind::kDirect) {
        table_.pack_direct(item.source, item.columns, item.k_size, begin, end, out);
      } else {
        table_.pack_transposed(item.source, item.columns, item.k_size, item.kind == Kind::kGates,
                               begin, end, out);
      }
    });
  }
}

}  // namespace lstm_fused::cpu
