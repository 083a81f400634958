// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/availability.h"

#include <atomic>
#include <deque>
#include <mutex>

#include "common/error.h"

namespace lstm_fused::cuda {
namespace {

using Refusal = std::atomic<const std::string*>;  // null: none

Refusal& refusal(int device, Variant variant) {
  static Refusal refusals[kMaxDevices][2];
  check_device(device);
  LSTM_CHECK(variant != Variant::kStepwise, "stepwise takes whatever other variants do not");
  return refusals[device][variant == Variant::kPersistentGroup];
}

}  // namespace

void check_device(int device) {
  LSTM_CHECK(device >= 0 && device < kMaxDevices, "the CUDA kernels know devices 0 to ",
             kMaxDevices - 1, ", got ", device);
}

std::string refusal_of(int device, Variant variant) {
  const std::string* why = refusal(device, variant).load(std::memory_order_acquire);
  return why == nullptr ? std::string() : *why;
}

bool refuse_variant(int device, Variant variant, const std::string& why) {
  // NOTE: texts are never destroyed, for a call on another thread may be reading one.
  static std::mutex mutex;
  static auto* const texts = new std::deque<std::string>;
  const std::lock_guard<std::mutex> lock(mutex);
  Refusal& current = refusal(device, variant);
  if (current.load(std::memory_order_relaxed) != nullptr) return false;
  texts->push_back(why);
  current.store(&texts->back(), std::memory_order_release);
  return true;
}

void allow_all_variants(int device) {
  for (const Variant variant : {Variant::kPersistentCta, Variant::kPersistentGroup}) {
    refusal(device, variant).store(nullptr, std::memory_order_release);
  }
}

}  // namespace lstm_fused::cuda
