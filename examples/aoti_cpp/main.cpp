// SPDX-License-Identifier: BSD-3-Clause
// run_lstm MODEL.pt2 T N D: a package of AOTInductor that holds FusedLSTM ops, run without Python.
// Prints the shape, sum and sum of squares of the first output, for the input sin(0), sin(1), ...
#include <ATen/ATen.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: %s MODEL.pt2 T N D\n", argv[0]);
    return 2;
  }
  // Loading the library registers torch.ops.lstm_fused.*; the package finds them by name.
  if (dlopen(LSTM_FUSED_OPS, RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  try {
    torch::inductor::AOTIModelPackageLoader model(argv[1]);
    const int64_t steps = std::atoll(argv[2]), rows = std::atoll(argv[3]);
    const int64_t features = std::atoll(argv[4]);
    const at::Tensor input = at::arange(steps * rows * features, at::kFloat).sin();
    const std::vector<at::Tensor> results = model.run({input.view({steps, rows, features})});
    const at::Tensor y = results.at(0).to(at::kDouble);
    std::printf("%ld %ld %ld %.6f %.6f\n", long(y.size(0)), long(y.size(1)), long(y.size(2)),
                y.sum().item<double>(), y.square().sum().item<double>());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
