# SPDX-License-Identifier: BSD-3-Clause
"""
Lines of a page
===============

Before text is read its lines must be found. kraken's pretrained layout model marks their baselines:
convolutions, then LSTMs through the rows and the columns of what those found. The weights come with
the package ``kraken`` (Apache 2.0); the four ``nn.LSTM`` are converted in one line.
"""

import io
import re
import textwrap
import time
from importlib.metadata import distribution
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import label
from torch import nn

import lstm_fused


# %%
# The network, as the file's own description has it (VGSL): ``Cr7,7,64,2,2 Gn32 Cr3,3,128,2,2 Gn32
# Cr3,3,128 Gn32 Cr3,3,256 Gn32 Cr3,3,256 Gn32 Lbx32 Lby32 Cr1,1,32 Gn32 Lby32 Lbx32 O2l4``.
class Sweep(nn.Module):
    """An LSTM in both directions through all rows of an image (1, C, H, W), or all columns."""

    def __init__(self, channels, along):
        super().__init__()
        self.lstm, self.along = nn.LSTM(channels, 32, bidirectional=True, batch_first=True), along

    def forward(self, image):
        image = image if self.along == "rows" else image.mT
        y, _ = self.lstm(image[0].permute(1, 2, 0))  # a batch of all rows
        y = y.permute(2, 0, 1)[None]
        return y if self.along == "rows" else y.mT


def convolution(channels, units, size, stride=1):
    layer = nn.Conv2d(channels, units, size, stride, padding=size // 2)
    return layer, nn.ReLU(), nn.GroupNorm(32, units)


model = nn.Sequential(
    *convolution(3, 64, 7, 2),
    *convolution(64, 128, 3, 2),
    *convolution(128, 128, 3),
    *convolution(128, 256, 3),
    *convolution(256, 256, 3),
    *(Sweep(256, "rows"), Sweep(64, "columns")),
    *convolution(64, 32, 1),
    *(Sweep(32, "columns"), Sweep(64, "rows")),
    nn.Conv2d(64, 4, 1),
).eval()


# %%
# The weights are in Core ML's format, a protocol buffer, of which this reads what is needed.
def read(message):
    """A protocol buffer's fields by their numbers; of each the values, ints or bytes."""
    stream, fields = io.BytesIO(message), {}

    def integer():
        (byte,) = stream.read(1)
        return byte if byte < 128 else byte - 128 + (integer() << 7)

    while stream.tell() < len(message):
        number, kind = divmod(integer(), 8)
        value = integer() if kind == 0 else stream.read(4 if kind == 5 else integer())
        fields.setdefault(number, []).append(value)
    return fields


def array(weights):
    return torch.frombuffer(bytearray(read(weights)[1][0]), dtype=torch.float32)


def arrays_of(layer):
    """A layer's weights, flat, in the order of torch's parameters."""
    if 100 in layer:  # a convolution
        return [array(read(layer[100][0])[number][0]) for number in (90, 91)]
    if 500 in layer:  # a normalization
        return [array(weights) for weights in read(layer[500][0])[20]]
    found = []
    for own in map(read, read(layer[430][0])[20] if 430 in layer else ()):  # an LSTM's directions
        w_ih, w_hh, bias = (
            torch.cat([array(own[first + gate][0]) for gate in range(4)]) for first in (1, 20, 40)
        )
        found += [w_ih, w_hh, bias, torch.zeros_like(bias)]  # the file has the biases' sum
    return found


(network,) = read(distribution("kraken").locate_file("kraken/blla.mlmodel").read_bytes())[500]
arrays = [own for layer in read(network)[1] for own in arrays_of(read(layer))]
for parameter, values in zip(model.parameters(), arrays, strict=True):
    parameter.data = values.view_as(parameter)

# %%
# A page in two columns, a little turned: Python's help on two of its statements.
page = Image.new("RGB", (900, 900), "white")
LINES = 18  # of each column
for left, topic, style in ((60, "for", "normal"), (480, "while", "italic")):
    font = ImageFont.truetype(findfont(FontProperties(family="DejaVu Serif", style=style)), 20)
    text = " ".join(re.sub(r"[*\"]", "", topics[topic]).split())
    for k, line in enumerate(textwrap.wrap(text, 33)[:LINES]):
        ImageDraw.Draw(page).text((left, 70 + 42 * k), line, "black", font, "ls")
page = page.rotate(1.5, Image.Resampling.BICUBIC, fillcolor="white")
image = 1 - torch.tensor(np.array(page), dtype=torch.float32).permute(2, 0, 1)[None] / 255


# %%
# One line converts the model. What it gives is the same; the times are those of the LSTMs alone.
def run(repeats=3):
    """The model's output, and the least milliseconds that its LSTMs took."""
    totals = []
    for _ in range(repeats):
        x, total = image, 0.0
        for layer in model:
            begin = time.perf_counter()
            x = layer(x)
            total += (time.perf_counter() - begin) * isinstance(layer, Sweep)
        totals.append(total)
    return x, 1000 * min(totals)


with torch.inference_mode():
    before, slow = run()
    model = lstm_fused.convert(model)
    after, fast = run()
torch.testing.assert_close(after, before, atol=1e-3, rtol=0)
print(f"nn.LSTM {slow:.0f} ms, FusedLSTM {fast:.0f} ms")

# %%
# Class 2 are the baselines: one for each line of each column.
heat = after[0, 2].sigmoid().numpy()
found = label(heat > 0.5)[1]
print(f"{found} lines found of {2 * LINES}")
assert abs(found - 2 * LINES) < 3
figure, axes = plt.subplots(figsize=(7, 7), layout="constrained")
axes.imshow(page)
axes.imshow(heat, "Reds", alpha=np.sqrt(heat) * 0.8, extent=(0, *page.size, 0), vmin=0, vmax=1)
axes.set_axis_off()
plt.show()
