from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest

from deploy_prune.latency import steady
from deploy_prune.latency.targets import load_target
from deploy_prune.types import Artifact, Latency

RUNS = 11
ONE = Artifact(path=Path("model.onnx"), format="onnx", precision="fp32", sha256="0", input_shape=(1,), versions={})
HOST = load_target("host")


@pytest.fixture
def ratios(monkeypatch):
    """What the next measurements give, second artifact over first; the first takes another time in each."""
    answers: list[float] = []

    def measure(target, artifacts, runs, warmup):
        base, share = 1.0 + len(answers) / 10, answers.pop(0)
        times = (base, share * base)[: len(artifacts)]
        return tuple(
            Latency(samples_ms=(ms,) * runs, warmup=warmup, threads=1, device="test", measured_on="host")
            for ms in times
        )

    monkeypatch.setattr(steady, "measure", measure)
    return answers


def shares(ratios, *artifacts):
    first, *others = steady.measure_steadily(HOST, artifacts, RUNS, 1)
    return [
        [b / a for a, b in zip(first.samples_ms[::RUNS], other.samples_ms[::RUNS], strict=True)] for other in others
    ]


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ([0.5, 0.5 * (1 + 0.9 * steady.AGREE), 0.9], 2),
        ([0.8, 0.5, 0.7, 0.7, 0.1], 4),
        ([0.9, 0.5, 0.8, 0.6, 0.7, 0.1], steady.MEASUREMENTS),
    ],
    ids=["two agree", "busy at first", "none agree"],
)
def test_it_measures_until_two_in_a_row_agree_and_pools_all(ratios, given, used):
    ratios += given
    (found,) = shares(ratios, ONE, ONE)
    assert found == pytest.approx(given[:used]), "nothing is thrown away"
    assert ratios == given[used:]


def test_the_figure_of_a_busy_moment_does_not_decide(ratios):
    ratios += [1.9, 0.5, 0.5, 0.1]
    (found,) = shares(ratios, ONE, ONE)
    assert median(found) == pytest.approx(0.5)


def test_one_artifact_alone_is_measured_twice(ratios):
    ratios += [1.0, 1.0, 1.0]
    (only,) = steady.measure_steadily(HOST, [ONE], RUNS, 1)
    assert len(only.samples_ms) == 2 * RUNS
    assert len(ratios) == 1
