# SPDX-License-Identifier: BSD-3-Clause
"""make_package.py PATH.pt2: a small model as a package of AOTInductor, for any T and N."""

import sys

import torch
from torch import Tensor, nn

from lstm_fused import FusedLSTM

INPUT_SIZE = 8


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = FusedLSTM(INPUT_SIZE, 16, num_layers=2, bidirectional=True)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.lstm(x)[0])
        return y


def make_package(path: str) -> Model:
    torch.manual_seed(0)
    model = Model().eval()
    steps, rows = torch.export.Dim("T", min=1, max=4096), torch.export.Dim("N", min=1, max=4096)
    with torch.no_grad():
        program = torch.export.export(
            model, (torch.randn(20, 4, INPUT_SIZE),), dynamic_shapes=({0: steps, 1: rows},)
        )
        torch._inductor.aoti_compile_and_package(program, package_path=path)
    return model


if __name__ == "__main__":
    make_package(sys.argv[1])
