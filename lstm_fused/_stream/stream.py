# SPDX-License-Identifier: BSD-3-Clause
"""`Stream`: an LSTM taken through time a step at a time, with its state and no allocation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

State = tuple[Tensor, Tensor]

_CPU = torch.device("cpu")  # whatever torch.set_default_device says


class Stream:
    """A stack of LSTM layers that goes through time step by step and keeps its state.

    Made by the modules' `stream` methods, or by :func:`lstm_fused.load_stream` from a file. It
    holds a snapshot of the weights, packed for the kernels: later changes of the module's weights
    are not seen until :meth:`refresh`. A step runs in the calling thread and allocates nothing but
    its result, and not even that with ``out``.

    There are no gradients, and no `torch.compile`: it is called as it is from compiled code.

    A stream serves one thread at a time; :meth:`clone` makes another one.

    Attributes:
        batch_size: N, rows that take each step together.
        input_size: D, features of the input.
        output_size: features of the output: H, P with proj_size, or those of a linear head.
        dtype: of input, output and state.
    """

    def __init__(
        self,
        core: Any,
        batch_size: int,
        dtype: torch.dtype,
        *,
        make: Callable[[], tuple[Any, torch.dtype]] | None = None,
        batch_first: bool = False,
    ) -> None:
        self._core = core
        self._step = core.step
        self.batch_size = batch_size
        self.dtype = dtype
        self.input_size, self.output_size, self._states = core.sizes()
        self._x_shape = torch.Size((batch_size, self.input_size))
        self._y_shape = torch.Size((batch_size, self.output_size))
        # What results are made like, which takes half as long as from a shape: 0.7 microseconds.
        self._y = torch.empty(self._y_shape, dtype=dtype, device=_CPU)
        self._y_of_one = torch.empty(self._y_shape[1:], dtype=dtype, device=_CPU)
        # Makes the core anew, of a module's weights as they are then; and their dtype.
        self._make = make
        self._batch_first = batch_first

    def step(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """One step.

        Args:
            x: (N, D), or (D) where N is 1; of the stream's dtype, on the CPU.
            out: where the result goes, contiguous and of its shape and dtype; it must not overlap
                x. None: a new tensor.

        Returns:
            y: (N, output_size), or (output_size) where x is (D).

        Raises:
            TypeError: x or out is no tensor, or of another dtype.
            ValueError: a shape, a device or a layout that does not fit, or overlapping memory.
            RuntimeError: x requires gradients, or another thread is in `run`.
        """
        if not (
            type(x) is Tensor
            and x.shape == self._x_shape
            and x.dtype is self.dtype
            and x.is_cpu
            and x.is_contiguous()
            and not x.requires_grad
            and not x.is_neg()
        ):
            x = self._checked(x, "x", self._x_shape)
        if out is None:
            out = torch.empty_like(self._y if x.dim() == 2 else self._y_of_one)
        else:
            self._check_out(out, x, self._y_shape if x.dim() == 2 else self._y_shape[1:])
        self._step(x.data_ptr(), out.data_ptr())
        return out

    def run(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Many steps, one after the other, with the bits of that many calls of :meth:`step`.

        Args:
            x: (T, N, D), or (T, D) where N is 1; (N, T, D) for a stream of a module with
                ``batch_first``. T may be 0.
            out: as in :meth:`step`; not with ``batch_first`` and N > 1.

        Returns:
            y: of x's layout, with output_size features.

        Raises:
            TypeError, ValueError, RuntimeError: as :meth:`step`.
        """
        _check_tensor(x, "x")
        batch_first = self._batch_first and x.dim() == 3
        if x.dim() not in (2, 3):
            raise ValueError(f"x must have 2 or 3 dimensions, got {x.dim()}")
        if batch_first:
            if out is not None and self.batch_size > 1:
                raise ValueError("out needs a stream that is not batch_first, or batch_size 1")
            x = x.transpose(0, 1)
        steps = x.shape[0]
        x = self._checked(x, "x", (steps, *self._x_shape))
        shape = (steps, *(self._y_shape if x.dim() == 3 else self._y_shape[1:]))
        if out is None:
            y = torch.empty(shape, dtype=self.dtype, device=_CPU)
        else:
            y = out.transpose(0, 1) if batch_first else out
            self._check_out(y, x, shape)
        self._core.run(steps, x.data_ptr(), y.data_ptr())
        if out is not None:
            return out
        return y.transpose(0, 1) if batch_first else y

    def reset(self, mask: Tensor | None = None) -> None:
        """Sets the state to zero.

        Args:
            mask: bool (N): the rows that are reset; None: all.

        Raises:
            TypeError, ValueError: a mask that does not fit.
        """
        if mask is None:
            self._core.reset(0)
            return
        _check_tensor(mask, "mask")
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, got {mask.dtype}")
        if mask.shape != (self.batch_size,):
            raise ValueError(f"mask must have shape ({self.batch_size},), got {tuple(mask.shape)}")
        mask = mask.to("cpu").contiguous()
        self._core.reset(mask.data_ptr())

    @property
    def state(self) -> State:
        """h (layers, N, P) and c (layers, N, H), copies; may be set, to tensors of these shapes.

        Raises, when set: TypeError, ValueError for what does not fit. The state is then as before.
        """
        hidden_size, output_size = self._states[0]
        shape = (len(self._states), self.batch_size)
        h = torch.empty((*shape, output_size), dtype=self.dtype, device=_CPU)
        c = torch.empty((*shape, hidden_size), dtype=self.dtype, device=_CPU)
        for layer in range(len(self._states)):
            self._core.get_state(layer, h[layer].data_ptr(), c[layer].data_ptr())
        return h, c

    @state.setter
    def state(self, value: State) -> None:
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise TypeError("state must be a tuple of two tensors, (h, c)")
        hidden_size, output_size = self._states[0]
        shape = (len(self._states), self.batch_size)
        h = self._checked(value[0], "h", (*shape, output_size))
        c = self._checked(value[1], "c", (*shape, hidden_size))
        for layer in range(len(self._states)):
            self._core.set_state(layer, h[layer].data_ptr(), c[layer].data_ptr())

    def clone(self) -> Stream:
        """Another stream with these weights, which both share, and a copy of the state."""
        core = self._core.clone()
        return Stream(
            core, self.batch_size, self.dtype, make=self._make, batch_first=self._batch_first
        )

    def refresh(self) -> None:
        """Takes the module's weights as they are now; the state stays.

        Raises:
            RuntimeError: the stream is of a file.
            ValueError: the module has other sizes or another dtype by now.
        """
        if self._make is None:
            raise RuntimeError("refresh needs a stream of a module, and this one is of a file")
        core, dtype = self._make()
        if dtype != self.dtype:
            raise ValueError(f"refresh needs a module of {self.dtype}, got {dtype}")
        if core.sizes() != self._core.sizes():
            raise ValueError(
                f"refresh needs a module of the sizes {self._core.sizes()}, got {core.sizes()}"
            )
        core.copy_state(self._core)
        self._core, self._step = core, core.step

    def __deepcopy__(self, memo: dict[int, Any]) -> Stream:
        return self.clone()

    def __reduce__(self) -> Any:
        raise TypeError("a Stream cannot be pickled: save its module, or lstm_fused.save_stream it")

    def __repr__(self) -> str:
        return (
            f"Stream(batch_size={self.batch_size}, input_size={self.input_size}, "
            f"output_size={self.output_size}, layers={len(self._states)}, dtype={self.dtype})"
        )

    def _checked(self, x: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor as kernels may read it."""
        _check_tensor(x, name)
        if x.dtype != self.dtype:
            raise TypeError(f"{name} must be {self.dtype} as the stream's weights, got {x.dtype}")
        # The rows may be left out where there is one.
        unbatched = (*shape[:-2], shape[-1])
        if x.shape != shape and not (self.batch_size == 1 and x.shape == unbatched):
            raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(x.shape)}")
        if x.device.type != "cpu":
            raise ValueError(f"{name} must be on the CPU, got {x.device}")
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"a stream has no gradients, and {name} requires them: call it under "
                "torch.no_grad(), or detach the tensor"
            )
        return x.detach().resolve_neg().contiguous()

    def _check_out(self, out: Tensor, x: Tensor, shape: tuple[int, ...]) -> None:
        _check_tensor(out, "out")
        if out.dtype != self.dtype:
            raise TypeError(f"out must be {self.dtype} as the stream's weights, got {out.dtype}")
        if out.shape != shape or not out.is_cpu or not out.is_contiguous() or out.is_neg():
            raise ValueError(
                f"out must be a contiguous tensor of shape {tuple(shape)} on the CPU, got "
                f"{tuple(out.shape)} with strides {out.stride()} on {out.device}"
            )
        if out.requires_grad:
            raise RuntimeError("out requires gradients, and a stream has none")
        size, storage = out.numel() * out.element_size(), out.untyped_storage().nbytes()
        if storage < out.storage_offset() * out.element_size() + size:
            raise ValueError(
                f"out must have {size} bytes of storage, got {storage}: its memory was freed or "
                "resized"
            )
        begin, end = out.data_ptr(), out.data_ptr() + size
        if x.data_ptr() < end and begin < x.data_ptr() + x.numel() * x.element_size():
            raise ValueError("out must not overlap x")


def _check_tensor(value: object, name: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
