# SPDX-License-Identifier: BSD-3-Clause
"""What singles units out: that they repeat themselves, or follow something."""

from __future__ import annotations

import torch
from torch import Tensor

_UNITS_AT_ONCE = 64  # whose spectra are in memory together


def periodicity(values: Tensor) -> tuple[Tensor, Tensor]:
    """How strongly each series repeats itself, and after how many steps.

    The strength is the highest autocorrelation at a lag that lies beyond the first at which it is
    negative, and within half of the series: 1 of a sine without end, near 0 of noise. The
    autocorrelation is the biased one, Σ x_t x_{t+k} / Σ x_t², which trusts long lags less; computed
    as the inverse transform of the power spectrum (Wiener–Khinchin).

    Args:
        values: (T, H).

    Returns:
        strength: float32 (H,), at least 0.
        period: int64 (H,), in steps; 0 where there is none.
    """
    steps = len(values)
    strengths, periods = [], []
    for part in torch.split(values.float(), _UNITS_AT_ONCE, dim=1):
        centred = part - part.mean(dim=0)
        # NOTE: as long again in zeros, or the end of a series would meet its beginning.
        power = torch.fft.rfft(centred, n=2 * steps, dim=0).abs().square()
        correlation = torch.fft.irfft(power, n=2 * steps, dim=0)[: max(steps // 2, 1) + 1]
        energy = correlation[:1]
        is_constant = energy <= torch.finfo(torch.float32).eps * steps
        correlation = torch.where(is_constant, 0.0, correlation / energy)
        is_beyond = (correlation < 0).cumsum(dim=0) > 0
        strength, period = torch.where(is_beyond, correlation, 0.0).max(dim=0)
        strengths.append(strength)
        periods.append(torch.where(strength > 0, period, 0))
    return torch.cat(strengths), torch.cat(periods)


def correlations(values: Tensor, features: Tensor) -> Tensor:
    """Pearson's correlation of each series with each feature; 0 where one of them is constant.

    Args:
        values: (T, H).
        features: (F, T).

    Returns:
        float64 (F, H).
    """
    return _unit_rows(features.double()) @ _unit_rows(values.double().t()).t()


def _unit_rows(rows: Tensor) -> Tensor:
    """Rows without their mean, of length 1; or zero, where they are constant up to rounding."""
    centred = rows - rows.mean(dim=1, keepdim=True)
    norm = centred.norm(dim=1, keepdim=True)
    is_constant = norm <= 1e-6 * rows.norm(dim=1, keepdim=True)
    return torch.where(is_constant, 0.0, centred / norm)
