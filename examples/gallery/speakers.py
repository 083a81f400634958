# SPDX-License-Identifier: BSD-3-Clause
"""
Who speaks when
===============

Resemblyzer's speaker encoder, a pretrained LSTM of three layers, maps a second and a half of
speech to a point, and points of one voice lie close together. ``lstm_fused.convert`` makes it
faster, in one line. The recording, half a minute of a conversation of two, is
``pyannote.audio``'s.
"""

import warnings
import wave
from functools import partial
from importlib.metadata import distribution
from timeit import repeat

import matplotlib.pyplot as plt
import numpy as np
import torch

import lstm_fused

with warnings.catch_warnings():  # of what the package imports
    warnings.simplefilter("ignore")
    from resemblyzer import VoiceEncoder
    from resemblyzer.audio import wav_to_mel_spectrogram

RATE, FRAMES = 16000, 160  # samples a second; frames of 10 ms that the encoder sees at once
EVERY = 10  # frames from one window to the next

folder = distribution("pyannote.audio").locate_file("pyannote/audio/sample")
with wave.open(str(folder / "sample.wav")) as file:
    assert file.getframerate() == RATE
    sound = np.frombuffer(file.readframes(-1), np.int16).astype(np.float32) / 32768
frames = torch.from_numpy(wav_to_mel_spectrogram(sound))
windows = frames.unfold(0, FRAMES, EVERY).transpose(1, 2).contiguous()
middle = (torch.arange(len(windows)) * EVERY + FRAMES / 2) / 100  # in seconds
print(f"{len(windows)} windows of {FRAMES} frames with {windows.shape[2]} features")

# %%
# One line, in place: the encoder keeps its class, its Parameters and its methods.
encoder = VoiceEncoder("cpu", verbose=False)
with torch.no_grad():
    before = encoder(windows)
lstm_fused.convert(encoder)
print(encoder.lstm)
with torch.no_grad():
    points = encoder(windows)
torch.testing.assert_close(points, before, atol=1e-4, rtol=0)

# %%
# What it saves: one window, as in a live call, and sixteen.
plain = VoiceEncoder("cpu", verbose=False)
with torch.no_grad():
    for name, x in (("one window", windows[:1]), ("sixteen", windows[:16])):
        calls = (partial(model, x) for model in (plain, encoder))
        slow, fast = (1000 * min(repeat(call, number=1, repeat=5)) for call in calls)
        print(f"{name}: nn.LSTM {slow:.1f} ms, FusedLSTM {fast:.1f} ms")

# %%
# Two windows in which, by the notes, one person speaks alone stand for the two voices; every other
# window goes to the voice that is nearer.
notes = [line.split() for line in (folder / "sample.rttm").read_text().splitlines()]
spans = [(float(note[3]), float(note[3]) + float(note[4]), note[7]) for note in notes]
names = sorted({name for _, _, name in spans})


def share(name):
    """The share of each window in which that person speaks."""
    starts = middle - FRAMES / 200
    total = torch.zeros(len(middle))
    for begin, end, other in spans:
        if other == name:
            overlap = (starts + FRAMES / 100).clamp(max=end) - starts.clamp(min=begin)
            total += overlap.clamp(min=0)
    return total / (FRAMES / 100)


shares = torch.stack([share(name) for name in names])
models = torch.stack([points[row.argmax()] for row in shares - shares.flip(0)])
alike = points @ models.T
clear = (shares.max(0).values > 0.6) & (shares.min(0).values < 0.1)
right = (alike.argmax(1) == shares.argmax(0))[clear].float().mean().item()
print(f"the nearer voice is the noted one in {right:.0%} of {int(clear.sum())} clear windows")
assert right > 0.9

figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
for index, name in enumerate(names):
    axes.plot(middle, alike[:, index], f"C{index}", label=f"like voice {index + 1}")
    for begin, end, other in spans:
        if other == name:
            axes.axvspan(begin, end, ymax=0.06 + 0.03 * index, color=f"C{index}", alpha=0.5)
axes.set(xlabel="seconds (bars: who speaks, as noted)", ylabel="similarity")
axes.legend(loc="upper left")
plt.show()
