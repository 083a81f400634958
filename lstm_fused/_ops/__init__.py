# SPDX-License-Identifier: BSD-3-Clause
"""The compiled ops: loading, shapes, checks, work."""
