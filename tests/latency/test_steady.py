from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from deploy_prune.device.targets import load_target
from deploy_prune.latency import steady
from deploy_prune.types import Artifact, Latency

RUNS = 11
ONE = Artifact(path=Path("model.onnx"), format="onnx", precision="fp32", sha256="0", input_shape=(1,), versions={})
HOST = load_target("host")


@pytest.fixture
def ratios(monkeypatch):
    """What the next measurements give, second artifact over first; the first takes another time in each."""
    answers: list[float] = []

    def measure(target, artifacts, runs, warmup, progress):
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


def test_it_says_that_it_waits_for_a_quiet_machine(ratios):
    ratios += [0.5, 0.8, 0.8]
    told = []
    steady.measure_steadily(HOST, [ONE, ONE], RUNS, 1, lambda *step, **figures: told.append((*step, figures)))
    work = "host: measure until the machine is quiet"
    assert [step[:3] for step in told] == [(work, 0, 5), (work, 1, 5), (work, 2, 5), (work, 3, 3)]
    assert told[0][3] == {}, "before anything is measured"
    assert [step[3]["p50_ms"] for step in told[1:]] == pytest.approx([0.5 * 1.3, 0.8 * 1.2, 0.8 * 1.1])


def test_measurements_of_which_no_two_agree_are_said_to_be(ratios):
    ratios += [0.9, 0.5, 0.8, 0.6, 0.7]
    both = steady.measure_steadily(HOST, [ONE, ONE], RUNS, 1)
    told = "no two of 5 measurements in a row agree to 1%: its share of dense was 50.0% to 90.0%"
    assert [one.disturbed for one in both] == [told, told]


def test_measurements_that_agree_at_last_are_steady(ratios):
    ratios += [0.9, 0.5, 0.5]
    assert [one.disturbed for one in steady.measure_steadily(HOST, [ONE, ONE], RUNS, 1)] == [None, None]


@pytest.fixture
def alone(monkeypatch):
    """What the next measurements of one artifact alone take, in ms."""
    answers: list[float] = []

    def measure(target, artifacts, runs, warmup, progress):
        samples = (answers.pop(0),) * runs
        return (Latency(samples_ms=samples, warmup=warmup, threads=1, device="test", measured_on="host"),)

    monkeypatch.setattr(steady, "measure", measure)
    return answers


@pytest.mark.parametrize(
    ("given", "used", "disturbed"),
    [
        ([0.8, 0.8, 0.1], 2, None),
        ([1.13, 0.792, 0.793, 0.1], 3, None),
        ([0.792, 1.13, 0.9, 0.8, 1.0, 1.0], 5, "no two of 5 measurements in a row agree to 1%: its p50 was 0.792 ms"),
    ],
    ids=["two agree", "busy at first", "none agree"],
)
def test_one_artifact_alone_is_measured_until_its_own_time_comes_back(alone, given, used, disturbed):
    alone += given
    (only,) = steady.measure_steadily(HOST, [ONE], RUNS, 1)
    assert only.samples_ms[::RUNS] == tuple(given[:used])
    assert only.disturbed == disturbed or only.disturbed.startswith(disturbed)


def test_what_one_of_several_devices_began_it_measures_to_the_end(monkeypatch):
    asked = []

    def measure(target, artifacts, runs, warmup, progress):
        asked.append(target.devices)
        times = (1.0, 0.5 + len(asked) / 10)
        return tuple(
            Latency(samples_ms=(ms,) * runs, warmup=warmup, threads=1, device="test", measured_on=target.devices[-1])
            for ms in times
        )

    monkeypatch.setattr(steady, "measure", measure)
    steady.measure_steadily(replace(HOST, runner="ssh://a", alike=("ssh://b",)), (ONE, ONE), RUNS, 1)
    assert asked == [("ssh://a", "ssh://b"), *[("ssh://b",)] * (steady.MEASUREMENTS - 1)]
