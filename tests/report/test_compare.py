"""Runs beside each other: places on the axis, what is worth having, what differs, and the page."""

import json
import re
import shutil
from dataclasses import asdict, replace
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
from html_pages import read
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from deploy_prune.errors import RunFolderError
from deploy_prune.report.compare import compare, front
from deploy_prune.report.compare_page import write_compare_page
from deploy_prune.report.compare_table import compare_tables


def another(run: Path, name: str, recipe: str = "", **changes) -> Path:
    """A copy of the run whose rows are changed: a value, or what makes one of the row."""
    copied = run.parent / name
    shutil.copytree(run, copied)
    with (copied / "recipe.yaml").open("a", encoding="utf-8") as file:
        file.write(recipe)
    rows = json.loads((copied / "results.json").read_text())
    for row in rows:
        row |= {key: value(row) if callable(value) else value for key, value in changes.items()}
    (copied / "results.json").write_text(json.dumps(rows))
    return copied


def slower(key: str, row: dict) -> float | None:
    """What was measured, on a machine that was slower."""
    return row[key] and 1.5 * row[key]


def host(found):
    return next(field for field in found.fields if field.measured)


def test_one_run_is_shown_with_its_front(run):
    found = compare([run])
    assert [field.title for field in found.fields] == [
        "host (AMD EPYC 7B13), digits", "jetson-orin-nano (predicted), digits"
    ]  # fmt: skip
    assert [one.row.budget for one in host(found).candidates] == ["35%", "50%", "75%", "dense"]
    assert all(one.worth for one in host(found).candidates), "each is slower and better than the one before"
    assert [one.method for one in host(found).candidates][-2:] == ["gate", "dense"]
    assert found.left_out == ("mobilenet: 1 of 8 results failed, and are left out.",)
    assert found.differences == {"mobilenet": {}}


def test_a_machine_that_was_slower_changes_no_place(run):
    keys = ("measured_p50_ms", "measured_p90_ms", "dense_p50_ms")
    other = another(run, "other", **{key: partial(slower, key) for key in keys})
    field = host(compare([run, other]))
    places = {(one.run, one.row.budget): one.ms for one in field.candidates}
    for budget in ("dense", "75%", "50%", "35%"):
        assert places["mobilenet", budget] == pytest.approx(places["other", budget])


def test_what_another_run_beats_is_not_worth_having(run):
    better = another(run, "better", recipe="search: {method: dap}\nseed: 1\n", score=lambda row: 0.99)
    found = compare([run, better])
    worth = {(one.run, one.row.budget) for one in host(found).candidates if one.worth}
    assert worth == {("better", "35%")}, "the fastest of those that are as good"
    assert found.differences == {
        "mobilenet": {"search.method": "gate", "seed": 0}, "better": {"search.method": "dap", "seed": 1}
    }  # fmt: skip


def test_a_score_that_falls_with_quality_is_turned(run):
    rows = {"score_name": "loss", "score_unit": "", "higher_is_better": False}
    found = compare([another(run, "loss", **rows)])
    assert {one.row.budget for one in host(found).candidates if one.worth} == {"35%"}, "the smallest loss, and fastest"


def test_in_int8_the_artifacts_own_score_counts(run):
    lost = another(run, "lost", precision="int8", score_artifact=0.5)
    assert {one.score for one in host(compare([lost])).candidates} == {0.5}


def test_other_devices_data_and_scores_are_fields_of_their_own(run):
    data = another(run, "data", recipe="data: {source: digits, target_classes: [0, 1], source_classes: [2, 3]}\n")
    score = another(run, "score", score_name="top-5")
    moved = another(run, "moved", measured_on=lambda row: row["measured_on"] and "ssh://pi")
    titles = [field.title for field in compare([run, data, score, moved]).fields if field.measured]
    assert titles == [
        "host (AMD EPYC 7B13), digits", "host (AMD EPYC 7B13), digits, classes 0, 1", "host (AMD EPYC 7B13), digits",
        "ssh://pi (AMD EPYC 7B13), digits",
    ]  # fmt: skip


def test_runs_of_one_name_are_told_apart(run, tmp_path):
    shutil.copytree(run, tmp_path / "b" / "mobilenet")
    assert compare([run, tmp_path / "b" / "mobilenet"]).runs == (f"{tmp_path.name}/mobilenet", "b/mobilenet")


def test_what_is_no_run_is_said_and_an_error_only_if_nothing_is(run, tmp_path):
    (tmp_path / "compare.html").write_text("x")
    (run / "results.json").unlink()
    found = compare([run, tmp_path / "compare.html"])
    assert found.fields == ()
    assert found.left_out == ("mobilenet has no results yet.", f"{tmp_path / 'compare.html'} is no run folder.")
    with pytest.raises(RunFolderError, match="is no run folder"):
        compare([tmp_path / "compare.html"])
    with pytest.raises(RunFolderError, match="is given twice"):
        compare([run, run.parent / "x" / ".." / run.name])


points = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20)


@given(points)
def test_the_front_is_what_no_other_point_beats(points):
    best = front(points)
    for place, (cost, worth) in enumerate(points):
        beaten = any(c <= cost and w >= worth and (c, w) != (cost, worth) for c, w in points)
        assert (place in best) == (not beaten)


def test_the_page_leads_from_each_point_to_its_network(run):
    better = another(run, "better", score=0.99)
    (run / "report.html").write_text("x")
    page = write_compare_page(compare([run, better]), run.parent / "compare.html")
    text, reader = read(page)
    html = page.read_text(encoding="utf-8")
    anchors = set(re.findall(r'id="(network-[0-9-]+)"', html))
    assert len(anchors) == 8 + 7 - 1
    assert {link.removeprefix("#") for link in reader.loads if link.startswith("#network")} == anchors
    in_charts = [svg for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL) if "xlink:href" in svg]
    assert len(set(re.findall(r'xlink:href="#(network-[0-9-]+)"', "".join(in_charts)))) == len(anchors)
    assert "mobilenet/report.html" in reader.loads
    assert not [link for link in reader.loads if not link.startswith(("#", "mobilenet/"))], "and nothing is loaded"
    assert "In nothing that a result depends on." in text
    assert "16 / 32" in html


def test_what_a_run_says_of_itself_is_text(run):
    odd = another(run, "<b>x", recipe="train: {lr: 0.3}\n", target=lambda row: "host<script>")
    shutil.move(odd / "host", odd / "host<script>")
    page = write_compare_page(compare([run, odd]), run.parent / "compare.html")
    html = page.read_text(encoding="utf-8")
    assert "<script>" not in html
    assert "<b>x" not in html
    assert "&lt;b&gt;x" in html


def test_the_tables_fit_into_80_columns(run):
    better = another(run, "a-name-of-20-letters", recipe="search: {method: gumbel}\nseed: 7\n", score=0.99)
    console = Console(width=80, record=True, file=StringIO())
    console.print(*compare_tables(compare([run, better])), sep="\n")
    text = console.export_text()
    assert "a-name-of-20-letters" in text
    assert "…" not in text
    assert 'search.method="gumbel", seed=7' in " ".join(text.split())
    assert re.search(r"^ \*\s+a-name-of-20-letters\s+gumbel\s+35%", text, re.MULTILINE)


def test_as_json_is_json(run):
    found = compare([run])
    back = json.loads(json.dumps(found.as_json()))
    assert back["fields"][0]["candidates"][0]["row"] == asdict(host(found).candidates[0].row)
    assert replace(host(found), candidates=()).title == back["fields"][0]["device"] + ", digits"
