# SPDX-License-Identifier: BSD-3-Clause
#
# liblstm_fused.so, the C interface to streams (lstm_fused/include/lstm_fused.h), which needs neither
# torch nor Python; and what find_package(lstm_fused) finds, where the package and where a prefix of
# one's own is:
#   cmake -S . -B build -DCMAKE_INSTALL_PREFIX=... && cmake --build build && \
#     cmake --install build --component c
include(CMakePackageConfigHelpers)

file(STRINGS lstm_fused/__init__.py lstm_fused_version REGEX "^__version__")
string(REGEX REPLACE "^__version__ = \"([0-9.]+).*$" "\\1" lstm_fused_version
                     "${lstm_fused_version}")

add_library(lstm_fused_c SHARED csrc/c_api/lstm_fused.cpp)
set_target_properties(lstm_fused_c PROPERTIES OUTPUT_NAME lstm_fused)
target_include_directories(lstm_fused_c PUBLIC lstm_fused/include)
target_link_libraries(lstm_fused_c PRIVATE lstm_fused_core)
target_compile_definitions(lstm_fused_c PRIVATE LSTM_FUSED_VERSION="${lstm_fused_version}")
# Programs in C need no C++ library beside it, and meet no symbol but those of the header.
target_link_options(lstm_fused_c PRIVATE -Wl,--exclude-libs,ALL -Wl,-z,defs)
if(NOT LSTM_SANITIZE)
  # Without --gc-sections a fifth of the library is parts of libstdc++ that nothing calls, some of which
  # ask for a newer glibc than the rest.
  target_link_options(lstm_fused_c PRIVATE -static-libstdc++ -static-libgcc -Wl,--gc-sections)
endif()

set(config_version "${CMAKE_CURRENT_BINARY_DIR}/lstm_fused-config-version.cmake")
write_basic_package_version_file("${config_version}" VERSION "${lstm_fused_version}"
                                 COMPATIBILITY SameMinorVersion)
foreach(component IN ITEMS c python)
  # In the Python package everything lies in its folder; setup.py takes the header from there.
  set(prefix "")
  if(component STREQUAL "python")
    set(prefix "lstm_fused/")
  else()
    install(FILES lstm_fused/include/lstm_fused.h DESTINATION include COMPONENT c)
  endif()
  install(TARGETS lstm_fused_c LIBRARY DESTINATION "${prefix}lib" COMPONENT ${component})
  install(FILES cmake/lstm_fused-config.cmake "${config_version}"
          DESTINATION "${prefix}lib/cmake/lstm_fused" COMPONENT ${component})
endforeach()
