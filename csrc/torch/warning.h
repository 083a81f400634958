// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <string>

namespace lstm_fused {

// Tells the user of something that goes on with less than it should: a RuntimeWarning of Python,
// which the user may have turned into an exception. Defined beside the module.
void warn_user(const std::string& text);

}  // namespace lstm_fused
