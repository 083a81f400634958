# SPDX-License-Identifier: BSD-3-Clause
"""torch.compile of the loop over nn.LSTMCell or, for variants, over a cell with an option.

The compiler unrolls the loop, and its time grows with T: some seconds for a few steps, minutes for
a hundred. So the whole loop is compiled where T is small, and one step of it elsewhere; the row
says which.
"""

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.case import Case
from benchmarks.data import Data
from benchmarks.peers import variant_loop
from benchmarks.peers.base import Call, Setting
from benchmarks.peers.cell_loop import leaves_of, make_cell, make_loop
from benchmarks.peers.torch_kit import Forward, checked_in_evaluation, make_call

# 8 steps compile in about 10 s (with gradients 20 s) on 2 cores.
UNROLLED_STEPS = 8


def prepare(case: Case, data: Data, setting: Setting) -> Call:
    if case.variant:
        variant, inputs = variant_loop.make_cell(case, data, setting)
        make = partial(variant_loop.make_loop, variant, inputs)
        forward, note = _compile(case, make, variant)
        call = make_call(case, inputs, forward, variant_loop.leaves_of(variant), note)
        return checked_in_evaluation(case, call, variant)
    cell, inputs = make_cell(case, data, setting)
    forward, note = _compile(case, lambda step: make_loop(case, step, inputs), cell)
    return make_call(case, inputs, forward, leaves_of(cell), note)


def _compile(
    case: Case, make: Callable[[Callable], Forward], step: Callable
) -> tuple[Forward, str]:
    """The loop that `make` makes of a step, compiled, and a note on what was."""
    torch.compiler.reset()
    if case.T <= UNROLLED_STEPS:
        return torch.compile(make(step), dynamic=False), "the whole loop compiled"
    note = f"one step compiled, the loop in Python (T > {UNROLLED_STEPS})"
    return make(torch.compile(step, dynamic=False)), note
