"""Several draws of the few examples: their mean, and how sure it is."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from scipy.stats import t


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean of the episodes, and half its 95% interval: t(0.975, n - 1) s / sqrt(n), Student's; None of one episode."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    return mean, float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
