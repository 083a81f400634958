# SPDX-License-Identifier: BSD-3-Clause
"""How `lstm_fused.convert` and `revert` find, judge and swap modules."""
