# SPDX-License-Identifier: BSD-3-Clause
"""Streams: of modules, and of files."""
