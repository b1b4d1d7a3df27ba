"""Which network to take: the rule, and its command, which writes the bundle that is named."""

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy_prune.cli import main
from deploy_prune.errors import RunFolderError
from deploy_prune.report.take import advice, bundle_place


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "recipe.yaml").write_text("name: flowers\n", encoding="utf-8")
    return tmp_path


def slim(make_row, **scores):
    """A row for each budget with this score, in the order of their speed-ups."""
    names = {"b75": "75%", "b50": "50%", "b35": "35%"}
    return [make_row("host", "dense"), *(make_row("host", names[key], score=value) for key, value in scores.items())]


def taken(folder, rows) -> list[str | None]:
    return [one.row and one.row.budget for one in advice(folder, rows)]


def test_the_fastest_within_the_allowed_drop_is_taken(folder, make_row):
    rows = slim(make_row, b75=0.99, b50=0.9631, b35=0.9629)  # dense: 0.983, and 0.02 may be lost
    assert taken(folder, rows) == ["50%"]
    (one,) = advice(folder, rows)
    assert "the fastest that scores at most 2 points below dense" in one.sentence
    assert "accuracy 96.3%, dense 98.3%" in one.sentence


def test_the_recipe_says_how_much_may_be_lost(folder, make_row):
    rows = slim(make_row, b75=0.981, b50=0.96, b35=0.9)
    (folder / "recipe.yaml").write_text("name: flowers\nexport: {max_score_drop: '10%'}\n", encoding="utf-8")
    assert taken(folder, rows) == ["35%"]
    (folder / "recipe.yaml").write_text("name: flowers\nexport: {max_score_drop: lots}\n", encoding="utf-8")
    with pytest.raises(RunFolderError, match="export.max_score_drop is 'lots'"):
        advice(folder, rows)


def test_if_all_lose_more_the_best_is_taken_and_of_equals_the_fastest(folder, make_row):
    rows = slim(make_row, b75=0.9, b50=0.9, b35=0.8)
    (one,) = advice(folder, rows)
    assert one.row.budget == "50%"
    assert "the best score, as all are more than 2 points below dense" in one.sentence


def test_the_score_of_the_artifact_counts_and_what_failed_is_not_taken(folder, make_row):
    rows = slim(make_row, b75=0.98, b50=0.98)
    rows.append(make_row("host", "35%", score=0.98, score_artifact=0.5))
    assert taken(folder, rows) == ["50%"]
    rows[2] = make_row("host", "50%", status="failed", error="no")
    assert taken(folder, rows) == ["75%"]


def test_where_a_low_score_is_good_less_is_better(folder, make_row):
    rows = [
        make_row("host", budget, score=score, score_dense=1.0, score_unit="px", higher_is_better=False)
        for budget, score in (("dense", 1.0), ("75%", 0.9), ("50%", 1.01), ("35%", 1.1))
    ]
    assert taken(folder, rows) == ["50%"]


def test_nothing_slower_than_dense_is_taken(folder, make_row):
    rows = [make_row("host", "dense"), make_row("host", "50%", speedup=0.9, speedup_low=0.89, speedup_high=0.91)]
    (one,) = advice(folder, rows)
    assert one.row is None
    assert one.command == ""
    assert one.sentence == "Take for host: no network, as none is faster than the dense one."


def test_a_prediction_is_said_to_be_one(folder, make_row):
    (one,) = advice(folder, [make_row("pixel-8", budget) for budget in ("dense", "50%")])
    assert "50%, predicted 2.00x" in one.sentence


def test_no_results_no_advice(folder, make_row):
    assert advice(folder, []) == ()
    assert advice(folder, [make_row("host", "dense")]) == ()


def test_the_command_is_one_that_the_command_line_takes(folder, make_row, monkeypatch):
    run = folder / "a b"
    run.mkdir()
    (run / "recipe.yaml").write_text("name: flowers\n", encoding="utf-8")
    (one,) = advice(run, slim(make_row, b50=0.98))
    asked = []
    monkeypatch.setattr("deploy_prune.run.folder.is_run", lambda source: True)
    monkeypatch.setattr("deploy_prune.cli.write_bundles", lambda *given: asked.append(given))
    program, *arguments = shlex.split(one.command)
    assert program == "deploy-prune"
    assert CliRunner().invoke(main, arguments, catch_exceptions=False).exit_code == 0
    assert asked == [(run, "host", "50%", None, False)]
    assert one.bundle == str(bundle_place("flowers", "host", "50%")) == "bundles/flowers-host-50pct"
