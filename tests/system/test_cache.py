"""The cache: what is in it and how old, what is too old, and how it is cleared."""

import os
import time

import pytest
from click.testing import CliRunner

from deploy_prune.cli import main
from deploy_prune.system import cache
from deploy_prune.system.cache import cached_json, clear, kept_json, kinds, store_json


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def call(*args):
    return CliRunner().invoke(main, ["cache", *args])


def test_what_is_older_than_asked_for_is_computed_again_and_replaced():
    store_json("latency", {"a": 1}, 5)
    now = time.time()
    assert kept_json("latency", {"a": 1}) == 5
    assert kept_json("latency", {"a": 1}, now - 60) == 5
    assert kept_json("latency", {"a": 1}, now + 60) is None
    assert cached_json("latency", {"a": 1}, lambda: 6, now + 60) == 6
    assert kept_json("latency", {"a": 1}) == 6


def test_an_entry_that_does_not_say_when_it_was_made_is_as_old_as_can_be(folder):
    store_json("latency", {"a": 1}, 5)
    (path,) = folder.rglob("*.json")
    path.write_text('{"key": {"a": 1}, "value": 5}')
    assert kept_json("latency", {"a": 1}, 1.0) is None


def test_it_tells_how_much_of_what_there_is_and_how_old(folder):
    assert "is empty" in call().output
    for number in range(3):
        store_json("latency", {"a": number}, 5)
    store_json("groups", {"a": 1}, "x" * 1000)
    old = time.time() - 5 * cache.DAY_S
    os.utime(sorted((folder / "latency").iterdir())[0], (old, old))
    groups, latency = kinds()
    assert (groups.name, groups.entries, latency.name, latency.entries) == ("groups", 1, "latency", 3)
    assert groups.size_bytes > 1000
    assert latency.oldest_days == pytest.approx(5, abs=0.01)
    assert latency.newest_days == pytest.approx(0, abs=0.01)
    shown = call().output
    assert "0 to 5 days old" in shown
    assert str(folder) in shown


@pytest.mark.parametrize(("args", "left"), [(["--clear", "latency"], {"groups"}), (["--clear"], set())])
def test_it_is_cleared_by_kind_or_as_a_whole_and_nothing_else_is(folder, args, left):
    store_json("latency", {"a": 1}, 5)
    store_json("groups", {"a": 1}, 5)
    (folder / "latency" / "notes.json").write_text("mine")
    (folder / "other.json").write_text("mine")
    done = call(*args)
    assert done.exit_code == 0
    assert f"removed {2 - len(left)} entries" in done.output
    assert {kind.name for kind in kinds()} == left
    assert (folder / "latency" / "notes.json").exists()
    assert (folder / "other.json").exists()
    assert clear("latency") == 0


def test_a_kind_that_there_is_not_is_an_error_that_names_those_there_are():
    done = call("--clear", "latencies")
    assert done.exit_code == 2
    assert "latency" in done.output
