# SPDX-License-Identifier: BSD-3-Clause
"""
int8 against float32
====================

A classifier of hand-written digits, read row by row, is trained in float32; then its LSTM gets
weights of 8 and 16 bits. What is lost in accuracy, and what is saved in bytes and in time?
"""

import copy
from timeit import repeat

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import lstm_fused

torch.manual_seed(0)

# %%
# The images are scikit-learn's, 8 by 8 pixels: sequences of 8 rows.
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images / 16, dtype=torch.float32).unflatten(1, (8, 8))
train_x, test_x, train_y, test_y = train_test_split(
    images, torch.tensor(labels), test_size=0.25, random_state=0
)


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = lstm_fused.FusedLSTM(8, 128, batch_first=True)
        self.head = nn.Linear(128, 10)

    def forward(self, images):
        y, _ = self.lstm(images)
        return self.head(y[:, -1])


model = Reader()
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for _ in range(20):
    for rows in torch.randperm(len(train_x)).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(train_x[rows]), train_y[rows]).backward()
        optimizer.step()
model.eval()

# %%
# ``quantize`` replaces modules in place, so each type gets a copy. Only the weights are rounded;
# input, output and states stay float32.
models = {"float32": model}
for dtype in (torch.bfloat16, torch.float16, torch.int8):
    models[str(dtype).removeprefix("torch.")] = lstm_fused.quantize(copy.deepcopy(model), dtype)


def size(lstm):
    return sum(tensor.nbytes for tensor in lstm.state_dict().values())


with torch.no_grad():
    for name, own in models.items():
        right = (own(test_x).argmax(1) == test_y).float().mean()
        change = (own.lstm(test_x)[0] - model.lstm(test_x)[0]).abs().max()
        print(f"{name:8}  {right:.1%} right, outputs move by {change:.1e}, {size(own.lstm)} bytes")
        assert right > 0.95

# %%
# Time is saved where the weights' bytes are what bounds a step: with one row, and more so the less
# the weights fit into the caches near the core.
sizes = (64, 128, 256, 512)


def best_time(lstm, x):
    return min(repeat(lambda: lstm(x), number=1, repeat=15))


figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
with torch.no_grad():
    x = torch.randn(100, 1, 64)
    base = [lstm_fused.FusedLSTM(64, units) for units in sizes]
    plain = [best_time(lstm, x) for lstm in base]
    for dtype in (torch.bfloat16, torch.float16, torch.int8):
        packed = [lstm_fused.quantize(copy.deepcopy(lstm), dtype) for lstm in base]
        gains = [slow / best_time(own, x) for slow, own in zip(plain, packed, strict=True)]
        axes.plot(sizes, gains, "o-", label=str(dtype).removeprefix("torch."))
axes.axhline(1, color="gray", linewidth=0.8)
axes.set_xscale("log", base=2)
axes.set_xticks(sizes, [str(units) for units in sizes])
axes.set(xlabel="hidden units", ylabel="times as fast as float32", title="100 steps of one row")
axes.legend()
plt.show()
