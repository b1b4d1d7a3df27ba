"""A whole run on a device that is reached by ssh or adb, from its target file to measuring again."""

import json

import pytest
from tiny_run import tiny_recipe

from deploy_prune.commands import bench
from deploy_prune.device.new_target import new_target
from deploy_prune.errors import TargetError
from deploy_prune.run import pipeline


@pytest.mark.slow
def test_a_whole_run_on_a_device(board, tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(tmp_path / "cache"))
    path = new_target("my-board", board.name, tmp_path / "my-board.yaml")
    run = pipeline.run(tiny_recipe(targets=[str(path)], budgets=["80% macs"]), tmp_path)
    assert [(row.status, row.error) for row in run.rows] == [("ok", None)] * 2
    assert {row.measured_on for row in run.rows} == {board.name}
    told = json.loads((run.folder / "my-board" / "80% macs" / "latency.json").read_text())
    assert set(told["conditions"][0]) == {"before", "after"}
    (granularity,) = (tmp_path / "cache" / "granularity").iterdir()
    assert json.loads(granularity.read_text())["key"]["device"] == board.name
    assert {found.row.measured_on for found in bench.bench(run.folder, 20)} == {board.name}
    assert {found.row.measured_on for found in bench.bench(run.folder, 20, "local")} == {"host"}
    with pytest.raises(TargetError, match="The device 'telnet://x' can't be reached that way"):
        bench.bench(run.folder, 20, "telnet://x")
