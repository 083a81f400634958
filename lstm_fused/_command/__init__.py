# SPDX-License-Identifier: BSD-3-Clause
"""What `python -m lstm_fused` does beside the check."""
