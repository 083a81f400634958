# SPDX-License-Identifier: BSD-3-Clause
# Sets up the CUDA language, and `cuda_architectures` from LSTM_CUDA_ARCHS.
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.4)
  message(FATAL_ERROR "The CUDA kernels need nvcc >= 12.4, got ${CMAKE_CUDA_COMPILER_VERSION}")
endif()
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)

# The architectures asked for, each as CMake writes it (90a-real), or all that this nvcc knows of:
#   80 A100, 86 RTX 30, 89 RTX 40 and L4, 90a H100 and H200, 100a B200, 120 RTX 50;
# and 90 as PTX, for devices between and after these (103, 110: an "a" runs on no other device).
set(cuda_architectures ${LSTM_CUDA_ARCHS})
if(NOT cuda_architectures)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE known_codes
                  COMMAND_ERROR_IS_FATAL ANY)
  foreach(arch 80 86 89 90a 100a 120)
    # nvcc lists sm_90 and not sm_90a, which is there wherever sm_90 is.
    string(REGEX REPLACE "a$" "" plain "${arch}")
    if(known_codes MATCHES "sm_${plain}(\n|$)")
      list(APPEND cuda_architectures "${arch}-real")
    endif()
  endforeach()
  list(APPEND cuda_architectures 90-virtual)
endif()
message(STATUS "lstm_fused: CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${cuda_architectures}")
