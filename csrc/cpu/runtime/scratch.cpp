// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/runtime/scratch.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <string>

#if defined(__linux__)
#include <malloc.h>
#endif

#include "common/error.h"
#include "cpu/runtime/huge_pages.h"

namespace lstm_fused::cpu {
namespace {

// Smaller blocks come from the heap's pages, which malloc keeps by itself.
constexpr int64_t kMinCachedBytes = 16 << 10;
// Bytes in a thread's cache, at most. Both weights of a layer of H = 1024 in float32 take 32 MiB.
// Measured against fresh memory, inference N=1 T=100: H = 64 1.8 times, H = 256 1.3 times as fast.
constexpr int64_t kMaxCachedBytes = 32 << 20;

// More blocks than the forward and the backward of a layer have large buffers on two threads.
constexpr int kMaxCachedBlocks = 64;

// Bytes that a thread packs, at least: in 20 microseconds, which waking it can take. Measured with
// one barrier for all matrices: N=1 H=64 5 % less.
constexpr int64_t kMinPackedBytes = 256 << 10;

// A thread's blocks that no buffer uses, the oldest first. They are given out again at their own
// size only, so that sanitizers see where a buffer ends. All functions may be called by any thread.
class BlockCache {
 public:
  void* take(int64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (int i = count_ - 1; i >= 0; --i) {
      if (blocks_[i].bytes == bytes) return remove(i).data;
    }
    return nullptr;
  }

  void put(void* data, int64_t bytes) {
    if (bytes > kMaxCachedBytes) return std::free(data);
    const std::lock_guard<std::mutex> lock(mutex_);
    while (count_ == kMaxCachedBlocks || bytes_ + bytes > kMaxCachedBytes)
      std::free(remove(0).data);
    blocks_[count_++] = {data, bytes};
    bytes_ += bytes;
  }

  // Frees all of them; gives their bytes. NOTE: does not wait, since in a forked child the thread
  // that holds the lock may not be there.
  int64_t release() {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return 0;
    const int64_t bytes = bytes_;
    while (count_ > 0) std::free(remove(count_ - 1).data);
    return bytes;
  }

 private:
  struct Block {
    void* data;
    int64_t bytes;
  };

  Block remove(int index) {
    const Block block = blocks_[index];
    std::move(blocks_ + index + 1, blocks_ + count_, blocks_ + index);
    --count_;
    bytes_ -= block.bytes;
    return block;
  }

  std::mutex mutex_;
  Block blocks_[kMaxCachedBlocks];
  int count_ = 0;
  int64_t bytes_ = 0;
};

// The caches of all threads, in a list that only grows: a new thread takes over the node of
// one that has ended. NOTE: nodes are on the heap and the list has no lock, so that it is whole in
// a forked child, whose other threads are gone.
struct Node {
  BlockCache cache;
  std::atomic<bool> is_owned{true};
  Node* next = nullptr;
};
std::atomic<Node*> all_nodes{nullptr};

// A node that belongs to this thread alone.
Node* acquire_node() {
  for (Node* node = all_nodes.load(); node; node = node->next) {
    if (!node->is_owned.exchange(true)) return node;
  }
  Node* node = new Node;
  node->next = all_nodes.load();
  while (!all_nodes.compare_exchange_weak(node->next, node)) {
  }
  return node;
}

// This thread's node, as long as the thread lives.
struct Owner {
  Node* const node = acquire_node();
  ~Owner() {
    node->cache.release();
    node->is_owned = false;
  }
};

BlockCache& block_cache() {
  static thread_local Owner owner;
  return owner.node->cache;
}

// Blocks of fewer bytes, aligned by hand within one of malloc, which keeps small ones for the
// thread that freed them, but none of aligned_alloc. The byte before a block says how far in it
// lies.
void* take_small(int64_t size) {
  auto* const at = static_cast<unsigned char*>(std::malloc(size + kCacheLine));
  if (!at) return nullptr;
  const auto ahead = static_cast<unsigned char>(
      kCacheLine - static_cast<int64_t>(reinterpret_cast<uintptr_t>(at) % kCacheLine));
  at[ahead - 1] = ahead;
  return at + ahead;
}

void free_small(void* block) {
  auto* const at = static_cast<unsigned char*>(block);
  std::free(at - at[-1]);
}

void* take_large(int64_t size) {
  void* block = block_cache().take(size);
  if (block) return block;
  block = std::aligned_alloc(kCacheLine, size);
  if (block) advise_huge_pages(block, size);
  return block;
}

}  // namespace

Buffer::Buffer(int64_t bytes) {
  const int64_t size = round_up(bytes, kCacheLine);
  void* const block = size >= kMinCachedBytes ? take_large(size) : take_small(size);
  if (!block) fail_to_allocate(std::to_string(size));
  data_ = {block, Release{size}};
}

void Buffer::Release::operator()(void* block) const {
  if (bytes >= kMinCachedBytes) {
    block_cache().put(block, bytes);
  } else {
    free_small(block);
  }
}

int64_t release_scratch() {
  int64_t bytes = 0;
  for (Node* node = all_nodes.load(); node; node = node->next) bytes += node->cache.release();
#if defined(__GLIBC__)
  // NOTE: malloc takes blocks of up to 32 MiB from its heap once one of their size was freed, and
  // gives no page of that back by itself.
  if (bytes > 0) malloc_trim(0);
#endif
  return bytes;
}

void Packer::add(Item item, int64_t panels) {
  item.out->panels = panels;
  const int64_t rows = round_up(item.k_size, table_.k_multiple);
  item.bytes = panels * rows * table_.nr() * table_.operand_size;
  item.out->data = Buffer(item.bytes);
  items_.push_back(item);
}

void Packer::run(const Parallel& parallel) const {
  if (items_.empty()) return;
  int64_t bytes = 0;
  for (const Item& item : items_) bytes += item.bytes;
  const int64_t partitions = std::clamp<int64_t>(bytes / kMinPackedBytes, 1, parallel.threads);
  parallel.for_each(partitions, [&](int64_t partition) {
    for (const Item& item : items_) {
      const int64_t begin = item.out->panels * partition / partitions;
      const int64_t end = item.out->panels * (partition + 1) / partitions;
      void* out = item.out->data.get();
      if (item.kind == Kind::kUntransposed) {
        table_.pack_untransposed(item.source, item.columns, item.k_size, begin, end, out);
      } else {
        table_.pack_transposed(item.source, item.columns, item.k_size, item.kind == Kind::kGates,
                               begin, end, out);
      }
    }
  });
}

}  // namespace lstm_fused::cpu
