# SPDX-License-Identifier: BSD-3-Clause
"""
Streaming voice activity
========================

Silero's voice activity detector says, every 32 ms, how likely it is that someone speaks. Its
weights come with the package ``silero-vad``; its LSTM is converted in one line and runs as a
stream. The recording, half a minute of a conversation with notes of who spoke when, is
``pyannote.audio``'s.
"""

import wave
from importlib.metadata import distribution
from timeit import repeat

import matplotlib.pyplot as plt
import numpy as np
import torch
from silero_vad import load_silero_vad
from torch import nn

import lstm_fused

RATE, CHUNK, CONTEXT = 16000, 512, 64  # samples a second, and in a step: new and repeated ones


# %%
# The package has the network as TorchScript. Here it is written in modules, with names of our own:
# the magnitudes of a short-time Fourier transform, four convolutions, an ``nn.LSTMCell``, and a
# linear layer to the probability.
class VoiceActivity(nn.Module):
    def __init__(self):
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def encode(self, chunks):
        """Chunks of CONTEXT + CHUNK samples, (N, 576), to the cell's input, (N, 128)."""
        spectrum = self.stft_conv(nn.functional.pad(chunks[:, None], (0, 64), mode="reflect"))
        x = spectrum.unflatten(1, (2, 129)).square().sum(1).sqrt()
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = layer(x).relu()
        return x.squeeze(2)

    def decide(self, h):
        return self.final_conv(h.relu()[..., None]).sigmoid().flatten()


model = VoiceActivity().eval()
original = load_silero_vad()  # for 16000 and 8000 samples a second
weights = [w for name, w in original.state_dict().items() if name.startswith("_model.")]
model.load_state_dict(dict(zip(model.state_dict(), weights, strict=True)))

# %%
# One line makes its ``nn.LSTMCell`` a ``FusedLSTMCell``, which has streams.
model = lstm_fused.convert(model)

# %%
# The recording, cut into chunks, each with the end of the one before.
folder = distribution("pyannote.audio").locate_file("pyannote/audio/sample")
with wave.open(str(folder / "sample.wav")) as file:
    assert file.getframerate() == RATE
    sound = torch.tensor(np.frombuffer(file.readframes(-1), np.int16) / 32768, dtype=torch.float32)
sound = sound[: len(sound) // CHUNK * CHUNK]
chunks = nn.functional.pad(sound, (CONTEXT, 0)).unfold(0, CONTEXT + CHUNK, CHUNK)

# %%
# A stream keeps the state from chunk to chunk and allocates nothing.
with torch.no_grad():
    x = model.encode(chunks)
    stream = model.lstm_cell.stream(1)
    h = torch.cat([stream.step(step[None]) for step in x])
    likely = model.decide(h)

    # The package's own program says the same, chunk by chunk.
    theirs = torch.cat([original(chunk, RATE) for chunk in sound.split(CHUNK)]).flatten()
torch.testing.assert_close(likely, theirs, atol=1e-4, rtol=0)


# %%
# The time of the LSTM's part of one step, beside ``nn.LSTMCell``'s. A chunk lasts 32 ms, of which
# all but these microseconds are free for something else.
def best_time(step):
    times = repeat(lambda: [step(row[None]) for row in x], number=1, repeat=5)
    return 1e6 * min(times) / len(x)


plain = nn.LSTMCell(128, 128)
plain.load_state_dict(model.lstm_cell.state_dict())
state = (torch.zeros(1, 128), torch.zeros(1, 128))


def plain_step(row):
    global state
    state = plain(row, state)


with torch.no_grad():
    print(f"nn.LSTMCell {best_time(plain_step):.1f} µs, stream {best_time(stream.step):.1f} µs")

# %%
# Whether the detector is right, against the notes that come with the recording.
notes = [line.split() for line in (folder / "sample.rttm").read_text().splitlines()]
spoken = torch.zeros(len(likely), dtype=torch.bool)
middle = (torch.arange(len(likely)) + 0.5) * CHUNK / RATE
for note in notes:
    begin, length = float(note[3]), float(note[4])
    spoken |= (middle >= begin) & (middle < begin + length)
right = ((likely > 0.5) == spoken).float().mean().item()
print(f"{right:.0%} of the chunks as in the notes")
assert right > 0.85

figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 4), sharex=True, layout="constrained")
top.plot(torch.arange(len(sound))[::16] / RATE, sound[::16], color="gray", linewidth=0.5)
top.set(ylabel="sound")
bottom.fill_between(middle, spoken.float(), step="mid", alpha=0.25, label="noted")
bottom.plot(middle, likely, "C3", linewidth=1, label="detected")
bottom.set(xlabel="seconds", ylabel="speech", ylim=(0, 1.05))
bottom.legend(loc="upper left")
plt.show()
