// SPDX-License-Identifier: BSD-3-Clause
#include "statistics.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>

#include "control_api.h"
#include "race.h"
#include "store_buffer.h"

namespace cuda_on_cpu {

namespace {

struct Figures {
  uint64_t requests = 0, sectors = 0, wavefronts = 0, ideal_wavefronts = 0, bytes = 0;
};
struct KernelFigures {
  uint64_t launches = 0;
  Figures figures[2][2];  // [is_shared][is_write]
  std::map<std::string, uint64_t> instructions;
};

std::map<std::string, KernelFigures> all_figures;

constexpr uint32_t kSectorBytes = 32, kBanks = 32, kBankBytes = 4, kWavefrontBytes = 128;

}  // namespace

Statistics* Statistics::create(Grid& grid) { return new Statistics(grid); }

void Statistics::access(const Thread& th, const char* at, uint32_t bytes, uint32_t kind,
                        uint32_t site) {
  const uint64_t offset = static_cast<uint64_t>(at - th.shared) - kSharedBase;
  const uint64_t warp = uint64_t(th.block->index) * 32 + th.warp;
  // A cp.async touches both spaces from one site.
  const bool is_shared = offset < th.shared_bytes;
  Stream& stream = streams_[(warp << 33) | uint64_t(site) << 1 | is_shared];
  stream.is_shared = is_shared;
  stream.is_write = kind & kWrite;
  const uint64_t turn = stream.counts[th.lane]++;
  while (stream.first + stream.requests.size() <= turn) stream.requests.emplace_back();
  Request& request = stream.requests[turn - stream.first];
  request.addresses[th.lane] = stream.is_shared ? offset : reinterpret_cast<uint64_t>(at);
  request.bytes = bytes;
  request.lanes |= 1u << th.lane;
  while (!stream.requests.empty() && stream.requests.front().lanes == ~0u) {
    count(stream, stream.requests.front());
    stream.requests.pop_front();
    ++stream.first;
  }
}

void Statistics::count(const Stream& stream, const Request& request) {
  if (request.lanes == 0) return;
  Total& total = totals_[stream.is_shared][stream.is_write];
  const auto lanes = static_cast<uint32_t>(__builtin_popcount(request.lanes));
  ++total.requests;
  total.bytes += lanes * request.bytes;
  std::set<uint64_t> sectors;
  // Accesses of 8 bytes take the half-warps in turn, those of 16 bytes the quarters.
  const uint32_t step = request.bytes <= 4 ? 32 : 32 * kBankBytes / request.bytes;
  for (uint32_t first = 0; first < 32; first += step) {
    std::map<uint32_t, std::set<uint64_t>> words;  // by bank
    for (uint32_t lane = first; lane < first + step; ++lane) {
      if ((request.lanes >> lane & 1) == 0) continue;
      const uint64_t begin = request.addresses[lane];
      if (!stream.is_shared) sectors.insert(begin / kSectorBytes);
      for (uint64_t at = begin; stream.is_shared && at < begin + request.bytes; at += kBankBytes) {
        words[at / kBankBytes % kBanks].insert(at / kBankBytes);
      }
    }
    size_t most = 0, distinct = 0;
    for (const auto& [bank, of_bank] : words) {
      most = std::max(most, of_bank.size());
      distinct += of_bank.size();
    }
    total.wavefronts += most;
    total.ideal_wavefronts += (distinct * kBankBytes + kWavefrontBytes - 1) / kWavefrontBytes;
  }
  total.sectors += sectors.size();
}

void Statistics::destroy(Statistics* statistics, const Grid& grid) {
  if (statistics == nullptr) return;
  for (const auto& [key, stream] : statistics->streams_) {
    for (const Request& request : stream.requests) statistics->count(stream, request);
  }
  KernelFigures& kernel = all_figures[grid.launch.kernel->name];
  ++kernel.launches;
  for (int space = 0; space < 2; ++space) {
    for (int write = 0; write < 2; ++write) {
      const Total& total = statistics->totals_[space][write];
      Figures& sum = kernel.figures[space][write];
      sum.requests += total.requests;
      sum.sectors += total.sectors;
      sum.wavefronts += total.wavefronts;
      sum.ideal_wavefronts += total.ideal_wavefronts;
      sum.bytes += total.bytes;
    }
  }
  const Module& module = *grid.launch.module;
  for (uint32_t i = 0; i < module.class_count_count; ++i) {
    const ClassCount& entry = module.class_counts[i];
    const uint64_t runs = grid.block_counts[entry.block];
    if (runs != 0) kernel.instructions[entry.name] += runs * entry.count;
  }
  delete statistics;
}

void on_access(ThreadState& th, const char* at, uint32_t bytes, uint32_t kind, uint32_t site) {
  if (grid->race) grid->race->access(self(th), at, bytes, kind, site);
  if (grid->stores && kind & kWrite) grid->stores->before_write(self(th), at, bytes, kind);
  if (grid->statistics) grid->statistics->access(self(th), at, bytes, kind, site);
}

void on_fence(ThreadState& th, uint32_t scope) {
  if (grid->race) grid->race->fence(self(th), scope);
  if (grid->stores && scope > kCluster) grid->stores->release(self(th));
}

}  // namespace cuda_on_cpu

const char* emu_statistics() {
  using namespace cuda_on_cpu;
  static std::string json;
  const auto field = [](const char* name, uint64_t value) {
    return std::string("\"") + name + "\": " + std::to_string(value);
  };
  json = "{";
  const char* names[2][2] = {{"global_load", "global_store"}, {"shared_load", "shared_store"}};
  for (const auto& [kernel, figures] : all_figures) {
    json +=
        (json.size() > 1 ? ", \"" : "\"") + kernel + "\": {" + field("launches", figures.launches);
    for (int space = 0; space < 2; ++space) {
      for (int write = 0; write < 2; ++write) {
        const Figures& f = figures.figures[space][write];
        json += std::string(", \"") + names[space][write] + "\": {" +
                field("requests", f.requests) + ", " + field("bytes", f.bytes) + ", ";
        json += space == 0 ? field("sectors", f.sectors)
                           : field("wavefronts", f.wavefronts) + ", " +
                                 field("ideal_wavefronts", f.ideal_wavefronts);
        json += "}";
      }
    }
    json += ", \"instructions\": {";
    bool is_first = true;
    for (const auto& [name, count] : figures.instructions) {
      json += (is_first ? "" : ", ") + field(name.c_str(), count);
      is_first = false;
    }
    json += "}}";
  }
  json += "}";
  return json.c_str();
}

void emu_clear_statistics() { cuda_on_cpu::all_figures.clear(); }
