// SPDX-License-Identifier: BSD-3-Clause
// What the lanes of a warp compute together, other than matrices.
#include <cstring>

#include "machine.h"

namespace cuda_on_cpu {

namespace {

template <class T>
T input(const Exchange& exchange, uint32_t lane) {
  T value;
  memcpy(&value, exchange.in[lane], sizeof value);
  return value;
}

template <class F>
void for_each_lane(uint32_t lanes, F f) {
  for (; lanes != 0; lanes &= lanes - 1) f(static_cast<uint32_t>(__builtin_ctz(lanes)));
}

void set_output(Exchange& exchange, uint32_t lanes, uint32_t value) {
  for_each_lane(lanes, [&](uint32_t lane) { memcpy(exchange.out[lane], &value, sizeof value); });
}

uint32_t output(const Exchange& exchange, const ThreadState& th) {
  uint32_t value;
  memcpy(&value, exchange.out[th.lane], sizeof value);
  return value;
}

struct ShuffleInput {
  uint32_t value, is_here;
};

void mark_present(Exchange& exchange, uint32_t lanes, uint32_t) {
  // Lanes that did not take part hold what an earlier collective left.
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const uint32_t is_here = lanes >> lane & 1;
    memcpy(exchange.in[lane] + sizeof(uint32_t), &is_here, sizeof is_here);
  }
}

void compute_ballot(Exchange& exchange, uint32_t lanes, uint32_t) {
  uint32_t votes = 0;
  for_each_lane(lanes, [&](uint32_t lane) { votes |= input<uint32_t>(exchange, lane) << lane; });
  set_output(exchange, lanes, votes);
}

void compute_match_any(Exchange& exchange, uint32_t lanes, uint32_t) {
  for_each_lane(lanes, [&](uint32_t lane) {
    uint32_t same = 0;
    for_each_lane(lanes, [&](uint32_t other) {
      same |= uint32_t(input<uint64_t>(exchange, lane) == input<uint64_t>(exchange, other))
              << other;
    });
    memcpy(exchange.out[lane], &same, sizeof same);
  });
}

uint32_t combine(Reduce op, uint32_t a, uint32_t b) {
  const int32_t sa = static_cast<int32_t>(a), sb = static_cast<int32_t>(b);
  switch (op) {
    case Reduce::kAdd:
      return a + b;
    case Reduce::kMinU:
      return a < b ? a : b;
    case Reduce::kMaxU:
      return a > b ? a : b;
    case Reduce::kMinS:
      return sa < sb ? a : b;
    case Reduce::kMaxS:
      return sa > sb ? a : b;
    case Reduce::kAnd:
      return a & b;
    case Reduce::kOr:
      return a | b;
    default:
      return a ^ b;
  }
}

void compute_reduce(Exchange& exchange, uint32_t lanes, uint32_t argument) {
  const uint32_t first = static_cast<uint32_t>(__builtin_ctz(lanes));
  uint32_t total = input<uint32_t>(exchange, first);
  for_each_lane(lanes & (lanes - 1), [&](uint32_t lane) {
    total = combine(static_cast<Reduce>(argument), total, input<uint32_t>(exchange, lane));
  });
  set_output(exchange, lanes, total);
}

}  // namespace

uint32_t shuffle(ThreadState& th, Shuffle mode, uint32_t value, uint32_t b, uint32_t c,
                 uint32_t mask, bool* in_range, uint32_t site) {
  const Exchange& exchange =
      exchange_lanes(th, mask, "shfl", &value, sizeof value, mark_present, 0, site);
  // As the PTX manual has it: c holds the last lane of a segment, and the mask of segments.
  const uint32_t segment = c >> 8 & 31, clamp = c & 31;
  const uint32_t last = (th.lane & segment) | (clamp & ~segment);
  const uint32_t first = th.lane & segment;
  const uint32_t step = b & 31;
  int64_t source = th.lane;
  switch (mode) {
    case Shuffle::kUp:
      source -= step;
      *in_range = source >= int64_t(last);
      break;
    case Shuffle::kDown:
      source += step;
      *in_range = source <= int64_t(last);
      break;
    case Shuffle::kButterfly:
      source ^= step;
      *in_range = source <= int64_t(last);
      break;
    default:
      source = first | (step & ~segment);
      *in_range = source <= int64_t(last);
  }
  if (!*in_range) return value;
  const auto got = input<ShuffleInput>(exchange, static_cast<uint32_t>(source));
  if (!got.is_here) {
    fail(th, cudaErrorLaunchFailure,
         "shfl from lane " + std::to_string(source) + ", which takes no part", site);
  }
  return got.value;
}

uint32_t ballot(ThreadState& th, bool predicate, uint32_t mask, uint32_t site) {
  const uint32_t vote = predicate;
  return output(exchange_lanes(th, mask, "vote", &vote, sizeof vote, compute_ballot, 0, site), th);
}

uint32_t match_any(ThreadState& th, uint64_t value, uint32_t mask, uint32_t site) {
  return output(exchange_lanes(th, mask, "match", &value, sizeof value, compute_match_any, 0, site),
                th);
}

uint32_t match_all(ThreadState& th, uint64_t value, uint32_t mask, bool* all, uint32_t site) {
  const uint32_t same = match_any(th, value, mask, site);
  *all = same == mask;
  return *all ? mask : 0;
}

uint32_t reduce(ThreadState& th, Reduce op, uint32_t value, uint32_t mask, uint32_t site) {
  const auto argument = static_cast<uint32_t>(op);
  return output(
      exchange_lanes(th, mask, "redux", &value, sizeof value, compute_reduce, argument, site), th);
}

uint32_t elect(ThreadState& th, uint32_t mask, bool* leader, uint32_t site) {
  exchange_lanes(th, mask, "elect", nullptr, 0, nullptr, 0, site);
  const auto lane = static_cast<uint32_t>(__builtin_ctz(mask));
  *leader = lane == th.lane;
  return lane;
}

}  // namespace cuda_on_cpu
