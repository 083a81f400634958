// SPDX-License-Identifier: BSD-3-Clause
#include "clocks.h"

#include <algorithm>

namespace cuda_on_cpu {

namespace {

bool comes_before(const std::pair<uint32_t, SharedEpochs>& entry, uint32_t block) {
  return entry.first < block;
}

// One of the two where it says all that the other says.
SharedEpochs join_epochs(const SharedEpochs& a, const SharedEpochs& b) {
  if (a == b) return a;
  bool a_is_all = true, b_is_all = true;
  for (size_t i = 0; i < a->size(); ++i) {
    a_is_all &= (*a)[i] >= (*b)[i];
    b_is_all &= (*b)[i] >= (*a)[i];
  }
  if (a_is_all) return a;
  if (b_is_all) return b;
  auto both = std::make_shared<BlockEpochs>(*a);
  for (size_t i = 0; i < both->size(); ++i) (*both)[i] = std::max((*both)[i], (*b)[i]);
  return both;
}

}  // namespace

const BlockEpochs* find_block(const View& view, uint32_t block) {
  if (!view) return nullptr;
  const auto found = std::lower_bound(view->begin(), view->end(), block, comes_before);
  return found != view->end() && found->first == block ? found->second.get() : nullptr;
}

View join(const View& a, const View& b) {
  if (a == b || !b) return a;
  if (!a) return b;
  auto both = std::make_shared<Known>();
  auto x = a->begin(), y = b->begin();
  bool is_a = true, is_b = true;
  while (x != a->end() || y != b->end()) {
    if (y == b->end() || (x != a->end() && x->first < y->first)) {
      both->push_back(*x++);
      is_b = false;
    } else if (x == a->end() || y->first < x->first) {
      both->push_back(*y++);
      is_a = false;
    } else {
      both->emplace_back(x->first, join_epochs(x->second, y->second));
      is_a &= both->back().second == x->second;
      is_b &= both->back().second == y->second;
      ++x;
      ++y;
    }
  }
  return is_a ? a : is_b ? b : both;
}

View with_block(const View& view, uint32_t block, SharedEpochs epochs) {
  auto changed = view ? std::make_shared<Known>(*view) : std::make_shared<Known>();
  const auto place = std::lower_bound(changed->begin(), changed->end(), block, comes_before);
  if (place != changed->end() && place->first == block) {
    place->second = std::move(epochs);
  } else {
    changed->emplace(place, block, std::move(epochs));
  }
  return changed;
}

void Gathering::add(const Clock& clock, uint32_t index) {
  // Most that arrive know the same: the last one or two views say it all.
  for (size_t i = views.size(); i-- > 0 && views.size() - i < 4;) {
    if (views[i] == clock.view) {
      epochs.emplace_back(index, clock.epoch);
      return;
    }
  }
  views.push_back(clock.view);
  epochs.emplace_back(index, clock.epoch);
}

View Gathering::result(uint32_t block, size_t threads) const {
  View all;
  for (const View& view : views) all = join(all, view);
  const BlockEpochs* known = find_block(all, block);
  auto own = known ? std::make_shared<BlockEpochs>(*known) : std::make_shared<BlockEpochs>(threads);
  for (const auto& [index, epoch] : epochs) (*own)[index] = std::max((*own)[index], epoch);
  return with_block(all, block, std::move(own));
}

void Gathering::clear() {
  views.clear();
  epochs.clear();
}

}  // namespace cuda_on_cpu
