"""How sure a median is: percentile intervals by bootstrap (Efron and Tibshirani, 1993, chapter 13)."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

RESAMPLES = 2000
LEVEL = 0.95


def interval(values: Sequence[float], seed: int) -> dict[str, float]:
    """The median of *values*, one for each round, and the bounds between which it lies in 95 of 100 resamples.

    Rounds are drawn with replacement; *seed* makes the draw repeatable.
    """
    chance = random.Random(seed)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(RESAMPLES))
    cut = int(RESAMPLES * (1 - LEVEL) / 2)
    return {"median": statistics.median(values), "low": medians[cut], "high": medians[-1 - cut]}
