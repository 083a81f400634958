// SPDX-License-Identifier: BSD-3-Clause
#include "store_buffer.h"

#include <algorithm>
#include <cstring>

#include "device.h"

namespace cuda_on_cpu {

namespace {

template <class F>
void for_each_word(uint64_t address, uint32_t bytes, F f) {
  for (uint64_t word = address / kWordBytes; word <= (address + bytes - 1) / kWordBytes; ++word) {
    f(word);
  }
}

// Whether a strong operation reaches other blocks. Without clusters, a cluster is a block.
bool is_of_device(uint32_t kind) { return kind & kStrong && (kind >> kScopeShift) > kCluster; }

// Most stores arrive soon, some only after every thread has looked several times.
uint64_t random_delay() {
  const auto longest = static_cast<uint32_t>(std::min<uint64_t>(8 * grid->runnable, 1 << 20));
  return random_below((longest >> random_below(12)) + 1);
}

}  // namespace

StoreBuffers* StoreBuffers::create() { return new StoreBuffers; }
void StoreBuffers::destroy(StoreBuffers* buffers) { delete buffers; }

bool StoreBuffers::hold(const Thread& th, char* at, const char* words, uint32_t bytes,
                        uint32_t element, bool is_strong) {
  if (!is_global(th, at)) return false;
  Buffer& buffer = buffers_[th.block->index];
  for (uint32_t i = 0; i < bytes; i += element) {
    Held held = {
        reinterpret_cast<uint64_t>(at + i), {}, static_cast<uint8_t>(element), stamp_of(th)};
    memcpy(held.bytes, words + i, element);
    const uint64_t number = ++stores_;
    for_each_word(held.address, element,
                  [&](uint64_t word) { buffer.words[word].push_back(number); });
    buffer.stores.emplace(number, held);
    if (is_strong) due_.push({turn_ + random_delay(), number, th.block->index});
  }
  return true;
}

const char* StoreBuffers::view(const Thread& th, const char* at, uint32_t bytes, char* copy) const {
  const auto found = buffers_.find(th.block->index);
  if (found == buffers_.end()) return at;
  const Buffer& buffer = found->second;
  const auto begin = reinterpret_cast<uint64_t>(at);
  bool is_copied = false;
  for_each_word(begin, bytes, [&](uint64_t word) {
    const auto held_there = buffer.words.find(word);
    if (held_there == buffer.words.end()) return;
    if (!is_copied) memcpy(copy, at, bytes);
    is_copied = true;
    for (const uint64_t number : held_there->second) {
      const Held& held = buffer.stores.at(number);
      for (uint32_t i = 0; i < held.size; ++i) {
        const uint64_t offset = held.address + i - begin;
        if (offset < bytes && (held.address + i) / kWordBytes == word) copy[offset] = held.bytes[i];
      }
    }
  });
  return is_copied ? copy : at;
}

void StoreBuffers::deliver(Buffer& buffer, uint64_t number) {
  const Held held = buffer.stores.at(number);
  for_each_word(held.address, held.size, [&](uint64_t word) {
    while (buffer.words.at(word).front() != number) deliver(buffer, buffer.words.at(word).front());
  });
  for_each_word(held.address, held.size, [&](uint64_t word) {
    auto& numbers = buffer.words.at(word);
    numbers.erase(numbers.begin());
    if (numbers.empty()) buffer.words.erase(word);
  });
  buffer.stores.erase(number);
  auto* at = reinterpret_cast<char*>(held.address);
  if (memcmp(at, held.bytes, held.size) != 0) progress();
  memcpy(at, held.bytes, held.size);
}

void StoreBuffers::release(const Thread& th) {
  Buffer& buffer = buffers_[th.block->index];
  std::vector<uint64_t> ordered;
  for (const auto& [number, held] : buffer.stores) {
    if (is_ordered(th, held.stamp)) ordered.push_back(number);
  }
  for (const uint64_t number : ordered) {
    if (buffer.stores.count(number) != 0) deliver(buffer, number);
  }
}

void StoreBuffers::settle(const Thread& th, const char* at, uint32_t bytes) {
  Buffer& buffer = buffers_[th.block->index];
  for_each_word(reinterpret_cast<uint64_t>(at), bytes, [&](uint64_t word) {
    for (auto found = buffer.words.find(word); found != buffer.words.end();
         found = buffer.words.find(word)) {
      deliver(buffer, found->second.back());
    }
  });
}

void StoreBuffers::before_write(const Thread& th, const char* at, uint32_t bytes, uint32_t kind) {
  if (kind & kRelease && is_of_device(kind)) release(th);
  if (kind & kRead) settle(th, at, bytes);
}

void StoreBuffers::take_turn() {
  ++turn_;
  while (!due_.empty() && due_.top().turn <= turn_) {
    const Due due = due_.top();
    due_.pop();
    Buffer& buffer = buffers_[due.block];
    if (buffer.stores.count(due.number) != 0) deliver(buffer, due.number);
  }
}

void StoreBuffers::deliver_all() {
  for (auto& [block, buffer] : buffers_) {
    while (!buffer.stores.empty()) deliver(buffer, buffer.stores.begin()->first);
  }
}

void store_words(ThreadState& state, char* at, const char* words, uint32_t bytes, uint32_t element,
                 uint32_t kind) {
  Thread& th = self(state);
  const bool is_strong = kind & kStrong;
  if (is_strong && th.block->index == device().stall_block && is_global(th, at) &&
      th.block->strong_stores++ == device().stall_after) {
    stall_block(th);
  }
  if (grid->stores && grid->stores->hold(th, at, words, bytes, element, is_of_device(kind))) return;
  if (is_strong && memcmp(at, words, bytes) != 0) progress();
  memcpy(at, words, bytes);
}

const char* seen_words(ThreadState& th, const char* at, uint32_t bytes, char* copy) {
  return grid->stores->view(self(th), at, bytes, copy);
}

}  // namespace cuda_on_cpu
