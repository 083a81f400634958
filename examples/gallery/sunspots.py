# SPDX-License-Identifier: BSD-3-Clause
"""
Forecasts from windows of unequal lengths
=========================================

The yearly number of sunspots since 1700. The LSTM reads windows of one to four cycles and forecasts
the next eleven years; a batch of such windows goes in padded, with ``lengths=``, unsorted.
"""

import matplotlib.pyplot as plt
import torch
from statsmodels.datasets import sunspots
from torch import nn

from lstm_fused import FusedLSTM

torch.manual_seed(0)
CYCLE = 11

# %%
# The last sixty years are held out.
data = sunspots.load_pandas().data
years = data["YEAR"].to_numpy()
series = torch.tensor(data["SUNACTIVITY"].to_numpy(), dtype=torch.float32).sqrt()
end_of_training = len(series) - 60


def windows(origins, lengths):
    """The window before each origin, scaled by its own mean and deviation, and padded."""
    padded = torch.zeros(len(origins), 4 * CYCLE)
    wanted, scales = [], []
    for row, (origin, length) in enumerate(zip(origins.tolist(), lengths.tolist(), strict=True)):
        window = series[origin - length : origin]
        mean, deviation = window.mean(), window.std()
        padded[row, :length] = (window - mean) / deviation
        wanted.append((series[origin : origin + CYCLE] - mean) / deviation)
        scales.append(torch.stack([mean, deviation]))
    return padded, torch.stack(wanted), torch.stack(scales)


class Forecaster(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = FusedLSTM(1, 32, batch_first=True)
        self.head = nn.Linear(32, CYCLE)

    def forward(self, padded, lengths):
        _, (h_n, _) = self.lstm(padded.unsqueeze(-1), lengths=lengths)
        return self.head(h_n[-1])


# %%
# Lengths differ from row to row, and no row is sorted, packed or cut.
model = Forecaster()
optimizer = torch.optim.Adam(model.parameters(), 3e-3)
losses = []
for _ in range(300):
    lengths = torch.randint(CYCLE, 4 * CYCLE + 1, (32,))
    origins = torch.randint(4 * CYCLE, end_of_training - CYCLE, (32,))
    padded, wanted, _ = windows(origins, lengths)
    noisy = padded + 0.3 * torch.randn_like(padded)
    loss = nn.functional.mse_loss(model(noisy, lengths), wanted)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

# %%
# On the years held out, forecasts from four cycles, beside repeating the last cycle.
model.eval()
origins = torch.arange(end_of_training, len(series) - CYCLE + 1)
lengths = torch.full((len(origins),), 4 * CYCLE)
padded, wanted, scales = windows(origins, lengths)
with torch.no_grad():
    forecast = model(padded, lengths)
ours = (forecast - wanted).abs().mean()
repeated = (padded[:, -CYCLE:] - wanted).abs().mean()
print(f"mean error, in deviations: {ours:.2f}; of repeating the last cycle: {repeated:.2f}")
assert ours < repeated

figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
axes.plot(years[-120:], series[-120:] ** 2, color="gray", label="sunspots")
for row in range(0, len(origins), CYCLE):
    mean, deviation = scales[row]
    values = (forecast[row] * deviation + mean).clamp(min=0) ** 2
    begin = int(origins[row])
    axes.plot(years[begin : begin + CYCLE], values, "C3", label=None if row else "forecast")
axes.set(xlabel="year", ylabel="sunspots")
axes.legend()
plt.show()
