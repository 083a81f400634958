# SPDX-License-Identifier: BSD-3-Clause
"""The emulated device and its sample kernels; and one that nobody has tried, for the product's."""

from collections.abc import Iterator

import pytest
from kit.emulated import CHECKED_TARGET, emulated_ops
from kit.tried_device import Tried

from tools.cuda_on_cpu.device import FACTS_H100, Device
from tools.cuda_on_cpu.samples import ARCHS, Samples, library, the_device

_FACTS = {**FACTS_H100, "sm_count": 4}


@pytest.fixture
def device() -> Iterator[Device]:
    device = the_device()
    device.set(**_FACTS, seed=1, strict_memory=1, race_check=0, statistics=0, mutation=0)
    device.set(refuse_cooperative=0, stall_block=-1, stall_after=0, weak_memory=0)
    device.clear_error()
    device.clear_races()
    device.clear_statistics()
    yield device
    device.clear_error()


@pytest.fixture(params=ARCHS, ids=lambda arch: f"compute_{arch}")
def samples(device: Device, request: pytest.FixtureRequest) -> Samples:
    return library("samples", request.param)


@pytest.fixture(params=ARCHS, ids=lambda arch: f"compute_{arch}")
def checked(device: Device, request: pytest.FixtureRequest) -> Samples:
    device.set(race_check=1)
    return library("checked", request.param)


@pytest.fixture
def tried() -> Iterator[Tried]:
    """Persistent kernels are taken whatever the estimates say."""
    found = Tried(emulated_ops(CHECKED_TARGET))
    with found.ops.use("persistent"):
        found.device.set(sm_count=20)
        found.forget()
        yield found
        found.forget()
