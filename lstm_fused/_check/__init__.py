# SPDX-License-Identifier: BSD-3-Clause
"""`python -m lstm_fused check`: every kernel on every device, against float64 and nn.LSTM."""

from lstm_fused._check.command import check

__all__ = ["check"]
