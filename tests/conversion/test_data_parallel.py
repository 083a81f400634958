# SPDX-License-Identifier: BSD-3-Clause
"""Replicas, as torch.nn.DataParallel makes them."""

from typing import Any

import torch
from kit.twins import D, assert_same, make_twins


def test_data_parallel_replica_computes_with_its_own_weights() -> None:
    x = torch.randn(6, 4, D, dtype=torch.float64)
    results = []
    modules: Any = make_twins(num_layers=2)
    for module in modules:
        replica = module._replicate_for_data_parallel()
        for name, parameter in module.named_parameters():
            setattr(replica, name, 2 * parameter.detach())
        replica._flat_weights = [getattr(replica, n) for n in replica._flat_weights_names]
        results.append(replica(x))
    assert_same(*results)
