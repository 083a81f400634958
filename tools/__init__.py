# SPDX-License-Identifier: BSD-3-Clause
"""Programs for who works on the kernels; they import nothing from tests or benchmarks."""
