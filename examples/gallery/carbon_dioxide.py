# SPDX-License-Identifier: BSD-3-Clause
"""
A time series in Lightning
==========================

Weeks of carbon dioxide in the air over Mauna Loa, 1958 to 2001: from two years of weeks the model
forecasts the next. It is a plain ``LightningModule``; weights that Lightning saves are those of
``nn.LSTM``.
"""

import logging
import tempfile
import warnings
from pathlib import Path

import lightning
import matplotlib.pyplot as plt
import torch
from statsmodels.datasets import co2
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lstm_fused import FusedLSTM

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
lightning.seed_everything(0, verbose=False)
YEAR, SEEN = 52, 104  # weeks that are forecast and seen

# %%
# Weeks without a measurement are filled in between their neighbours. The last five years are held
# out.
weeks = co2.load_pandas().data["co2"].interpolate().dropna()
series = torch.tensor(weeks.to_numpy(), dtype=torch.float32)
windows = series.unfold(0, SEEN + YEAR, 1)
held_out = 5 * YEAR


def split(windows):
    """What is seen and what is wanted, in ppm against the last year's mean."""
    level = windows[:, SEEN - YEAR : SEEN].mean(1, keepdim=True)
    return TensorDataset(windows[:, :SEEN] - level, windows[:, SEEN:] - level)


training, test = split(windows[: -held_out - YEAR]), split(windows[-held_out:])


class Forecaster(lightning.LightningModule):
    def __init__(self, cls=FusedLSTM):
        super().__init__()
        self.lstm = cls(1, 48, num_layers=2, batch_first=True)
        self.head = nn.Linear(48, YEAR)

    def forward(self, seen):
        y, _ = self.lstm(seen.unsqueeze(-1) / 5)
        # The same weeks a year before, and what the LSTM knows better.
        return seen[:, -YEAR:] + self.head(y[:, -1])

    def training_step(self, batch, _):
        seen, wanted = batch
        loss = nn.functional.mse_loss(self(seen), wanted)
        self.log("training", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 5e-3)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Losses(lightning.Callback):
    def __init__(self):
        self.values = []

    def on_train_epoch_end(self, trainer, module):
        self.values.append(trainer.callback_metrics["training"].item())


# %%
# The trainer needs no setting for ``FusedLSTM``. Gradients are clipped, a checkpoint is written.
losses, folder = Losses(), Path(tempfile.mkdtemp())
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=8,
        gradient_clip_val=1.0,
        callbacks=[losses],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Forecaster()
    trainer.fit(model, DataLoader(training, batch_size=64, shuffle=True))
trainer.save_checkpoint(folder / "co2.ckpt")

# %%
# On the years held out, the model beside repeating the last year.
model.eval()
seen, wanted = test.tensors
with torch.no_grad():
    forecast = model(seen)
ours, repeated = (forecast - wanted).abs().mean(), (seen[:, -YEAR:] - wanted).abs().mean()
print(f"mean error {ours:.2f} ppm; of repeating the last year {repeated:.2f} ppm")
assert ours < 0.7 * repeated

# %%
# The same module with ``nn.LSTM`` reads the checkpoint and forecasts the same.
plain = Forecaster(nn.LSTM).eval()
plain.load_state_dict(torch.load(folder / "co2.ckpt", weights_only=True)["state_dict"])
with torch.no_grad():
    torch.testing.assert_close(plain(seen), forecast, atol=1e-4, rtol=1e-4)

figure, (left, right) = plt.subplots(
    1, 2, figsize=(9, 3.2), width_ratios=(1, 2), layout="constrained"
)
left.plot(losses.values, "o-")
left.set(xlabel="epoch", ylabel="squared error, ppm²", yscale="log")
shown = held_out + YEAR
right.plot(weeks.index[-shown:], series[-shown:], color="gray", label="measured")
for row in range(0, held_out - YEAR + 1, YEAR):
    begin = len(series) - held_out - YEAR + 1 + row
    level = windows[-held_out + row, SEEN - YEAR : SEEN].mean()
    right.plot(
        weeks.index[begin : begin + YEAR],
        forecast[row] + level,
        "C3",
        label=None if row else "forecast",
    )
right.set(ylabel="CO₂, ppm")
right.legend()
plt.show()
