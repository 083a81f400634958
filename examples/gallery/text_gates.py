# SPDX-License-Identifier: BSD-3-Clause
"""
What the gates of a text model do
=================================

A small character model is trained on Python's own help texts for some seconds; then
``lstm_fused.trace`` shows its gates, step by step.
"""

import re
import warnings

import matplotlib.pyplot as plt
import torch
from torch import nn

import lstm_fused

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pydoc_data.topics import topics

torch.manual_seed(0)
text = re.sub(r"[^\x20-\x7e\n]", "", "\n".join(topics[name] for name in sorted(topics)))
alphabet = sorted(set(text))
codes = torch.tensor([alphabet.index(letter) for letter in text[:330_000]])
held_out = text[330_000:330_160]


class Writer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(len(alphabet), 32)
        self.lstm = lstm_fused.FusedLSTM(32, 96, batch_first=True, forget_bias=1.0)
        self.head = nn.Linear(96, len(alphabet))

    def forward(self, codes, state=None):
        y, state = self.lstm(self.embedding(codes), state)
        return self.head(y), state


# %%
# The text runs as 32 parallel streams; the state at the end of a piece enters the next one.
model = Writer()
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
streams = codes[: len(codes) // 32 * 32].view(32, -1)
for _ in range(2):
    state = None
    for begin in range(0, streams.shape[1] - 101, 100):
        piece = streams[:, begin : begin + 101]
        scores, state = model(piece[:, :-1], state)
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), piece[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = tuple(each.detach() for each in state)
print(f"{loss.item() / 0.6931:.2f} bits a character")
assert loss.item() < 2.5

# %%
# The trace has the gates i, f, g and o, the cell states and the outputs of every step. Its summary
# says how often gates are open or closed, and how long units remember.
trace = lstm_fused.trace(
    model.eval(), torch.tensor([[alphabet.index(letter) for letter in held_out]])
)
print(held_out)
print(trace.summary())

# %%
# The forget gates and the outputs of the 24 units that move most; ``trace.plot`` draws all.
# ``trace.save_html("gates.html", labels=held_out)`` writes a page to look at every unit.
values = trace["lstm.l0"].row(0)
units = values.h.std(0).argsort(descending=True)[:24]
figure, axes = plt.subplots(2, 1, figsize=(8, 5), sharex=True, layout="constrained")
axes[0].imshow(values.f[:, units].T, aspect="auto", vmin=0, vmax=1)
axes[0].set(title="forget gates", ylabel="unit")
axes[1].imshow(values.h[:, units].T, aspect="auto", cmap="RdBu", vmin=-1, vmax=1)
axes[1].set(title="outputs", ylabel="unit", xlabel="character")
plt.show()
