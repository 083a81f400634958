# SPDX-License-Identifier: BSD-3-Clause
"""An emulated CUDA device: nvcc's own output, run on the CPU. See README.md."""
