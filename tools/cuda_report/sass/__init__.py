# SPDX-License-Identifier: BSD-3-Clause
"""Reading of machine code (SASS, sm_80 and newer): decoding, control flow, interpretation."""
