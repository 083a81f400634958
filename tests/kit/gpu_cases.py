# SPDX-License-Identifier: BSD-3-Clause
"""Cases that only a real GPU is fast enough for: groups of many blocks, long sequences.

What they are compared with is computed on one core, in float16 at a hundredth of its float32 rate:
so steps are as few, and rows as many, as the variants of the kernels need.
"""

from kit.cases import LayerCase

LARGE = (
    LayerCase(20, 16, 32, 768),
    LayerCase(40, 33, 16, 256, bidirectional=True, lengths=tuple(range(8, 41))),
    LayerCase(300, 9, 16, 192, reset=0.05),
    LayerCase(8, 72, 64, 512, num_layers=2),  # several tiles of rows a group
    LayerCase(4, 24, 32, 1024),  # weights that registers have no room for
    LayerCase(3, 40, 32, 1024, bidirectional=True),  # forward and backward of different variants
    LayerCase(64, 1, 16, 384),
)
