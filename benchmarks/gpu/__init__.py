# SPDX-License-Identifier: BSD-3-Clause
"""Everything that wants a GPU, in one command: ``python -m benchmarks.gpu``, or ``make gpu``."""
