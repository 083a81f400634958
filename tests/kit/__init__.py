# SPDX-License-Identifier: BSD-3-Clause
"""What the tests share: the error budget (``numeric``) and the cases (``cases``)."""
