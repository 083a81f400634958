# SPDX-License-Identifier: BSD-3-Clause
"""What two trained models lose by rounded weights, on data that they have not seen."""

import copy
import math
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from kit.quantized import WEIGHTS
from torch import Tensor, nn
from torch.nn import functional as F

from lstm_fused import FusedLSTM, QuantizedLSTM, quantize


class Model(nn.Module):
    """(N, T, D) to scores (N, T, classes), and a new state."""

    def __init__(self, inputs: nn.Module, features: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.lstm = FusedLSTM(features, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, state = self.lstm(self.inputs(x), state)
        return self.head(y), state


def rounded(model: nn.Module, weights: torch.dtype) -> nn.Module:
    own = quantize(copy.deepcopy(model), weights)
    assert isinstance(own.lstm, QuantizedLSTM) and own.lstm.weights == weights
    return own


def test_text_loses_less_than_a_hundredth_of_a_bit() -> None:
    """Bits a character of Python's help, by a small model of examples/generate_text.py."""
    torch.manual_seed(0)
    text = "\n".join(topics[name] for name in sorted(topics))[:300_000]
    alphabet = sorted(set(text))
    numbers = {character: number for number, character in enumerate(alphabet)}
    streams = torch.tensor([numbers[character] for character in text]).unflatten(0, (32, -1))
    train, held_out = streams[:28], streams[28:]
    model = Model(nn.Embedding(len(alphabet), 32), 32, 96, len(alphabet))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for start in range(0, 150 * 50, 50):
        piece = train[:, start : start + 51]
        loss = F.cross_entropy(model(piece[:, :-1])[0].flatten(0, 1), piece[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()

    @torch.no_grad()
    def bits(own: nn.Module) -> float:
        scores, _ = own(held_out[:, :-1])
        loss = F.cross_entropy(scores.double().flatten(0, 1), held_out[:, 1:].flatten())
        return float(loss) / math.log(2)

    exact = bits(model)
    assert exact < 3.2, "the model has learned nothing: an untrained one has 6.6"
    for weights in WEIGHTS:
        assert bits(rounded(model, weights)) - exact < 0.01, weights


def test_digits_lose_less_than_a_third_of_a_point() -> None:
    """Accuracy on scikit-learn's digits, read row by row."""
    datasets = pytest.importorskip("sklearn.datasets")
    torch.manual_seed(0)
    images, labels = datasets.load_digits(return_X_y=True)
    order = torch.randperm(len(labels))
    images = torch.tensor(images / 16, dtype=torch.float32).unflatten(1, (8, 8))[order]
    labels = torch.tensor(labels)[order]
    split = 1000
    model = Model(nn.Identity(), 8, 96, 10)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(15):
        for rows in torch.randperm(split).split(50):
            loss = F.cross_entropy(model(images[rows])[0][:, -1], labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()

    @torch.no_grad()
    def accuracy(own: nn.Module) -> float:
        scores, _ = own(images[split:])
        return float((scores[:, -1].argmax(1) == labels[split:]).double().mean())

    exact = accuracy(model)
    assert exact > 0.9
    for weights in WEIGHTS:
        assert exact - accuracy(rounded(model, weights)) < 0.003, weights
