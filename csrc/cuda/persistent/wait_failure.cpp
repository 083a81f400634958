// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/persistent/wait_failure.h"

#include <array>
#include <atomic>
#include <mutex>
#include <sstream>

#include "common/error.h"
#include "common/setting.h"
#include "cuda/availability.h"
#include "cuda/status.h"

namespace lstm_fused::cuda {
namespace {

NumberSetting wait_seconds("LSTM_FUSED_CUDA_WAIT_SECONDS", 10, 1e-3, 1e6);

constexpr uint32_t kRememberedLaunches = 256;

// In memory of the host that all devices write to. Where several groups fail, the last one's.
struct Failure {
  volatile uint32_t launch, group, block, step;  // launch 0: none
};
static_assert(sizeof(Failure) == sizeof(uint4), "a kernel stores it by one instruction");

struct RememberedLaunch {
  const char* what = nullptr;
  LstmShape shape;
};

struct Records {
  std::mutex mutex;
  uint32_t launches = 0;
  std::array<RememberedLaunch, kRememberedLaunches> remembered;
};

Records& records() {
  static Records instance;
  return instance;
}

// A capture on another stream or thread must not forbid the allocation.
Failure* allocate_failures() {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  check_cuda(cudaThreadExchangeStreamCaptureMode(&mode), "cudaThreadExchangeStreamCaptureMode");
  void* memory = nullptr;
  const cudaError_t status = cudaHostAlloc(&memory, kMaxDevices * sizeof(Failure),
                                           cudaHostAllocMapped | cudaHostAllocPortable);
  check_cuda(cudaThreadExchangeStreamCaptureMode(&mode), "cudaThreadExchangeStreamCaptureMode");
  check_cuda(status, "cudaHostAlloc");
  auto* failures = static_cast<Failure*>(memory);
  for (int i = 0; i < kMaxDevices; ++i) failures[i].launch = 0;
  return failures;
}

std::atomic<Failure*> failures_of_all{nullptr};

Failure* failures() {
  static Failure* const allocated = [] {
    Failure* memory = allocate_failures();
    failures_of_all.store(memory, std::memory_order_release);
    return memory;
  }();
  return allocated;
}

int current_device() {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_device(device);
  return device;
}

}  // namespace

uint64_t wait_limit() { return static_cast<uint64_t>(wait_seconds.value() * 1e9); }

double set_wait_seconds(double seconds) { return wait_seconds.set(seconds); }

LaunchRecord record_launch(const char* what, const LstmShape& shape) {
  LaunchRecord record;
  void* device_memory = nullptr;
  check_cuda(cudaHostGetDevicePointer(&device_memory, failures() + current_device(), 0),
             "cudaHostGetDevicePointer");
  record.failure = static_cast<uint4*>(device_memory);
  Records& all = records();
  const std::lock_guard<std::mutex> lock(all.mutex);
  if (++all.launches == 0) ++all.launches;  // 0 says that nothing failed
  record.launch = all.launches;
  all.remembered[record.launch % kRememberedLaunches] = {what, shape};
  return record;
}

std::string take_wait_failure(int device) {
  check_device(device);
  Failure* const all = failures_of_all.load(std::memory_order_acquire);
  if (all == nullptr) return "";
  Failure& failure = all[device];
  const uint32_t launch = failure.launch;
  if (launch == 0) return "";
  const uint32_t group = failure.group, block = failure.block, step = failure.step;
  failure.launch = 0;
  RememberedLaunch from;
  bool known = false;
  {
    const std::lock_guard<std::mutex> lock(records().mutex);
    known = records().launches - launch < kRememberedLaunches;
    from = records().remembered[launch % kRememberedLaunches];
  }
  std::ostringstream what;
  what << "in launch " << launch;
  if (known) {
    what << ", " << from.what << " of T = " << from.shape.steps << ", N = " << from.shape.batch
         << ", H = " << from.shape.hidden_size << ", directions = " << from.shape.directions;
  }
  what << ", block " << block << " of group " << group << " gave up at step " << step
       << " after waiting " << wait_seconds.value() << " seconds for the other blocks";
  return what.str();
}

void check_wait_failures(int device) {
  const std::string failure = take_wait_failure(device);
  if (failure.empty()) return;
  refuse_variant(device, Variant::kPersistentGroup, failure);
  fail("CUDA device ", device, ": ", failure,
       ". Outputs of that call are NaN from there on. Groups of blocks are off on this device from "
       "now on: later calls run stepwise. Please report this with the output of `python -m "
       "lstm_fused check`. If blocks are held up rightly, by a debugger or another process, "
       "LSTM_FUSED_CUDA_WAIT_SECONDS lets them wait for longer");
}

}  // namespace lstm_fused::cuda
