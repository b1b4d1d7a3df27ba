"""Latency as people read it: on a machine whose speed changes between runs, a faster network stays a faster one."""

from __future__ import annotations

import html
import io
import json
import re
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rich.console import Console

from deploy_prune.recipe.parts import parse_budget
from deploy_prune.report import latency
from deploy_prune.report.page import headline, write_page
from deploy_prune.report.row import Row
from deploy_prune.report.table import results_table
from deploy_prune.run.final_latency import with_latency
from deploy_prune.types import Latency

SLIM = "75%", "50%"


def row(budget: str, **changes) -> Row:
    values = dict.fromkeys(Row.__dataclass_fields__) | {
        "target": "host", "runtime": "onnxruntime", "precision": "fp32", "budget": budget, "metric": "latency",
        "macs": 40_000_000, "params": 10_000_000, "score": 0.9, "score_dense": 0.91, "status": "ok",
        "dense_adapted": False, "score_name": "accuracy", "score_unit": "%", "higher_is_better": True,
    }  # fmt: skip
    return Row(**(values | changes))


def took(ms: float, rounds: tuple[float, ...] = (1.0,) * 20) -> Latency:
    """Samples around ``ms``; ``rounds``: how much slower the machine was in each."""
    samples = tuple(ms * slower for slower in rounds)
    return Latency(samples_ms=samples, warmup=0, threads=1, device="test", measured_on="host")


def dense_row(ms: float, **changes) -> Row:
    return replace(with_latency(row("dense"), None, took(ms), took(ms)), score=0.91, **changes)


def slim_row(budget: str, slim: Latency, dense: Latency, **changes) -> Row:
    return replace(with_latency(row(budget), parse_budget(budget, "latency"), slim, dense), **changes)


def drifted() -> tuple[Row, ...]:
    """Dense alone takes 0.792 ms; then the machine gets slower, and dense takes 1.13 ms beside the slim one's 0.864."""
    busy = tuple(1 + i / 100 for i in range(-10, 11))
    return dense_row(0.792), slim_row("75%", took(0.864, busy), took(1.13, busy)), slim_row("50%", took(0.3), took(0.8))


def printed(*parts) -> list[str]:
    console = Console(file=io.StringIO(), width=160)
    console.print(*parts, sep="\n")
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def points(page: str) -> dict[str, tuple[float, str]]:
    """Where the chart's points are from left to right, in the drawing's units, and what is told of them, by budget."""
    chart = page[page.index("Accuracy against latency</title>") : page.index("Channels kept</h2>")]
    found = re.findall(r'<g><title>host ([^:]+): ([^<]*)</title>.*?<use [^>]*x="([0-9.]+)"', chart, flags=re.DOTALL)
    return {budget: (float(x), told) for budget, told, x in found}


@pytest.fixture
def page(tmp_path) -> str:
    """The page of the run on the machine that drifted."""
    (tmp_path / "recipe.yaml").write_text("name: drifted\n", encoding="utf-8")
    (tmp_path / "results.json").write_text(json.dumps([asdict(one) for one in drifted()]), encoding="utf-8")
    return write_page(tmp_path).read_text(encoding="utf-8")


def test_a_faster_network_is_left_of_dense_however_the_machine_drifted(page):
    found = points(page)
    assert list(found) == ["dense", "75%", "50%"]
    assert found["50%"][0] < found["75%"][0] < found["dense"][0]
    assert found["75%"][1] == (
        "1.31 times as fast as dense (95% interval 1.31–1.31): 0.864 ms, dense 1.13 ms in the same rounds "
        "(p50, measured on host)"
    )


def test_the_places_on_the_axis_are_shares_of_one_reference():
    dense, first, second = latency.placed(drifted())["host"]
    assert (dense.ms, dense.low_ms, dense.high_ms) == (0.792, None, None)
    assert first.ms == pytest.approx(0.792 * 0.864 / 1.13) == first.low_ms == first.high_ms
    assert second.ms == pytest.approx(0.792 * 0.3 / 0.8)


def test_the_table_has_the_speedup_first_and_each_row_s_own_dense():
    lines = printed(results_table(drifted()))
    (at,) = (i for i, line in enumerate(lines) if line.startswith("host 75%"))
    assert lines[at].startswith("host 75% 1.31x 0.864 / 1.13 ")
    assert lines[at + 1].startswith("0.847 ms 1.31–1.31 "), "75% of its own dense network's time"
    assert any(line.startswith("host dense – 0.792 ") for line in lines)
    assert any(line.startswith("host 50% 2.67x 0.300 / 0.800 ") for line in lines)


