"""The ratio of paired samples and its interval: against the binomial's own sums, and by how often it holds."""

import random
from math import comb

import pytest

from deploy_prune.latency.paired import paired_ratio
from deploy_prune.types import Latency


def latency(samples):
    return Latency(samples_ms=tuple(samples), warmup=0, threads=1, device="test", measured_on="host")


def ratio_of(ratios):
    """Of samples whose rounds differ by much more than the two artifacts."""
    rounds = [random.Random(i).uniform(1, 100) for i in range(len(ratios))]
    return paired_ratio(latency(r * b for r, b in zip(ratios, rounds, strict=True)), latency(rounds))


def coverage(num, rank):
    """The probability that the median is between the rank-th smallest and the rank-th largest of ``num``."""
    return 1 - 2 * sum(comb(num, k) for k in range(rank)) / 2**num


@pytest.mark.parametrize("num", [6, 9, 20, 101, 300])
def test_the_interval_is_the_narrowest_of_order_statistics_that_holds_95_percent(num):
    ratios = [1 + i / 1000 for i in range(num)]
    found = ratio_of(random.Random(0).sample(ratios, num))
    rank = round((found.low - 1) * 1000) + 1
    assert found.high == pytest.approx(ratios[-rank])
    assert coverage(num, rank) >= 0.95 > coverage(num, rank + 1)
    assert found.median == pytest.approx(1 + (num - 1) / 2000)


def test_rounds_that_slow_both_down_do_not_matter():
    found = ratio_of([0.5] * 30)
    assert (found.low, found.median, found.high) == pytest.approx((0.5, 0.5, 0.5))


def test_it_holds_the_true_median_as_often_as_it_says():
    generator = random.Random(0)
    held = 0
    for _ in range(400):
        found = ratio_of([0.5 * generator.lognormvariate(0, 0.3) for _ in range(40)])
        held += found.low <= 0.5 <= found.high
    assert 0.92 <= held / 400 <= 1


def test_few_samples_give_all_there_is():
    found = ratio_of([0.4, 0.5, 0.9])
    assert (found.low, found.median, found.high) == pytest.approx((0.4, 0.5, 0.9))


def test_samples_of_other_rounds_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        paired_ratio(latency([1.0, 2.0]), latency([1.0]))
