# SPDX-License-Identifier: BSD-3-Clause
"""
Reading words
=============

A network that reads printed words: convolutions look at a word's image from left to right, an LSTM
of two directions at what they found, and each of its steps names a letter or none. The weights come
with the package ``nano-ocr`` (MIT); its ``nn.LSTM`` is converted in one line. The words are those
of "The Zen of Python".
"""

import codecs
import contextlib
import io
import re
from functools import partial
from importlib.metadata import distribution
from timeit import repeat

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont
from torch import nn

import lstm_fused

LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.- "
HEIGHT, WIDTH = 32, 128  # pixels of an image as the network takes it


# %%
# The network is that of Shi, Bai and Yao (2017), "CRNN": where height is pooled away, width is kept
# for the LSTM's steps. Class 0 is "no letter", as connectionist temporal classification has it.
def block(channels, features, size=3, norm=False, pool=()):
    layers = [nn.Conv2d(channels, features, size, padding=size // 3)]
    layers += [nn.BatchNorm2d(features)] * norm
    return [*layers, nn.ReLU(), *(nn.MaxPool2d(*each) for each in pool)]


class WordReader(nn.Module):
    def __init__(self):
        super().__init__()
        halved, flattened = [(2, 2)], [(2, (2, 1), (0, 1))]
        self.cnn = nn.Sequential(
            *block(1, 64, pool=halved),
            *block(64, 128, pool=halved),
            *block(128, 256, norm=True),
            *block(256, 256, pool=flattened),
            *block(256, 512, norm=True, pool=flattened),
            *block(512, 512, size=2, norm=True),
        )
        self.rnn = nn.LSTM(512, 256, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(512, 1 + len(LETTERS))

    def features(self, images):
        """Images (N, 1, 32, 128), black -1 and white 1, to the LSTM's input, (N, 33, 512)."""
        return self.cnn(images).squeeze(2).transpose(1, 2)

    def forward(self, images):
        """Logarithms of probabilities, (N, 33, classes)."""
        y, _ = self.rnn(self.features(images))
        return self.fc(y).log_softmax(2)


model = WordReader().eval()
weights = distribution("nano-ocr").locate_file("nano_ocr/model/nano_ocr_ftr.pth")
model.load_state_dict(torch.load(weights, "cpu", weights_only=True))

# %%
# The words, of three letters and more, in six fonts, a little turned, with a grain as of paper. The
# network is made for images of one size, to which shorter words would be stretched too much.
with contextlib.redirect_stdout(io.StringIO()):  # an import that prints
    import this
words = re.findall(r"[A-Za-z]{3,}", codecs.decode(this.s, "rot13"))
styles = [
    FontProperties(family=family, style=style)
    for family in ("DejaVu Sans", "DejaVu Serif", "STIXGeneral")
    for style in ("normal", "italic")
]
fonts = [ImageFont.truetype(findfont(style), 40) for style in styles]
draw = np.random.default_rng(0)


def draw_word(word, font):
    left, top, right, bottom = font.getbbox(word)
    image = Image.new("L", (right - left + 16, bottom - top + 16), 255)
    ImageDraw.Draw(image).text((8 - left, 8 - top), word, 0, font)
    image = image.rotate(draw.uniform(-2, 2), Image.Resampling.BILINEAR, fillcolor=255)
    image = np.array(image.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR), np.float32)
    image += draw.normal(0, 15, image.shape)
    return torch.from_numpy(image.clip(0, 255).astype(np.float32) / 127.5 - 1)


images = torch.stack([draw_word(word, fonts[i % len(fonts)]) for i, word in enumerate(words)])
images = images.unsqueeze(1)


# %%
# One line converts the model. What it reads is what it read before.
def read(scores):
    """The word of the scores of classes (T, classes): repeats count once, class 0 not at all."""
    best = torch.unique_consecutive(scores.argmax(1)).tolist()
    return "".join(LETTERS[k - 1] for k in best if k > 0)


with torch.inference_mode():
    before = model(images)
    model = lstm_fused.convert(model)
    scores = model(images)
torch.testing.assert_close(scores, before, atol=1e-4, rtol=0)
found = [read(each) for each in scores]
right = np.mean([a == b for a, b in zip(words, found, strict=True)])
print(model.rnn)
print(f"{right:.1%} of {len(words)} words right; others:")
print(", ".join(f"{a} as {b}" for a, b in zip(words, found, strict=True) if a != b))
assert right > 0.9

# %%
# What it saves: the LSTM's part of one word, and of sixteen at once. The more words, the more of
# either's time goes into the same matrix products.
plain = model.rnn.to_torch()
with torch.inference_mode():
    x = model.features(images[:16])
    for name, part in (("one word", x[:1]), ("sixteen", x)):
        calls = (partial(lstm, part) for lstm in (plain, model.rnn))
        slow, fast = (1000 * min(repeat(call, number=1, repeat=9)) for call in calls)
        print(f"{name}: nn.LSTM {slow:.2f} ms, FusedLSTM {fast:.2f} ms")

# %%
# The letters as the LSTM's steps name them: few steps do, and most say that there is none.
shown = max(range(len(words)), key=lambda i: len(words[i]))
names = sorted(set(found[shown]), key=found[shown].index)
rows = scores[shown].exp()[:, [0, *(1 + LETTERS.index(name) for name in names)]]
figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 5), layout="constrained")
top.imshow(images[shown, 0], cmap="gray", aspect="auto")
top.set(title=f"read as {found[shown]}", xticks=[], yticks=[])
bottom.imshow(rows.T, cmap="Blues", aspect="auto", vmin=0, vmax=1)
bottom.set(xlabel="step of the LSTM, from left to right", ylabel="class")
bottom.set_yticks(range(len(rows[0])), ["none", *names])
plt.show()
