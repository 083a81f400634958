// SPDX-License-Identifier: BSD-3-Clause
// What translated kernels and the runtime say to each other. Each translated file includes this,
// floating.h and arith.h, and no other header, so that it compiles fast.
//
// A kernel is a function of one CUDA thread: it runs on a fiber of its own and calls the runtime to
// synchronise with other threads. None of these calls returns after an error: the fiber is left for
// good.
#pragma once

#include <cstdint>

namespace cuda_on_cpu {

// Shared addresses begin here, as on sm_90, so that a null pointer into shared memory is an error.
constexpr uint32_t kSharedBase = 1024;

struct Dim3 {
  uint32_t x, y, z;
};

// An instruction that touches memory or waits: its line in the PTX text, and its text.
struct Site {
  uint32_t line;
  const char* text;
};

// The allocation in which a site last found its address.
struct Span {
  uint64_t begin;
  uint64_t bytes;
};

// The part of a thread that translated code reads.
struct ThreadState {
  Dim3 tid, ctaid, ntid, nctaid;
  uint32_t lane, warp;
  char* shared;           // shared address 0 of the block; the first byte in use is at kSharedBase
  uint64_t shared_bytes;  // static and dynamic together
  uint32_t dynamic_shared_bytes;
  Span* spans;              // one for each site of the module, common to the grid's threads
  uint32_t mutation;        // the number of the one in force, or 0
  uint64_t* mutation_hits;  // how often it took effect
  bool holds_stores;        // whether global memory is to be read through the block's stores
  uint64_t* block_counts;   // how often each basic block ran; null unless statistics are on
};

// What an access does, for the race checker and the statistics: flags, and the scope above them.
enum AccessKind : uint32_t {
  kRead = 1,
  kWrite = 2,
  kStrong = 4,  // volatile, relaxed or stronger
  kAcquire = 8,
  kRelease = 16,
  kScopeShift = 8,  // Scope << kScopeShift
};
enum Scope : uint32_t { kCta = 0, kCluster = 1, kGpu = 2, kSys = 3 };

// ---- Memory
// --------------------------------------------------------------------------------------

// The slow path of global_at: finds the allocation and remembers it for the site, or reports.
char* find_global(ThreadState& th, uint64_t address, uint32_t bytes, uint32_t site);
char* find_generic(ThreadState& th, uint64_t address, uint32_t bytes, uint32_t site);
char* find_local(ThreadState& th, uint64_t address, uint32_t bytes, uint32_t site);
// The source of a cp.async, aligned to the size of the copy, of which only `taken` bytes are read.
char* find_copy_source(ThreadState& th, uint64_t address, uint32_t taken, uint32_t size,
                       uint32_t site);
[[noreturn]] void bad_shared(ThreadState& th, uint64_t address, uint32_t bytes, uint32_t site);

template <uint32_t bytes>
inline char* global_at(ThreadState& th, Span* spans, uint64_t address, uint32_t site) {
  const Span span = spans[site];
  const uint64_t offset = address - span.begin;
  if (__builtin_expect(offset >= span.bytes || bytes > span.bytes - offset || address % bytes != 0,
                       0)) {
    return find_global(th, address, bytes, site);
  }
  return reinterpret_cast<char*>(address);
}

template <uint32_t bytes>
inline char* shared_at(ThreadState& th, uint64_t address, uint32_t site) {
  const uint64_t offset = address - kSharedBase;
  if (__builtin_expect(
          offset >= th.shared_bytes || bytes > th.shared_bytes - offset || address % bytes != 0,
          0)) {
    bad_shared(th, address, bytes, site);
  }
  return th.shared + address;
}

template <class T>
inline T load(const char* at) {
  T value;
  __builtin_memcpy(&value, at, sizeof value);
  return value;
}

template <class T>
inline void store(char* at, T value) {
  __builtin_memcpy(at, &value, sizeof value);
}

// Checked builds call this before each access.
void on_access(ThreadState& th, const char* at, uint32_t bytes, uint32_t kind, uint32_t site);
void on_fence(ThreadState& th, uint32_t scope);

// Stores `words`, elements of `element` bytes. Checked builds call this for all stores to memory
// that may be global, others for strong ones.
void store_words(ThreadState& th, char* at, const char* words, uint32_t bytes, uint32_t element,
                 uint32_t kind);
// What a load finds at `at`: the address itself, or that of `copy`, of 16 bytes. Checked builds
// call this where th.holds_stores.
const char* seen_words(ThreadState& th, const char* at, uint32_t bytes, char* copy);

// What a strong load of several registers has read, as one number.
inline uint64_t mix(uint64_t value) { return value; }
template <class... Rest>
inline uint64_t mix(uint64_t value, Rest... rest) {
  return value + 0x9e3779b97f4a7c15ull * mix(rest...);
}
// After a strong load: lets other threads run. A `value` that changes is progress, for a spin.
void spin(ThreadState& th, const char* at, uint64_t value, uint32_t site);
// After an atomic operation.
void atomic_done(ThreadState& th, const char* at, bool changed, uint32_t site);
// At intervals within loops: lets other threads run, and returns the length of the next interval.
uint32_t preempt(ThreadState& th);
void sleep(ThreadState& th);

void cp_async(ThreadState& th, char* to, const char* from, uint32_t bytes, uint32_t from_bytes,
              uint32_t site);
void cp_async_commit(ThreadState& th);
void cp_async_wait(ThreadState& th, uint32_t groups_left, bool all);

// Whether the mutation of this number is in force.
inline bool mutated(ThreadState& th, uint32_t number) {
  if (__builtin_expect(th.mutation != number, 1)) return false;
  ++*th.mutation_hits;
  return true;
}

// ---- Barriers, and collectives of a warp
// -----------------------------------------------------------------------

constexpr uint32_t kWholeBlock = ~0u;  // a barrier without a thread count
void barrier_sync(ThreadState& th, uint32_t id, uint32_t threads, uint32_t site);
void barrier_arrive(ThreadState& th, uint32_t id, uint32_t threads, uint32_t site);
// The number of threads whose predicate is true.
uint32_t barrier_popc(ThreadState& th, uint32_t id, uint32_t threads, bool predicate,
                      uint32_t* arrived, uint32_t site);
void warp_sync(ThreadState& th, uint32_t mask, uint32_t site);

enum class Shuffle : uint32_t { kUp, kDown, kButterfly, kIndex };
uint32_t shuffle(ThreadState& th, Shuffle mode, uint32_t value, uint32_t b, uint32_t c,
                 uint32_t mask, bool* in_range, uint32_t site);
uint32_t ballot(ThreadState& th, bool predicate, uint32_t mask, uint32_t site);
uint32_t match_any(ThreadState& th, uint64_t value, uint32_t mask, uint32_t site);
uint32_t match_all(ThreadState& th, uint64_t value, uint32_t mask, bool* all, uint32_t site);
enum class Reduce : uint32_t { kAdd, kMinU, kMaxU, kMinS, kMaxS, kAnd, kOr, kXor };
uint32_t reduce(ThreadState& th, Reduce op, uint32_t value, uint32_t mask, uint32_t site);
uint32_t elect(ThreadState& th, uint32_t mask, bool* leader, uint32_t site);

// `at` is the row of 16 bytes that this lane names.
void load_matrix(ThreadState& th, uint32_t* out, uint32_t count, bool transpose, const char* at,
                 uint32_t site);
void store_matrix(ThreadState& th, const uint32_t* in, uint32_t count, bool transpose, char* at,
                  uint32_t site);

enum class Mma : uint32_t {
  k16816Bf16,
  k16816F16,
  k1688Bf16,
  k1688F16,
  k1688Tf32,
  k1684Tf32,
  k884F64,
};
// a, b, c and d are this lane's fragments, as 32-bit words (f64: two words each, low word first).
void mma(ThreadState& th, Mma shape, uint32_t* d, const uint32_t* a, const uint32_t* b,
         const uint32_t* c, uint32_t site);

// ---- The rest
// ------------------------------------------------------------------------------------

[[noreturn]] void unsupported(ThreadState& th, uint32_t site);
[[noreturn]] void trap(ThreadState& th, uint32_t site);
[[noreturn]] void assert_failed(ThreadState& th, const char* message, const char* file,
                                uint32_t line, const char* function);
uint64_t clock(ThreadState& th);
uint64_t nanoseconds(ThreadState& th);
uint32_t sm_id(ThreadState& th);
uint32_t sm_count(ThreadState& th);
uint32_t live_lanes(ThreadState& th);
// The memory of cooperative_groups' grid barrier, of this launch.
uint64_t grid_workspace(ThreadState& th);

// Results rounded in a direction other than to nearest, for float and double.
enum class Rounding : uint32_t { kNearest, kZero, kDown, kUp };
float add_rounded(float a, float b, Rounding rounding);
double add_rounded(double a, double b, Rounding rounding);
float mul_rounded(float a, float b, Rounding rounding);
double mul_rounded(double a, double b, Rounding rounding);
float div_rounded(float a, float b, Rounding rounding);
double div_rounded(double a, double b, Rounding rounding);
float sqrt_rounded(float a, Rounding rounding);
double sqrt_rounded(double a, Rounding rounding);
float fma_rounded(float a, float b, float c, Rounding rounding);
double fma_rounded(double a, double b, double c, Rounding rounding);
float to_float_rounded(double value, Rounding rounding);
float to_float_rounded(int64_t value, Rounding rounding);
float to_float_rounded(uint64_t value, Rounding rounding);
double to_double_rounded(int64_t value, Rounding rounding);
double to_double_rounded(uint64_t value, Rounding rounding);

// ---- Registration
// --------------------------------------------------------------------------------

struct Parameter {
  uint32_t offset, bytes;
};

// How many instructions of one class a run of a basic block executes.
struct ClassCount {
  uint32_t block;
  const char* name;
  uint32_t count;
};

struct KernelInfo {
  const char* name;  // mangled
  void (*entry)(ThreadState& th, const char* parameters);
  const Parameter* parameters;
  uint32_t parameter_count, parameter_bytes;
  uint32_t static_shared_bytes, dynamic_shared_align;
  uint32_t registers, local_bytes, max_threads;  // as ptxas gives them for the real target
  uint32_t stack_bytes;                          // what the fiber needs
  bool reads_timer;                              // so that it may bound its waits
};

struct Variable {
  const char* name;
  void* at;
  uint64_t bytes;
};

// A synchronising instruction that a checked module can do without: see ptx/mutate.py.
struct Mutation {
  uint32_t number, line;
  const char* function;
  const char* kind;
  const char* text;
};

struct Module {
  const char* name;
  uint32_t target;  // 80 for compute_80
  bool checked;
  const KernelInfo* kernels;
  uint32_t kernel_count;
  const Variable* variables;
  uint32_t variable_count;
  const Site* sites;
  uint32_t site_count;
  const ClassCount* class_counts;
  uint32_t class_count_count, block_count;
  const Mutation* mutations;
  uint32_t mutation_count;
};

struct Registration {
  explicit Registration(const Module& module);
  ~Registration();
  Registration(const Registration&) = delete;
  Registration& operator=(const Registration&) = delete;

 private:
  const Module& module_;
};

}  // namespace cuda_on_cpu
