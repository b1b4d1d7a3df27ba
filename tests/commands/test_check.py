"""What a check tells while it works."""

import pytest
from tiny_run import tiny_recipe

from deploy_prune.commands.check import check


@pytest.fixture(scope="module")
def told():
    lines = []
    check(
        tiny_recipe(targets=["pixel-8", "x86-avx2"], budgets=["70% macs", "50% macs", "70%"]),
        lambda work, done, total, **figures: lines.append((work, done, total, figures)),
    )
    return lines


def test_every_step_is_told_when_it_begins_and_when_it_ends(told):
    steps = [(work, done) for work, done, *_ in told if work.startswith("check ")]
    assert len(steps) == 16, "the granularity and the count, in MACs and in ms, on two targets"
    assert [done for _, done in steps] == [0, 1] * 8
    assert [work for work, _ in steps[::2]] == [work for work, _ in steps[1::2]]
    assert {work.split(":")[0] for work, _ in steps} == {"check pixel-8", "check x86-avx2"}


def test_how_much_is_done_and_how_long_the_rest_will_take(told):
    counts = [(done, total, figures) for work, done, total, figures in told if work == "check"]
    assert [(done, total) for done, total, _ in counts] == [(n, 8) for n in range(1, 9)]
    assert counts[-1][2]["left_s"] == 0
    assert all(f["left_s"] == pytest.approx(f["seconds"] / n * (8 - n)) for n, _, f in counts)
