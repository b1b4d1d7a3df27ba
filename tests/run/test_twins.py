"""Nothing is made twice: a stage whose twin is finished takes its files, and no file is read again and again."""

import hashlib
import json
import os
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from tiny_run import tiny_recipe

from deploy_prune.device.targets import targets_folder
from deploy_prune.run import pipeline, stages, trained
from deploy_prune.run.folder import RunFolder
from deploy_prune.run.twins import Twins
from deploy_prune.system import shell

FILES = ("weights.txt", "told.json")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(tmp_path_factory.mktemp("cache")))


class Runs:
    """Run folders beside each other, whose stage ``PLACE/retrain`` counts how often it is computed."""

    def __init__(self, path):
        self.path, self.times, self.told, self.since = path, 0, [], 0.0

    def stage(self, run="a", place="host/50%", twins=True, compute=None, **key):
        folder = RunFolder(path=self.path / run)
        folder.open(fresh=False)

        def write():
            self.times += 1
            for file in FILES:
                folder.write_text(f"{place}/{file}", f"{file} {key}")

        found = Twins(runs=self.path, since=self.since, tell=self.told.append) if twins else None
        folder.stage(f"{place}/retrain", key, [f"{place}/{file}" for file in FILES], compute or write, found)
        return [folder.path / place / file for file in FILES]


@pytest.fixture
def runs(tmp_path):
    return Runs(tmp_path)


@pytest.mark.parametrize("second", [{"place": "pixel/80%"}, {"run": "b"}, {"run": "b", "place": "pixel/80%"}])
def test_a_twin_s_files_are_taken_by_hard_links(runs, second):
    first, again = runs.stage(seed=0), runs.stage(**second, seed=0)
    assert runs.times == 1
    assert all(one.samefile(other) for one, other in zip(first, again, strict=True))
    assert runs.told == [f"{second.get('place', 'host/50%')}/retrain: taken from {runs.path}/a/host/50%"]
    runs.stage(**second, seed=0)
    assert (runs.times, len(runs.told)) == (1, 1), "it is finished there, too"


def test_a_taken_stage_took_no_time_and_says_where_from(runs):
    runs.stage(seed=0)
    runs.stage(run="b", seed=0)
    folder = RunFolder(path=runs.path / "b")
    assert folder.seconds() == {}
    assert folder.taken_from() == {"host/50%/retrain": f"{runs.path}/a/host/50%"}


def test_another_key_or_kind_of_stage_is_no_twin(runs):
    runs.stage(seed=0)
    runs.stage(run="b", seed=1)
    assert runs.times == 2
    names = {RunFolder(path=runs.path).digest(name, {}) for name in ("a/b/export", "dense/a/export", "a/b/retrain")}
    assert len(names) == 2


@pytest.mark.parametrize("damage", [lambda file: file.write_text("other"), Path.unlink])
def test_files_that_are_not_what_they_were_are_not_taken(runs, damage):
    first = runs.stage(seed=0)
    damage(first[1])
    again = runs.stage(run="b", seed=0)
    assert runs.times == 2
    assert again[1].read_text() == "told.json {'seed': 0}"


def test_what_was_finished_before_is_not_taken_where_all_is_done_again(runs):
    runs.stage(seed=0)
    runs.since = time.time()
    runs.stage(run="b", seed=0)
    assert runs.times == 2
    runs.stage(run="c", seed=0)
    assert runs.times == 2, "b's is new"


def test_runs_elsewhere_are_independent(runs, tmp_path):
    runs.stage(seed=0)
    other = Runs(tmp_path / "elsewhere")
    other.stage(seed=0)
    assert other.times == 1


def test_where_there_can_be_no_links_files_are_copied(runs, monkeypatch):
    def refuse(*args):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    first, again = runs.stage(seed=0), runs.stage(run="b", seed=0)
    assert runs.times == 1
    assert [one.read_text() for one in again] == [one.read_text() for one in first]
    assert not any(one.samefile(other) for one, other in zip(first, again, strict=True))


def test_a_file_that_is_written_anew_leaves_its_twin_alone(runs):
    first = runs.stage(seed=0)
    runs.stage(run="b", seed=0)
    runs.stage(run="b", seed=1)
    assert first[0].read_text() == "weights.txt {'seed': 0}"


def test_folders_are_linked_file_by_file(tmp_path):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "file").write_text("x")
    shell.linked(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "deep" / "file").samefile(tmp_path / "a" / "deep" / "file")


