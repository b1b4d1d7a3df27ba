"""How much faster one artifact is than another, from samples that were taken in the same rounds."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Final

from scipy.stats import binom

from deploy_prune.types import Latency

CONFIDENCE: Final = 0.95


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A median ratio and its confidence interval."""

    median: float
    low: float
    high: float


def paired_ratio(of: Latency, to: Latency, confidence: float = CONFIDENCE) -> Ratio:
    """The median of ``of``'s samples over ``to``'s, round by round, and the interval that holds it.

    The interval of order statistics, whatever the distribution is: with r_(1) <= ... <= r_(n) the sorted ratios and B
    binomial(n, 1/2), the median lies in [r_(j), r_(n + 1 - j)] with probability 1 - 2 P(B < j), and j is the largest
    for which that is ``confidence`` (Le Boudec, Performance Evaluation of Computer and Communication Systems, theorem
    2.1; EPFL Press 2010). It takes rounds for independent: a machine that drifts makes it too narrow. With fewer than
    six samples there is no such interval, and it is from the smallest to the largest ratio.

    Raises:
        ValueError: the two weren't measured in the same rounds.
    """
    ratios = sorted(a / b for a, b in zip(of.samples_ms, to.samples_ms, strict=True))
    below = max(1, int(binom.ppf((1 - confidence) / 2, len(ratios), 0.5)))
    return Ratio(median=median(ratios), low=ratios[below - 1], high=ratios[-below])
