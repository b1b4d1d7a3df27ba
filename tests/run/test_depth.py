"""A whole run in which branches may go."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_run import arithmetic_device, tiny_recipe

from deploy_prune.api.load import load
from deploy_prune.commands.check import check
from deploy_prune.errors import BudgetError, RecipeError
from deploy_prune.run import pipeline
from deploy_prune.surgery.graph_network import GraphNetwork

DEEP = {
    "model": {"source": "tiny_run:residual"}, "prune": {"depth": True}, "targets": ["host"], "budgets": ["30%", "60%"],
    "search": {"steps": 12, "batch_size": 16},
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with arithmetic_device(tmp_path_factory.mktemp("cache")) as device:
        out = tmp_path_factory.mktemp("runs")
        yield device, out, pipeline.run(tiny_recipe(**DEEP), out)


def test_budgets_are_met_and_proven_at_another_depth(finished):
    _, out, done = finished
    rows = {row.budget: row for row in done.rows if row.budget in {"30%", "60%"}}
    assert [rows[name].status for name in ("30%", "60%")] == ["ok", "ok"]
    for name in rows:
        folder = out / "tiny" / "host" / name
        depth = json.loads((folder / "depth.json").read_text())
        architecture = json.loads((folder / "architecture.json").read_text())
        gone = [g for g, told in architecture["groups"].items() if g.endswith(":branch") and not told["kept"]]
        assert sorted(gone) == sorted(depth["gone"])
        losses = {frozenset(one["gone"]): one["losses"] for one in depth["tried"]}
        least = min(loss for by_start in losses.values() for loss in by_start.values())
        assert losses[frozenset(gone)][depth["start"]] == least
        repaired = json.loads((folder / "retrain.json").read_text())["repaired"]
        assert (repaired is not None) or depth["start"] == "search", "the dense network's weights are repaired first"
        assert json.loads((folder / "verification.json").read_text())["difference"] < 1e-5
    assert gone or json.loads((out / "tiny/host/30%/depth.json").read_text())["gone"], "a branch went"


def test_what_is_delivered_loads_without_the_run(finished):
    _, out, _ = finished
    folder = next(
        out / "tiny" / "host" / name
        for name in ("30%", "60%")
        if json.loads((out / "tiny" / "host" / name / "depth.json").read_text())["gone"]
    )
    network = load(folder, trust=True)
    assert isinstance(network, GraphNetwork)
    assert network(torch.zeros(2, 1, 16, 16)).shape == (2, 3)
    without = [
        name
        for name, (_, slim) in json.loads((folder / "architecture.json").read_text())["layers"].items()
        if slim is None
    ]
    assert without
    assert not set(without) & set(network.state_dict())


def test_a_second_run_does_nothing_again(finished):
    device, out, done = finished
    asked = sum(device.asked.values())
    again = pipeline.run(tiny_recipe(**DEEP), out)
    assert sum(device.asked.values()) == asked
    assert again.rows == done.rows


@pytest.mark.parametrize("method", ["uniform", "magnitude", "taylor"])
def test_a_method_that_ranks_no_branches_is_refused(method, tmp_path):
    recipe = tiny_recipe(**{**DEEP, "search": {"method": method}})
    with pytest.raises(RecipeError, match="prune.depth: search.method .* doesn't rank branches"):
        pipeline.run(recipe, tmp_path)


def test_branches_go_unasked_where_a_budget_needs_it(tmp_path):
    changes = {key: value for key, value in DEEP.items() if key != "prune"}
    told = []
    with arithmetic_device(tmp_path / "cache"):
        recipe = tiny_recipe(**changes, prune={"min_channels": 10})
        report = check(recipe)
        done = pipeline.run(recipe, tmp_path / "runs", tell=told.append)
        enough = pipeline.run(tiny_recipe(**{**changes, "budgets": ["80%"]}), tmp_path / "others")
        with pytest.raises(BudgetError, match=r"let whole blocks go \(prune.depth: true\)"):
            pipeline.run(tiny_recipe(**changes, prune={"min_channels": 10, "depth": False}), tmp_path / "no")
        with pytest.raises(BudgetError, match=r"let whole blocks go \(prune.depth: true\)"):
            pipeline.run(
                tiny_recipe(**{**changes, "search": {"method": "uniform"}}, prune={"min_channels": 10}), tmp_path / "un"
            )
    sentence = "Depth: whole branches may go, for narrower layers alone can't meet 30% on host."
    assert sentence in told
    assert sentence in report.summary
    assert all(budget.met for budget in report.budgets)
    assert [row.status for row in done.rows] == ["ok", "ok", "ok"]
    assert json.loads((tmp_path / "runs/tiny/host/30%/depth.json").read_text())["gone"]
    assert [row.status for row in enough.rows] == ["ok", "ok"]
    assert not (tmp_path / "others/tiny/host/80%/depth.json").exists()
