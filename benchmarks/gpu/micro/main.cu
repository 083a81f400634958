// SPDX-License-Identifier: BSD-3-Clause
// Prints what the device is, and then a line of JSON for each microbenchmark.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "micro.h"

namespace lstm_fused::micro {
namespace {

constexpr int kLaunches = 9;
constexpr long long kCalibrationNs = 5'000'000;

// Cycles of an SM's clock in `spin_ns` of the GPU's timer, which ticks once a microsecond or so.
__global__ void calibrate_kernel(long long spin_ns, long long* cycles_and_ns) {
  long long start_ns, now_ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start_ns));
  const long long start = clock64();
  do {
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now_ns));
  } while (now_ns - start_ns < spin_ns);
  cycles_and_ns[0] = clock64() - start;
  cycles_and_ns[1] = now_ns - start_ns;
}

// Nanoseconds of a cycle at this moment. It also keeps the clock up before what follows.
double ns_per_cycle(const Bench& bench) {
  auto* device = reinterpret_cast<long long*>(bench.memory);
  long long found[2];
  calibrate_kernel<<<1, 1>>>(kCalibrationNs, device);
  check(cudaGetLastError(), "calibrate_kernel");
  check(cudaMemcpy(found, device, sizeof found, cudaMemcpyDeviceToHost), "cudaMemcpy");
  return static_cast<double>(found[1]) / static_cast<double>(found[0]);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

}  // namespace

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s must succeed, got %s: %s\n", what, cudaGetErrorName(status),
               cudaGetErrorString(status));
  std::exit(1);
}

Bench make_bench() {
  Bench bench;
  check(cudaGetDeviceProperties(&bench.device, 0), "cudaGetDeviceProperties");
  check(cudaMalloc(&bench.result, sizeof(Result)), "cudaMalloc");
  check(cudaMalloc(&bench.memory, kMemoryBytes), "cudaMalloc");
  return bench;
}

void measure_all(Bench& bench, const std::string& name, const std::string& what, double operations,
                 const std::vector<std::function<void()>>& launches) {
  const double ns = ns_per_cycle(bench);
  std::vector<double> cycles;
  for (const auto& launch : launches) {
    check(cudaMemset(bench.result, 0, sizeof(Result)), "cudaMemset");
    check(cudaMemset(bench.memory, 0, kMemoryBytes), "cudaMemset");
    launch();
    check(cudaGetLastError(), name.c_str());
    Result found;
    check(cudaMemcpy(&found, bench.result, sizeof found, cudaMemcpyDeviceToHost), name.c_str());
    if (found.gave_up != 0) {
      std::printf("{\"name\": \"%s\", \"failed\": \"a wait came to its end\"}\n", name.c_str());
      bench.failed = true;
      return;
    }
    cycles.push_back(static_cast<double>(found.cycles) / operations);
  }
  const double middle = median(cycles);
  std::printf(
      "{\"name\": \"%s\", \"cycles\": %.1f, \"ns\": %.2f, \"least\": %.1f, \"most\": %.1f, "
      "\"what\": \"%s\"}\n",
      name.c_str(), middle, middle * ns, *std::min_element(cycles.begin(), cycles.end()),
      *std::max_element(cycles.begin(), cycles.end()), what.c_str());
  std::fflush(stdout);
}

void measure(Bench& bench, const std::string& name, const std::string& what, double operations,
             const std::function<void()>& launch) {
  measure_all(bench, name, what, operations, std::vector<std::function<void()>>(kLaunches, launch));
}

void print_value(const std::string& name, const std::string& what, const char* unit, double value) {
  std::printf("{\"name\": \"%s\", \"%s\": %.3f, \"what\": \"%s\"}\n", name.c_str(), unit, value,
              what.c_str());
  std::fflush(stdout);
}

}  // namespace lstm_fused::micro

int main() {
  using namespace lstm_fused::micro;
  Bench bench = make_bench();
  // Wake the clocks up: an idle GPU takes some ten milliseconds.
  double ns = 0;
  for (int i = 0; i < 40; ++i) ns = ns_per_cycle(bench);
  std::printf(
      "{\"device\": \"%s\", \"compute_capability\": \"%d.%d\", \"sm_count\": %d, \"mhz\": %.0f}\n",
      bench.device.name, bench.device.major, bench.device.minor, bench.device.multiProcessorCount,
      1000 / ns);
  measure_arithmetic(bench);
  measure_memory(bench);
  measure_exchange(bench);
  measure_clusters(bench);
  measure_launches(bench);
  return bench.failed ? 1 : 0;
}
