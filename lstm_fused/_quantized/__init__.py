# SPDX-License-Identifier: BSD-3-Clause
"""What `lstm_fused.quantized` and `lstm_fused.quantize` are made of."""
