// SPDX-License-Identifier: BSD-3-Clause
// advise_huge_pages: what the system has noted of the memory, and that its contents stay.
#include "cpu/runtime/huge_pages.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

#include "check.h"

namespace lstm_fused::test {
namespace {

constexpr int64_t kSize = 40 << 20;

// Whether huge pages were asked for at this address, by /proc/self/smaps.
bool is_advised(const void* data) {
  std::ifstream maps("/proc/self/smaps");
  bool found = false;
  for (std::string line; std::getline(maps, line);) {
    unsigned long first = 0, last = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &first, &last) == 2) {
      const auto address = reinterpret_cast<uintptr_t>(data);
      found = first <= address && address < last;
    } else if (found && line.rfind("VmFlags:", 0) == 0) {
      return line.find(" hg") != std::string::npos;
    }
  }
  return false;
}

bool has_huge_pages() {
  return std::ifstream("/sys/kernel/mm/transparent_hugepage/enabled").good();
}

void run_all() {
  void* mapped = mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(mapped != MAP_FAILED);
  char* bytes = static_cast<char*>(mapped);
  std::memset(bytes, 7, kSize);
  // Malloc's own pages are as good for little memory.
  cpu::advise_huge_pages(bytes, 1 << 20);
  CHECK(!is_advised(bytes + 4096));
  // The first and the last page may hold something else too.
  cpu::advise_huge_pages(bytes + 64, kSize - 128);
  CHECK_EQ(is_advised(bytes + kSize / 2), has_huge_pages());
  CHECK(!is_advised(bytes));
  CHECK(!is_advised(bytes + kSize - 1));
  for (int64_t i = 0; i < kSize; ++i) CHECK(bytes[i] == 7);
  munmap(mapped, kSize);
}

}  // namespace
}  // namespace lstm_fused::test

int main() {
  lstm_fused::test::run_all();
  return lstm_fused::test::exit_status();
}
