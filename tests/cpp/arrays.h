// SPDX-License-Identifier: BSD-3-Clause
// Arrays of any dtype that a kernel cannot leave unnoticed, and scalar conversions to check the
// kernels' own by.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "check.h"
#include "common/types.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace lstm_fused::test {

// ---- 16-bit types, from their definitions ---------------------------------------------------

struct Format {
  int mantissa_bits, min_exponent;  // of normal numbers
  int infinity_bits() const { return (2 - 2 * min_exponent + 1) << mantissa_bits; }
};

inline Format format_of(DType dtype) {
  return dtype == DType::kBFloat16 ? Format{7, -126} : Format{10, -14};
}

inline double widen(DType dtype, uint16_t bits) {
  const Format format = format_of(dtype);
  const int magnitude = bits & 0x7FFF;
  const int mantissa = magnitude & ((1 << format.mantissa_bits) - 1);
  const int exponent = magnitude >> format.mantissa_bits;
  double value;
  if (magnitude > format.infinity_bits()) {
    value = std::numeric_limits<double>::quiet_NaN();
  } else if (magnitude == format.infinity_bits()) {
    value = std::numeric_limits<double>::infinity();
  } else if (exponent == 0) {
    value = std::ldexp(mantissa, format.min_exponent - format.mantissa_bits);
  } else {
    value = std::ldexp(mantissa + (1 << format.mantissa_bits),
                       format.min_exponent + exponent - 1 - format.mantissa_bits);
  }
  return bits & 0x8000 ? -value : value;
}

// To the nearest, to even when two are.
inline uint16_t narrow(DType dtype, double value) {
  const Format format = format_of(dtype);
  const int sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::fabs(value);
  int bits = format.infinity_bits();
  if (std::isnan(value)) {
    bits |= 1 << (format.mantissa_bits - 1);
  } else if (magnitude == 0) {
    bits = 0;
  } else if (std::isfinite(value)) {
    const int exponent = std::max(std::ilogb(magnitude), format.min_exponent);
    if (exponent <= 1 - format.min_exponent) {
      // In units of the last place, 2^mantissa_bits and more for normal numbers. The carry of one
      // that rounds up to a power of two goes to the exponent, and to infinity, by itself.
      const int units =
          static_cast<int>(std::nearbyint(std::ldexp(magnitude, format.mantissa_bits - exponent)));
      bits = ((exponent - format.min_exponent) << format.mantissa_bits) + units;
    }
  }
  return static_cast<uint16_t>(sign | bits);
}

inline double round_to(DType dtype, double value) {
  if (dtype == DType::kFloat64) return value;
  if (dtype == DType::kFloat32) return static_cast<float>(value);
  return widen(dtype, narrow(dtype, value));
}

// The distance from 1 to the next number.
inline double epsilon(DType dtype) {
  if (dtype == DType::kFloat64) return std::numeric_limits<double>::epsilon();
  if (dtype == DType::kFloat32) return std::numeric_limits<float>::epsilon();
  return std::ldexp(1.0, -format_of(dtype).mantissa_bits);
}

inline DType accumulator_type(DType dtype) {
  return dtype == DType::kFloat64 ? dtype : DType::kFloat32;
}

// ---- Arrays ---------------------------------------------------------------------------------

// Memory that ends where an unreadable page begins: unlike AddressSanitizer's red zones this also
// stops masked vector instructions, which the compiler does not instrument. The slack before it
// is poisoned, and compared with what it was at the end.
class FencedMemory {
 public:
  explicit FencedMemory(int64_t bytes) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    usable_ = (bytes + page - 1) / page * page;
    size_ = usable_ + page;
    void* mapped = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<unsigned char*>(mapped);
    if (mprotect(base_ + usable_, page, PROT_NONE) != 0) throw std::bad_alloc();
    slack_ = usable_ - bytes;
    std::memset(base_, kSlack, slack_);
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(base_, slack_);
#endif
  }
  ~FencedMemory() {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(base_, slack_);
#endif
    CHECK(std::all_of(base_, base_ + slack_, [](unsigned char byte) { return byte == kSlack; }));
    munmap(base_, size_);
  }
  FencedMemory(const FencedMemory&) = delete;

  void* get() const { return base_ + slack_; }
  void make_read_only() { mprotect(base_, usable_, PROT_READ); }

 private:
  static constexpr unsigned char kSlack = 0x5A;
  unsigned char* base_;
  int64_t usable_, size_, slack_;
};

class Array {
 public:
  Array() = default;
  Array(DType dtype, int64_t n)
      : dtype_(dtype), n_(n), memory_(std::make_shared<FencedMemory>(n * dtype_size(dtype))) {
    fill_canary();
  }
  Array(DType dtype, const std::vector<double>& values)
      : Array(dtype, static_cast<int64_t>(values.size())) {
    for (int64_t i = 0; i < n_; ++i) set(i, values[i]);
  }

  // An array that nobody may write any more.
  static Array input(DType dtype, const std::vector<double>& values) {
    Array array(dtype, values);
    array.make_read_only();
    return array;
  }
  void make_read_only() { memory_->make_read_only(); }

  explicit operator bool() const { return memory_ != nullptr; }
  int64_t size() const { return n_; }
  // Null for absent arrays.
  void* data() const { return memory_ ? memory_->get() : nullptr; }
  void* at(int64_t i) const {
    return memory_ ? static_cast<char*>(data()) + i * dtype_size(dtype_) : nullptr;
  }

  double get(int64_t i) const {
    if (dtype_ == DType::kFloat64) return load<double>(i);
    if (dtype_ == DType::kFloat32) return load<float>(i);
    return widen(dtype_, load<uint16_t>(i));
  }
  void set(int64_t i, double value) {
    if (dtype_ == DType::kFloat64) {
      store(i, value);
    } else if (dtype_ == DType::kFloat32) {
      store(i, static_cast<float>(value));
    } else {
      store(i, narrow(dtype_, value));
    }
  }

  // A pattern that no test computes; shows what was not written.
  void fill_canary() {
    if (n_ > 0) std::memset(data(), kCanary, n_ * dtype_size(dtype_));
  }
  bool is_canary(int64_t i) const {
    const auto* bytes = static_cast<const unsigned char*>(at(i));
    return std::all_of(bytes, bytes + dtype_size(dtype_),
                       [](unsigned char byte) { return byte == kCanary; });
  }

  bool same_bits(const Array& other) const {
    return n_ == other.n_ &&
           (n_ == 0 || std::memcmp(data(), other.data(), n_ * dtype_size(dtype_)) == 0);
  }

 private:
  static constexpr unsigned char kCanary = 0xC3;

  template <typename T>
  T load(int64_t i) const {
    T value;
    std::memcpy(&value, at(i), sizeof(T));
    return value;
  }
  template <typename T>
  void store(int64_t i, T value) {
    std::memcpy(at(i), &value, sizeof(T));
  }

  DType dtype_ = DType::kFloat32;
  int64_t n_ = 0;
  std::shared_ptr<FencedMemory> memory_;
};

}  // namespace lstm_fused::test
