# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA ops of lstm_fused on the emulated device."""
