# SPDX-License-Identifier: BSD-3-Clause
"""Where the package meets torch's inner workings: private names, module state, autocast, forks."""