def test_two_that_ask_at_once_compute_it_once(runs):
    entered, go_on = threading.Event(), threading.Event()
    runs.path.joinpath("a/host/50%").mkdir(parents=True)

    def slow():
        entered.set()
        go_on.wait(10)
        for file in FILES:
            (runs.path / "a/host/50%" / file).write_text("x")

    first = threading.Thread(target=lambda: runs.stage(compute=slow, seed=0))
    first.start()
    entered.wait(10)
    second = threading.Thread(target=lambda: runs.stage(run="b", seed=0))
    second.start()
    until = time.monotonic() + 10
    while not runs.told and time.monotonic() < until:
        time.sleep(0.01)
    assert runs.told == ["host/50%/retrain: wait for another run that does the same"]
    go_on.set()
    first.join()
    second.join()
    assert runs.times == 0, "the second took the first one's"


def test_a_file_is_read_once_however_often_it_is_asked_for(runs, monkeypatch):
    files, read, digest = runs.stage(seed=0), Counter(), hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: read.update([file.name]) or digest(file, kind))
    folder, names = RunFolder(path=runs.path / "a"), [f"host/50%/{file}" for file in FILES]
    for _ in range(2):
        folder.stage("host/50%/retrain", {"seed": 0}, names, lambda: pytest.fail("it is finished"))
        first = folder.content(names)
    assert read == {str(file): 1 for file in files}
    files[0].write_text("another text")
    assert folder.content(names) != first
    assert read[str(files[0])] == 2


# --- whole runs -------------------------------------------------------------------------------------------------------

BUDGETS = ["90% macs", "55% macs", "20% macs"]


def alike(folder, number, overhead="0.00641"):
    """A target file as pixel-8's, under another name; ``overhead`` per layer changes its latencies only."""
    text = (targets_folder() / "pixel-8.yaml").read_text().replace("name: pixel-8", f"name: alike-{number}")
    assert "value: 0.00641" in text
    path = folder / f"alike-{number}.yaml"
    path.write_text(text.replace("value: 0.00641", f"value: {overhead}"))
    return str(path)


@pytest.fixture
def made(monkeypatch):
    """What is trained and written, counted."""
    counts, adapt, write = Counter(), trained.adapt, stages.isolated.write
    monkeypatch.setattr(trained, "adapt", lambda *a, **k: counts.update([k["work"].split(": ")[-1]]) or adapt(*a, **k))
    monkeypatch.setattr(stages.isolated, "write", lambda *a, **k: counts.update(["write"]) or write(*a, **k))
    return counts


@pytest.mark.timeout(1800)
def test_six_alike_targets_with_three_budgets_retrain_and_export_each_network_once(tmp_path, made, monkeypatch):
    """And so does another run beside it; and when the command is given again, each file is read once."""
    targets = [alike(tmp_path, number, *([] if number else ["0.02"])) for number in range(6)]
    recipe = tiny_recipe(targets=targets, budgets=BUDGETS)
    run = pipeline.run(recipe, tmp_path / "runs")
    assert {name.partition(" with ")[0]: n for name, n in made.items()} == {
        "adapt the dense network": 1, "retrain": 3, "write": 4,
    }  # fmt: skip
    assert [(r.target, r.budget, r.status) for r in run.rows] == [
        (f"alike-{number}", budget, "predicted") for number in range(6) for budget in ("dense", *BUDGETS)
    ]
    by_target = [run.rows[4 * number : 4 * number + 4] for number in range(6)]
    assert len({tuple((r.score, r.macs, r.size_bytes, r.parity_max_abs) for r in rows) for rows in by_target}) == 1
    latencies = [[r.predicted_ms for r in rows] for rows in by_target]
    assert all(found == latencies[1] for found in latencies[1:])
    assert all(slow > fast for slow, fast in zip(latencies[0], latencies[1], strict=True)), "its own, all the same"
    told = json.loads((run.folder / "provenance.json").read_text())
    taken = Counter(name.rpartition("/")[2] for name in told["taken_from"])
    assert taken == {"retrain": 15, "export": 20}
    assert not told["taken_from"].keys() & told["seconds"].keys()
    assert "; 35 were taken from equal ones</summary>" in (run.folder / "report.html").read_text()

    before = made.copy()
    twin = pipeline.run(recipe.model_copy(update={"name": "twin"}), tmp_path / "runs")
    assert made == before
    assert twin.rows == run.rows

    read, digest = Counter(), hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: read.update([str(file.name)]) or digest(file, kind))
    assert pipeline.run(recipe, tmp_path / "runs").rows == run.rows
    of_the_run = {name: n for name, n in read.items() if name.startswith(str(run.folder))}
    assert len(of_the_run) > 100
    assert set(of_the_run.values()) == {1}
