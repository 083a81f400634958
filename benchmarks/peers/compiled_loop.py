# SPDX-License-Identifier: BSD-3-Clause
"""torch.compile of the loop over nn.LSTMCell.

The compiler unrolls the loop, and its time grows with T: some seconds for a few steps, minutes for
a hundred. So the whole loop is compiled where T is small, and one step of it elsewhere; the row
says which.
"""

import torch

from benchmarks.case import Case
from benchmarks.data import Data
from benchmarks.peers.base import Call, Setting
from benchmarks.peers.cell_loop import leaves_of, make_cell, make_loop
from benchmarks.peers.torch_kit import make_call

# 8 steps compile in about 10 s (with gradients 20 s) on 2 cores.
UNROLLED_STEPS = 8


def prepare(case: Case, data: Data, setting: Setting) -> Call:
    cell, inputs = make_cell(case, data, setting)
    torch.compiler.reset()
    if case.T <= UNROLLED_STEPS:
        forward = torch.compile(make_loop(case, cell, inputs), dynamic=False)
        note = "the whole loop compiled"
    else:
        forward = make_loop(case, torch.compile(cell, dynamic=False), inputs)
        note = f"one step compiled, the loop in Python (T > {UNROLLED_STEPS})"
    return make_call(case, inputs, forward, leaves_of(cell), note)
