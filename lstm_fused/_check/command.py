# SPDX-License-Identifier: BSD-3-Clause
"""Runs the check on all devices, and prints what a report needs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from lstm_fused._check.kernels import (
    Kernel,
    kernels_of,
    no_checks_before_first_use,
    use,
    why_not_taken,
)
from lstm_fused._check.options import find_option_errors
from lstm_fused._check.packed import find_packed_errors, make_packed
from lstm_fused._check.problem import Errors, Inputs, find_errors, make_step
from lstm_fused._check.table import Row, Times, format_table
from lstm_fused._command.environment import (
    describe_device,
    describe_environment,
    find_devices,
    why_absent,
)
from lstm_fused._ops import native
from lstm_fused.devices import check_cuda
from lstm_fused.module import FusedLSTM

_SECONDS = 0.2  # for which each step is timed

_LEGEND = (
    "forward, backward: the largest error against float64, of all results and gradients, as a "
    "share\nof what is allowed (twice nn.LSTM's error and a few units of rounding): at most 1 is "
    "right.\nµs a step: the time of a call, divided by its steps of time; training: forward and "
    "backward.\noptions, norms: cells with options, without layer_norm and with it.\n"
    "packed weights: as quantize makes them, against float64 with the weights that they keep."
)

_FIND_ERRORS = {
    "": find_errors,
    "options": find_option_errors,
    "norms": find_option_errors,
    "packed weights": find_packed_errors,
}


def check(device: torch.device | None = None, timed: bool = True) -> int:
    """Checks every kernel, and prints a table.

    Args:
        device: the device to check; None: every CUDA device, or the CPU where there is none.
        timed: measure times too.

    Returns:
        0, or 1 where a kernel is wrong or fails, or where there are none.
    """
    for line in describe_environment():
        print(line)
    problem = why_unusable(device)
    if problem:
        print(problem)
        return 1
    rows = []
    for found in [device] if device else find_devices():
        print(f"{found}: {describe_device(found)}")
        with no_checks_before_first_use():
            for kernel in kernels_of(found):
                print(f"  {kernel.label}, {kernel.kind}", file=sys.stderr, flush=True)
                rows.append(check_kernel(kernel, found, timed))
    print(f"\n{format_table(rows)}\n\n{_LEGEND}")
    wrong = sum(row.is_wrong for row in rows)
    print(f"\n{wrong} of {len(rows)} are wrong" if wrong else "\nall is right")
    return 1 if wrong else 0


def why_unusable(device: torch.device | None) -> str:
    """Why nothing can be checked; empty: it can."""
    if native.compiled is None:
        return "the compiled kernels did not load; the slow pure-PyTorch fallback runs"
    devices = [device] if device else find_devices()
    if any(found.type == "cuda" for found in devices) and native.compiled_cuda is None:
        return f"no CUDA kernels: {native.cuda_problem}"
    return next(filter(None, map(why_absent, devices)), "")


def check_kernel(kernel: Kernel, device: torch.device, timed: bool) -> Row:
    """A row of the table. An error is its note: other kernels are still to be checked."""
    name = str(device)
    try:
        with use(kernel, device):
            refusals = {p: why_not_taken(kernel, p, device) for p in kernel.problems}
            problems = [p for p, refusal in refusals.items() if not refusal]
            if not problems:
                note = refusals[kernel.problems[0]]
                is_off = "off on this device" in note
                return Row(name, kernel.label, kernel.kind, note=note, is_fault=is_off)
            find = _FIND_ERRORS[kernel.what]
            found = [find(problem, kernel.kind, device) for problem in problems]
            _check_waits(device)
            backward = [errors.backward for errors in found if errors.backward is not None]
            errors = Errors(max(e.forward for e in found), max(backward, default=None))
            ours, theirs = (
                time_steps(module_type, kernel, device) if timed else None
                for module_type in (FusedLSTM, nn.LSTM)
            )
            return Row(name, kernel.label, kernel.kind, errors, ours, theirs)
    except RuntimeError as error:
        return Row(name, kernel.label, kernel.kind, note=str(error), is_fault=True)


def _check_waits(device: torch.device) -> None:
    if device.type == "cuda":
        check_cuda(device)


def time_steps(module_type: type[nn.Module], kernel: Kernel, device: torch.device) -> Times:
    """The times of a step of a kernel's problem."""
    problem = kernel.timed()
    if kernel.what == "packed weights":
        infer = (
            _packed_step(kernel)
            if module_type is FusedLSTM
            else make_step(module_type, problem, "float32", device, False)
        )
        return Times(time_call(infer, device) / problem.steps, None)
    seconds = [
        time_call(make_step(module_type, problem, kernel.kind, device, training), device)
        for training in (False, True)
    ]
    return Times(*(s / problem.steps for s in seconds))


def _packed_step(kernel: Kernel) -> Callable[[], None]:
    inputs = Inputs(kernel.timed(), "float32")
    module = make_packed(inputs.problem, kernel.kind, inputs)
    return lambda: module(inputs.x)


def time_call(call: Callable[[], None], device: torch.device) -> float:
    """Seconds of a call: the best of a few averages."""

    def measure(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - begin) / count

    seconds = min(measure(1), measure(1))
    if seconds > _SECONDS:
        return seconds
    rounds = 5
    count = max(1, int(_SECONDS / rounds / seconds))
    return min(measure(count) for _ in range(rounds))
