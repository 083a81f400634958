# SPDX-License-Identifier: BSD-3-Clause
"""The emulated device as one that nobody has tried: what it refuses, warns of and fails at."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from kit.cases import LayerInputs
from kit.emulated import EmulatedOps


class Tried:
    """A device that nobody has tried, and its ops."""

    def __init__(self, ops: EmulatedOps) -> None:
        self.ops, self.device, self.library = ops, ops.device, ops.library
        for name in ("refusal", "take_warnings", "take_wait_failure"):
            getattr(self.library, f"lstm_emulated_{name}").restype = ctypes.c_char_p
        self.library.lstm_emulated_set_wait_seconds.restype = ctypes.c_double

    def forget(self) -> None:
        """As a new process on a device that works."""
        self.device.set(stall_block=-1, stall_after=0, refuse_cooperative=0, mutation=0)
        self.device.set(garble_copied=0)
        self.device.clear_error()
        self.check_first_use(False)
        self.library.lstm_emulated_forget()

    def check_first_use(self, on: bool) -> None:
        self.library.lstm_emulated_set_first_use_checks(b"1" if on else b"0")

    def refusal(self, group: bool = True) -> str:
        return str(self.library.lstm_emulated_refusal(ctypes.c_bool(group)).decode())

    def warnings(self) -> list[str]:
        return str(self.library.lstm_emulated_take_warnings().decode()).splitlines()

    def take_wait_failure(self) -> str:
        return str(self.library.lstm_emulated_take_wait_failure().decode())

    def set_wait_seconds(self, seconds: float) -> float:
        return float(self.library.lstm_emulated_set_wait_seconds(ctypes.c_double(seconds)))

    @contextmanager
    def before_workspace(self, call: Callable[[], object]) -> Iterator[None]:
        """Have another call made within the next one, before that takes memory for a workspace."""
        function = ctypes.CFUNCTYPE(None)(call)
        self.library.lstm_emulated_set_before_workspace(function)
        try:
            yield
        finally:
            self.library.lstm_emulated_set_before_workspace(None)

    def launches(self) -> int:
        """Kernels launched since this was last asked."""
        count = self.device.get("kernel_launches")
        self.device.set(kernel_launches=0)
        return count

    def forward(self, inputs: LayerInputs) -> list[Tensor]:
        """y, h_n, c_n, the cell states, the gates and cells saved."""
        weights = list(inputs.weights.values())
        masks = (inputs.lengths, None, inputs.reset_mask)
        arguments = (inputs.input, inputs.h_0, inputs.c_0, weights, *masks)
        return list(self.ops.ops.lstm_forward(*arguments, True, True))

    def backward(self, inputs: LayerInputs, saved: list[Tensor]) -> list[Tensor]:
        """The gradients of the input and of the states."""
        y, _, _, _, gates, cells = saved
        grads = [inputs.grads[name] for name in ("y", "h_n", "c_n")]
        weights = list(inputs.weights.values())
        masks = (inputs.lengths, None, inputs.reset_mask)
        arguments = (inputs.input, inputs.h_0, inputs.c_0, weights, *masks)
        found = self.ops.ops.lstm_backward(
            *grads, None, *arguments, y, gates, cells, True, True, False
        )
        return list(found[:3])
