# SPDX-License-Identifier: BSD-3-Clause
# find_package(lstm_fused): gives lstm_fused::lstm_fused, the C interface to streams.
get_filename_component(lstm_fused_PREFIX "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
if(NOT TARGET lstm_fused::lstm_fused)
  add_library(lstm_fused::lstm_fused SHARED IMPORTED)
  set_target_properties(lstm_fused::lstm_fused PROPERTIES
    IMPORTED_LOCATION "${lstm_fused_PREFIX}/lib/liblstm_fused.so"
    INTERFACE_INCLUDE_DIRECTORIES "${lstm_fused_PREFIX}/include")
endif()
