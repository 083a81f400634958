# SPDX-License-Identifier: BSD-3-Clause
#
# add_cuda_on_cpu_library(<name>
#   SOURCES a.cu b.cpp ...          what nvcc and the host compiler would build
#   PTX_ARCH 80                     the virtual architecture that is translated
#   [CHECKED]                       with the hooks of the race checker and of the statistics
#   [INCLUDE_DIRECTORIES ...] [LIBRARIES ...]
#   [DEFINITIONS ...]               of all sources
#   [HOST_DEFINITIONS ...])         of those that are no .cu
#
# Makes a shared library of nvcc's host objects and the translated kernels, over cuda_on_cpu, the
# emulated device. One library for each (PTX_ARCH, CHECKED): load as many as you like with
# RTLD_LOCAL, once libcuda_on_cpu.so has been loaded with RTLD_GLOBAL.
include_guard(GLOBAL)

set(CUDA_ON_CPU_DIR "${CMAKE_CURRENT_LIST_DIR}")
find_package(Python REQUIRED COMPONENTS Interpreter)
# CUDA_ON_CPU_NVCC is the path of nvcc.
file(REAL_PATH "${CUDA_ON_CPU_NVCC}" cuda_on_cpu_nvcc)
cmake_path(GET cuda_on_cpu_nvcc PARENT_PATH cuda_on_cpu_toolkit)
find_path(CUDA_ON_CPU_INCLUDE cuda_occupancy.h
          HINTS "${cuda_on_cpu_toolkit}/../include" /usr/local/cuda/include REQUIRED)
find_library(CUDA_ON_CPU_BOOST boost_context REQUIRED)

# Arithmetic as PTX has it: wrapping integers, and no contraction or reordering of floats. Built and
# run on the same machine.
set(cuda_on_cpu_flags -march=native -fwrapv -ffp-contract=off -fno-strict-aliasing -fno-math-errno
                      -fno-trapping-math)

file(GLOB cuda_on_cpu_sources CONFIGURE_DEPENDS "${CUDA_ON_CPU_DIR}/runtime/*.cpp")
add_library(cuda_on_cpu SHARED ${cuda_on_cpu_sources})
target_include_directories(cuda_on_cpu PUBLIC "${CUDA_ON_CPU_DIR}/runtime")
target_include_directories(cuda_on_cpu SYSTEM PUBLIC "${CUDA_ON_CPU_INCLUDE}")
target_compile_features(cuda_on_cpu PUBLIC cxx_std_17)
target_compile_options(cuda_on_cpu PRIVATE -O2 -g1 -Wall -Wextra ${cuda_on_cpu_flags})
target_link_libraries(cuda_on_cpu PRIVATE "${CUDA_ON_CPU_BOOST}" ${CMAKE_DL_LIBS})

file(GLOB cuda_on_cpu_translator CONFIGURE_DEPENDS "${CUDA_ON_CPU_DIR}/ptx/*.py")

function(add_cuda_on_cpu_library name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "CHECKED" "PTX_ARCH"
                        "SOURCES;INCLUDE_DIRECTORIES;DEFINITIONS;HOST_DEFINITIONS;LIBRARIES")
  list(TRANSFORM arg_INCLUDE_DIRECTORIES PREPEND "-I" OUTPUT_VARIABLE nvcc_flags)
  foreach(definition IN LISTS arg_DEFINITIONS)
    list(APPEND nvcc_flags "-D${definition}")
  endforeach()
  # Checked and unchecked libraries share what nvcc makes of the same source with the same flags.
  string(MD5 key "${nvcc_flags}")
  string(SUBSTRING "${key}" 0 8 key)
  set(checked_flag "")
  if(arg_CHECKED)
    set(checked_flag --checked)
  endif()

  set(sources "")
  foreach(source IN LISTS arg_SOURCES)
    if(NOT source MATCHES "\\.cu$")
      list(APPEND sources "${source}")
      continue()
    endif()
    cmake_path(ABSOLUTE_PATH source BASE_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}" NORMALIZE)
    cmake_path(GET source STEM stem)
    string(MD5 path "${source}")
    string(SUBSTRING "${path}" 0 8 path)
    set(base "${CMAKE_CURRENT_BINARY_DIR}/sm_${arg_PTX_ARCH}/${stem}-${path}-${key}")
    get_property(is_known GLOBAL PROPERTY "cuda_on_cpu:${base}")
    if(NOT is_known)
      set_property(GLOBAL PROPERTY "cuda_on_cpu:${base}" ON)
      add_custom_command(
        OUTPUT "${base}.o" "${base}.ptx" "${base}.log"
        COMMAND Python::Interpreter "${CUDA_ON_CPU_DIR}/run_nvcc.py" "${CUDA_ON_CPU_NVCC}"
                "${source}" "${base}" --arch ${arg_PTX_ARCH} --flags ${nvcc_flags}
        DEPENDS "${source}" "${CUDA_ON_CPU_DIR}/run_nvcc.py"
        DEPFILE "${base}.d"
        COMMENT "nvcc ${stem}.cu for compute_${arg_PTX_ARCH}"
        VERBATIM)
    endif()
    set(cpp "${CMAKE_CURRENT_BINARY_DIR}/${name}/${stem}-${path}.ptx.cpp")
    add_custom_command(
      OUTPUT "${cpp}"
      COMMAND "${CMAKE_COMMAND}" -E env "PYTHONPATH=${CUDA_ON_CPU_DIR}/../.."
              $<TARGET_FILE:Python::Interpreter> -m tools.cuda_on_cpu.ptx "${base}.ptx" "${cpp}"
              --name "${stem}.cu" --ptxas-log "${base}.log" ${checked_flag}
      DEPENDS "${base}.ptx" "${base}.log" ${cuda_on_cpu_translator}
      COMMENT "translate ${stem}.ptx of compute_${arg_PTX_ARCH}"
      VERBATIM)
    set_source_files_properties("${cpp}" PROPERTIES
                                COMPILE_OPTIONS "-O1;-w;${cuda_on_cpu_flags}")
    set_source_files_properties("${base}.o" PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
    list(APPEND sources "${base}.o" "${cpp}")
  endforeach()

  add_library(${name} SHARED ${sources})
  target_include_directories(${name} PRIVATE ${arg_INCLUDE_DIRECTORIES})
  target_compile_definitions(${name} PRIVATE ${arg_DEFINITIONS} ${arg_HOST_DEFINITIONS})
  # No symbol of one library stands in for that of another.
  target_compile_options(${name} PRIVATE -fno-gnu-unique)
  target_link_options(${name} PRIVATE -Wl,-Bsymbolic)
  target_link_libraries(${name} PRIVATE cuda_on_cpu ${arg_LIBRARIES})
endfunction()
