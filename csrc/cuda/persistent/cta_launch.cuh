// SPDX-License-Identifier: BSD-3-Clause
// Launches the kernels of one block for each tile of rows and direction.
#pragma once

#include <initializer_list>
#include <type_traits>

#include "cuda/device/row_grid.cuh"
#include "cuda/persistent/launch.h"
#include "cuda/status.h"

namespace lstm_fused::cuda {

// Whether these arrays lie so that two neighbours of `bytes` each may be accessed as one element.
inline bool hold_pairs(int64_t bytes, std::initializer_list<const void*> arrays) {
  for (const void* array : arrays) {
    if (!is_aligned(array, 2 * bytes)) return false;
  }
  return true;
}

// Launches the kernel that kernel_of(chunks, is_full, moves_pairs) gives of integral constants.
// moves_pairs(direction) says whether all arrays of a direction that full warps access by two
// elements lie so that they may. Where lanes of full warps have one unit, there are no pairs, and
// no kernel that leaves them apart.
template <typename Product, bool kBackward, typename Args, typename MovesPairs, typename KernelOf>
void launch_cta_kernel(const char* name, const RecurrenceArgs& args, const Args& kernel_args,
                       const PersistentPlan& plan, const MovesPairs& moves_pairs,
                       const KernelOf& kernel_of) {
  using Operand = typename Product::Operand;
  const dim3 grid(static_cast<unsigned>(plan.tiles), kernel_args.directions);
  dispatch_size<kCtaChunks<Operand>>("chunks", plan.chunks, [&](auto chunks) {
    auto* kernel = kernel_of(chunks, std::false_type{}, std::false_type{});
    if constexpr (sizeof(Operand) == 2) {
      constexpr bool kHasPairs = full_lane_units(decltype(chunks)::value, kBackward) == 2;
      bool pairs = true;
      for (int i = 0; i < kernel_args.directions; ++i) {
        pairs = pairs && moves_pairs(kernel_args.direction[i]);
      }
      if (plan.full && pairs) {
        kernel = kernel_of(chunks, std::true_type{}, std::true_type{});
      } else if (plan.full) {
        kernel = kernel_of(chunks, std::true_type{}, std::bool_constant<!kHasPairs>{});
      }
    }
    kernel<<<grid, plan.threads, 0, args.stream>>>(kernel_args);
  });
  check_launch(name);
}

}  // namespace lstm_fused::cuda
