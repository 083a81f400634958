# SPDX-License-Identifier: BSD-3-Clause
"""
Beats of music
==============

BeatNet's pretrained network listens to music frame by frame, by two LSTM layers whose state stays
from call to call, and says where a beat or a downbeat falls. The weights and the piece, a drum at
120 beats a minute, come with the package ``BeatNet`` (CC BY 4.0).
"""

from importlib.metadata import distribution
from timeit import repeat

import matplotlib.pyplot as plt
import numpy as np
import soundfile
import torch
from BeatNet.model import BDA
from scipy.signal import resample_poly

import lstm_fused

RATE, HOP, WINDOW = 22050, 441, 1411  # samples: a second, from frame to frame (20 ms), in a frame
files = distribution("BeatNet").locate_file("BeatNet")


# %%
# The features, as the package describes them: magnitudes in 24 triangular bands an octave, their
# logarithm, and by how much it rises from frame to frame.
def filters():
    """The bands, (FFT bins, bands)."""
    bins = np.fft.rfftfreq(WINDOW - 1, 1 / RATE)[:-1]
    steps = np.arange(np.floor(24 * np.log2(30 / 440)), np.ceil(24 * np.log2(17000 / 440)))
    wanted = 440 * 2 ** (steps / 24)
    wanted = wanted[(wanted >= 30) & (wanted <= 17000)]
    at = np.searchsorted(bins, wanted).clip(1, len(bins) - 1)
    at = np.unique(at - (wanted - bins[at - 1] < bins[at] - wanted))
    bands = []
    for start, center, stop in zip(at[:-2], at[1:-1], at[2:], strict=True):
        if stop - start < 2:
            center, stop = start, start + 1
        band = np.zeros(len(bins))
        band[start:center] = np.linspace(0, 1, center - start, endpoint=False)
        band[center:stop] = np.linspace(1, 0, stop - center, endpoint=False)
        bands.append(band / band.sum())
    return torch.tensor(np.array(bands).T, dtype=torch.float32)


def features(sound):
    window = torch.tensor(np.hanning(WINDOW), dtype=torch.float32)
    padded = torch.nn.functional.pad(sound, (WINDOW // 2, WINDOW // 2 + 1))
    spectrum = torch.fft.fft(padded.unfold(0, WINDOW, HOP) * window)[:, : WINDOW // 2].abs()
    levels = torch.log10(spectrum @ filters() + 1)
    rises = (levels[1:] - levels[:-1]).clamp(min=0)
    return torch.cat([levels, torch.nn.functional.pad(rises, (0, 0, 1, 0))], 1)


sound, rate = soundfile.read(files / "test_data" / "808kick120bpm.mp3")
sound = resample_poly(sound.mean(1) if sound.ndim == 2 else sound, RATE, rate)
x = features(torch.tensor(sound, dtype=torch.float32))
print(f"{len(sound) / RATE:.0f} seconds, {len(x)} frames with {x.shape[1]} features")

# %%
# One line converts the network, which goes on to keep its state itself.
model = BDA(272, 150, 2, "cpu").eval()
model.load_state_dict(torch.load(files / "models" / "model_1_weights.pt", weights_only=True))
model = lstm_fused.convert(model)


def clear(network):
    network.hidden, network.cell = torch.zeros(2, 1, 150), torch.zeros(2, 1, 150)


def listen(network):
    """Frame by frame, as from a microphone. Probabilities of beat, downbeat and neither, (T, 3)."""
    clear(network)
    return torch.cat([network(frame[None, None])[0].T for frame in x]).softmax(1)


with torch.inference_mode():
    heard = listen(model)
    clear(model)
    torch.testing.assert_close(heard, model(x[None])[0].T.softmax(1), atol=1e-4, rtol=0)


# %%
# What it saves: the LSTM's part of a frame, by nn.LSTM and by a stream.
def best_time(step, rows):
    times = repeat(lambda: [step(row) for row in rows], number=1, repeat=3)
    return 1e6 * min(times) / len(rows)


with torch.inference_mode():
    rows = torch.randn(500, 1, 150)
    plain, state = model.lstm.to_torch(), (torch.zeros(2, 1, 150), torch.zeros(2, 1, 150))
    alone = best_time(lambda row: plain(row[None], state), rows)
    stream = best_time(model.lstm.stream(1).step, rows)
print(f"a frame, of 20 ms: nn.LSTM {alone:.0f} µs, stream {stream:.0f} µs")

# %%
# Beats are the peaks of what was heard, and the distance of most is half a second.
beat = heard[:, :2].sum(1)
peaks = (beat[1:-1] > 0.3) & (beat[1:-1] >= beat[:-2]) & (beat[1:-1] > beat[2:])
moments = (peaks.nonzero().flatten() + 1) * HOP / RATE
tempo = 60 / moments.diff().median().item()
print(f"{len(moments)} beats, {tempo:.0f} a minute")
assert abs(tempo - 120) < 3

figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
shown = slice(0, int(8 * RATE / HOP))
seconds = torch.arange(len(x)) * HOP / RATE
axes.plot(
    np.arange(8 * RATE)[::8] / RATE, sound[: 8 * RATE : 8] / 2, color="lightgray", linewidth=0.5
)
axes.plot(seconds[shown], heard[shown, 0], "C0", label="beat")
axes.plot(seconds[shown], heard[shown, 1], "C3", label="downbeat")
axes.set(xlabel="seconds", ylabel="probability")
axes.legend(loc="lower right")
plt.show()
