# SPDX-License-Identifier: BSD-3-Clause
"""How `lstm_fused.onnx` reads graphs."""
