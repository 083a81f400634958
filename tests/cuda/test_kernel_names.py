# SPDX-License-Identifier: BSD-3-Clause
"""Errors and warnings name the kernel that was launched, as the device knows it by its symbol."""

import re
from collections.abc import Callable, Iterator

import pytest
import torch
from kit.cases import LayerCase, make_inputs
from kit.emulated import CHECKED_TARGET, emulated_ops
from kit.options import OPTION_SETS, Case, make_option_inputs
from kit.ours import in_dtype
from kit.tried_device import Tried
from torch import Tensor

PLAIN = LayerCase(6, 9, 4, 136, bidirectional=True)
WITH_OPTIONS = Case(6, 9, 4, 136, directions=2)
# Multiprocessors that leave a group one tile, for which the backward has a kernel of its own, and
# two tiles; and the group's kernel of each call there.
KERNELS = (
    ("forward", 40, "persistent_group_forward_kernel"),
    ("forward", 10, "persistent_group_forward_kernel"),
    ("backward", 40, "persistent_group_backward_single_kernel"),
    ("backward", 10, "persistent_group_backward_kernel"),
    ("option forward", 40, "persistent_group_option_forward_kernel"),
    ("option backward", 40, "persistent_group_option_backward_kernel"),
    ("option backward", 10, "persistent_group_option_backward_kernel"),
)


@pytest.fixture(scope="module")
def tried_once() -> Iterator[Tried]:
    yield Tried(emulated_ops(CHECKED_TARGET))


@pytest.fixture
def tried(tried_once: Tried) -> Iterator[Tried]:
    """Persistent kernels are taken whatever the estimates say."""
    with tried_once.ops.use("persistent"):
        tried_once.forget()
        yield tried_once
        tried_once.device.set(statistics=0)
        tried_once.device.clear_statistics()
        tried_once.forget()


def call_of(kind: str, tried: Tried) -> Callable[[], list[Tensor]]:
    """A call of this kind, ready to be made more than once."""
    if "option" not in kind:
        inputs = make_inputs(in_dtype(PLAIN, torch.float16))
        if kind == "forward":
            return lambda: tried.forward(inputs)
        saved = tried.forward(inputs)
        return lambda: tried.backward(inputs, saved)
    layer = make_option_inputs(WITH_OPTIONS, OPTION_SETS["masks"], torch.float16)
    arguments = (layer.input, layer.h_0, layer.c_0, layer.weights, None, None, None, *layer.options)
    ops = tried.ops.ops
    if kind == "option forward":
        return lambda: list(ops.lstm_options_forward(*arguments, True, False))
    y, _, _, _, *rest = ops.lstm_options_forward(*arguments, True, False)
    grads = [layer.grads[name] for name in ("y", "h_n", "c_n")]
    needs = (False, True, False, True)
    return lambda: list(ops.lstm_options_backward(*grads, None, *arguments, y, *rest, *needs))


def group_kernels_of(call: Callable[[], list[Tensor]], tried: Tried) -> list[str]:
    """The names of the kernels of groups that a call launches."""
    tried.device.clear_statistics()
    tried.device.set(statistics=1)
    call()
    tried.device.set(statistics=0)
    names = (re.search(r"persistent_group_\w*?_kernel(?=I)", s) for s in tried.device.statistics)
    return [name[0] for name in names if name]


@pytest.mark.parametrize(("kind", "sm_count", "kernel"), KERNELS)
def test_a_wait_that_is_given_up(kind: str, sm_count: int, kernel: str, tried: Tried) -> None:
    tried.device.set(sm_count=sm_count)
    call = call_of(kind, tried)
    assert group_kernels_of(call, tried) == [kernel]
    tried.device.set(stall_block=1, stall_after=100)
    call()
    tried.device.set(stall_block=-1)
    with pytest.raises(RuntimeError, match=rf"in launch \d+, {kernel} of T = 6, N = 9, H = 136, "):
        call()


@pytest.mark.parametrize(("kind", "sm_count", "kernel"), KERNELS)
def test_a_launch_that_is_refused(kind: str, sm_count: int, kernel: str, tried: Tried) -> None:
    tried.device.set(sm_count=sm_count)
    call = call_of(kind, tried)
    assert group_kernels_of(call, tried) == [kernel]
    tried.device.set(refuse_cooperative=1)
    call()
    (warning,) = tried.warnings()
    assert warning.startswith(f"CUDA device 0: the driver must launch {kernel}, got cudaError")
