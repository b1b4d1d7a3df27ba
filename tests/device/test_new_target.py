"""A target file for a device that can be reached."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy_prune.cli import main
from deploy_prune.device.new_target import described, new_target
from deploy_prune.device.targets import load_target
from deploy_prune.errors import TargetError


def test_what_a_device_tells_becomes_a_target(board, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scheme, _, rest = board.name.partition("://")
    done = CliRunner().invoke(main, ["targets", "new", "my-board", f"--{scheme}", rest])
    assert (done.exit_code, done.output) == (0, "my-board.yaml\n")
    target = load_target("./my-board.yaml")
    assert (target.name, target.runner) == ("my-board", board.name)
    assert (target.runtime, target.format) == ("onnxruntime", "onnx")
    assert target.granularity is None
    text = Path("my-board.yaml").read_text()
    assert "cores:" in text
    assert "package onnxruntime:" in text
    numbers = text[text.index("hardware:") : text.index("notes:")]
    assert numbers.count("value:") == numbers.count("source: probed 20")
    again = CliRunner().invoke(main, ["targets", "new", "my-board", f"--{scheme}", rest])
    assert (again.exit_code, "There is a file my-board.yaml already" in again.stderr) == (14, True)


def test_names_and_devices_that_are_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for args in (["a"], ["a", "--ssh", "b", "--adb", "c"]):
        assert CliRunner().invoke(main, ["targets", "new", *args]).exit_code == 2
    done = CliRunner().invoke(main, ["targets", "new", "a", "--ssh", "-oProxyCommand=touch x"])
    assert done.exit_code == 14
    with pytest.raises(TargetError, match="'name' is 'Not A Name'"):
        new_target("Not A Name", "local", tmp_path / "b.yaml")
    assert list(tmp_path.iterdir()) == []


def test_a_device_without_a_runtime():
    with pytest.raises(TargetError, match="has none of the Python packages .*; install one there with pip"):
        described("a", "ssh://board", {"about": {"cores": 4, "packages": {"numpy": "2"}}})


def test_other_runtimes_and_odd_answers():
    told = described("a", "ssh://board", {"about": {"packages": {"ncnn": "1"}, "governors": ["x", "y"]}})
    assert (told["runtime"], told["granularity"]["value"]) == ("ncnn", 8)
    assert "unverified" in told["granularity"]["source"]
    assert told["hardware"]["governors"]["value"] == "x, y"
