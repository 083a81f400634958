# SPDX-License-Identifier: BSD-3-Clause
"""Latencies of the GPU of this machine: the sources here, compiled and run."""