def test_a_machine_whose_speed_changed_is_said_to_be(page):
    told = "On host the dense network took 0.792 ms to 1.13 ms in different runs: the machine's speed changed."
    assert told in " ".join(printed(results_table(drifted())))
    assert told in html.unescape(page)
    steady = dense_row(0.792), slim_row("75%", took(0.6), took(0.8))
    assert latency.remarks(steady) == ()
    other = replace(steady[0], precision="fp16", refused="int8 was refused: too much noise.")
    assert f"{other.target} {other.budget} is in fp16: int8 was refused: too much noise." in latency.remarks([other])


def test_a_figure_that_is_not_steady_is_marked_and_told_for_dense_as_for_slim():
    told = "no two of 5 measurements in a row agree to 1%: its p50 was 0.792 ms to 1.13 ms"
    rows = dense_row(0.8, disturbed=told), slim_row("75%", took(0.6), took(0.8), disturbed="the clock fell")
    lines = printed(results_table(rows))
    assert [i for i, line in enumerate(lines) if line.split().count("disturbed") and "was" not in line]
    text = " ".join(lines)
    assert f"host dense was disturbed: {told}." in text
    assert "host 75% was disturbed: the clock fell." in text


def test_a_budget_in_ms_is_held_against_the_network_s_own_ms():
    fast = slim_row("0.9 ms", took(0.864), took(1.13))
    assert (fast.asked, fast.measured_p50_ms) == (0.9, pytest.approx(0.864))
    place = latency.placed([dense_row(0.792), fast])["host"][1]
    assert place.ms < 0.792, "on the axis it is its share of dense"


MS = st.floats(0.01, 1000)
SLOWER = st.floats(0.3, 3)


@given(
    alone=MS,
    found=st.lists(st.tuples(MS, MS, st.lists(SLOWER, min_size=1, max_size=9)), min_size=1, max_size=6),
)
def test_a_place_is_left_of_dense_exactly_if_the_network_is_faster(alone, found):
    rows = [
        slim_row(f"{i + 1}%", took(slim, tuple(r)), took(dense, tuple(r))) for i, (slim, dense, r) in enumerate(found)
    ]
    assume(all(abs(one.speedup - 1) > 1e-12 for one in rows))  # nearer, a division may round to 1
    first, *others = latency.placed([dense_row(alone), *rows])["host"]
    assert len(others) == len(rows)
    for place, one in zip(others, rows, strict=True):
        assert (place.ms < first.ms) == (one.speedup > 1)
        assert place.low_ms <= place.ms <= place.high_ms
    for left, right in pairwise(sorted(others, key=lambda place: place.ms)):
        assert left.row.speedup >= right.row.speedup * (1 - 1e-12)  # places may round to the same number


def test_predictions_have_a_share_and_no_interval():
    dense = row("dense", target="pixel-8", status="predicted", predicted_ms=1.5)
    slim = row("50%", target="pixel-8", status="predicted", predicted_ms=0.75, predicted_dense_ms=1.5)
    first, second = latency.placed([dense, slim])["pixel-8"]
    assert (first.ms, second.ms, second.low_ms, second.high_ms) == (1.5, 0.75, None, None)
    assert latency.sentence(slim) == (
        "predicted to be 2.00 times as fast as dense: 0.750 ms, dense 1.50 ms (both predicted, not measured)"
    )


def test_where_the_dense_row_failed_the_dense_networks_beside_the_others_stand_for_it():
    failed = row("dense", status="failed", error="It can't be timed.", macs=100)
    rows = [failed, slim_row("75%", took(0.6), took(0.8)), slim_row("50%", took(0.5), took(1.0))]
    first, second = latency.placed(rows)["host"]
    assert (first.ms, second.ms) == (pytest.approx(0.75 * 0.9), pytest.approx(0.5 * 0.9))
    assert latency.without_dense_row(rows) == ("host",)
    assert latency.without_dense_row(drifted()) == ()
    assert "Failed: host dense; the table says why." in headline(rows)


def test_nothing_measured_and_nothing_predicted_has_no_place():
    assert latency.placed([row("dense", status="failed"), row("50%", status="failed")]) == {}
    assert latency.sentence(row("50%")) is None


@pytest.mark.parametrize(
    ("budgets", "asked"),
    [
        ({"50% macs": "macs"}, "50% of the dense MACs"),
        ({"75%": "latency", "50% macs": "macs"}, "75% of the dense latency and 50% of the dense MACs"),
        ({"75%": "latency", "50%": "latency", "25%": "latency"}, "75%, 50% and 25% of the dense latency"),
        ({"50%": "params", "4 ms": "latency", "3 MB": "size"}, "50% of the dense parameters and 4 ms and 3 MB"),
    ],
)  # fmt: skip
def test_the_headline_names_each_budget_s_metric_once(budgets, asked):
    rows = [row(budget, metric=metric, status="failed", error="No.") for budget, metric in budgets.items()]
    assert headline([row("dense"), *rows])[0] == f"Asked for {asked} on host."
