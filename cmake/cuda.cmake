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

# The architectures asked for, each as CMake writes it (90-real), or all that this nvcc knows of:
#   80 A100, 86 RTX 30, 89 RTX 40 and L4, 90 H100 and H200, 100 B200, 120 RTX 50.
# Code for X.y runs on X.z of z >= y: that of 100 on 103 (B300), that of 120 on 121 (DGX Spark). No
# "a" or "f", for no kernel has an instruction that needs it, and code for an "a" runs nowhere else.
# PTX of compute_90 is for all other devices since 90: 110 (Thor), and what comes after 120. That of
# 120 would say no more, since no kernel asks for anything newer, and serve none of the others.
set(cuda_architectures ${LSTM_CUDA_ARCHS})
if(NOT cuda_architectures)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE known_codes
                  COMMAND_ERROR_IS_FATAL ANY)
  foreach(arch 80 86 89 90 100 120)
    if(known_codes MATCHES "sm_${arch}(\n|$)")
      list(APPEND cuda_architectures "${arch}-real")
    endif()
  endforeach()
  list(APPEND cuda_architectures 90-virtual)
endif()
message(STATUS "lstm_fused: CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${cuda_architectures}")
