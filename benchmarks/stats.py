# SPDX-License-Identifier: BSD-3-Clause
"""Medians, percentiles, and what distinguishes a change from noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

Rounds = Sequence[Sequence[float]]

# Exact up to this many ways to deal out the rounds (6 and 6: 924); drawn beyond.
MOST_DEALS = 20_000


def summarize(rounds: Rounds) -> dict[str, float]:
    """Median and percentiles over the calls of all rounds, each round weighing the same."""
    values, weights = [], []
    for samples in rounds:
        values.extend(samples)
        weights.extend([1 / len(samples)] * len(samples))
    names = {"median": 50, "p10": 10, "p90": 90, "p99": 99}
    return {name: _weighted(values, weights, percent) for name, percent in names.items()}


def _weighted(values: Sequence[float], weights: Sequence[float], percent: float) -> float:
    """The percentile, linear between neighbours as numpy's where all weights are equal."""
    order = np.argsort(values)
    ranked, heights = np.asarray(values, float)[order], np.asarray(weights, float)[order]
    if len(ranked) == 1:
        return float(ranked[0])
    # A value stands in the middle of its weight, the first at 0 and the last at 1.
    middles = np.cumsum(heights) - heights / 2
    places = (middles - middles[0]) / (middles[-1] - middles[0])
    return float(np.interp(percent / 100, places, ranked))


def thinned(samples: Sequence[float], most: int = 41) -> list[float]:
    """At most this many values that have the samples' distribution, rising."""
    ranked = np.sort(np.asarray(samples, float))
    if len(ranked) > most:
        ranked = np.quantile(ranked, np.linspace(0, 1, most))
    return [float(f"{value:.4g}") for value in ranked]


def geometric_mean(ratios: Sequence[float]) -> float:
    """NaN of nothing."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else math.nan


def permutation_p(a: Sequence[float], b: Sequence[float], seed: int = 0) -> float:
    """How often a split of all rounds at random is at least as uneven as the given one.

    Two-sided, on the sum of the ranks of a (Mann and Whitney's test). A few rounds far off count
    by their ranks only.
    """
    if len(a) == 0 or len(b) == 0:
        return 1.0
    pooled = _ranks(np.array([*a, *b], float))
    middle = len(a) * pooled.mean()
    found = abs(pooled[: len(a)].sum() - middle) - 1e-9
    if math.comb(len(pooled), len(a)) <= MOST_DEALS:
        picks = np.array(list(combinations(range(len(pooled)), len(a))))
    else:
        draw = np.random.default_rng(seed)
        picks = draw.permuted(np.tile(np.arange(len(pooled)), (MOST_DEALS, 1)), axis=1)
        # NOTE: the split that was found counts as one of those drawn.
        picks = np.vstack([np.arange(len(pooled)), picks])[:, : len(a)]
    return float(np.mean(np.abs(pooled[picks].sum(axis=1) - middle) >= found))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    below = (values[:, None] > values[None, :]).sum(axis=1)
    equal = (values[:, None] == values[None, :]).sum(axis=1)
    return below + (equal + 1) / 2


def bootstrap_interval(
    a: Sequence[float], b: Sequence[float], level: float = 0.95, draws: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """An interval for median(b) - median(a), rounds drawn anew with replacement."""
    draw = np.random.default_rng(seed)

    def medians(values: Sequence[float]) -> np.ndarray:
        array = np.asarray(values, float)
        return np.median(array[draw.integers(len(array), size=(draws, len(array)))], axis=1)

    low, high = np.quantile(medians(b) - medians(a), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def spread(values: Sequence[float]) -> float:
    """A robust standard deviation: 1.4826 times the median distance from the median."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values)))) if len(values) else 0.0
