# SPDX-License-Identifier: BSD-3-Clause
"""What is known of the CUDA kernels without a GPU; ``python -m tools.cuda_report``."""
