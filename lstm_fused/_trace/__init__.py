# SPDX-License-Identifier: BSD-3-Clause
"""Gate traces: recording them, what they say in numbers, and how they are shown."""
