"""The run folder: finished stages are found again, unfinished ones leave no trace, damage is told with its path."""

import csv
import hashlib
import itertools
import json
import os
import time
from dataclasses import asdict, fields, replace

import pytest
import torch

from deploy_prune.errors import RunFolderError
from deploy_prune.report.row import Row
from deploy_prune.run.folder import MOST_ROWS, RunFolder, load_tensors, read_json, save_tensors, sha256, thinned

ROW = Row(
    target="host", runtime="onnxruntime", precision="fp32", budget="50%", metric="latency", asked=1.0, predicted=1.01,
    predicted_ms=1.01, measured_p50_ms=0.99, measured_p90_ms=1.2, dense_p50_ms=2.0, measured_on="host", macs=10,
    params=5, size_bytes=100, score=0.5, score_dense=0.75, score_artifact=None, parity_max_abs=1e-7,
    status="ok", error=None,
)  # fmt: skip


class Stage:
    """A stage that counts how often it is computed, and writes that."""

    def __init__(self, folder: RunFolder, name: str = "host/50%/plan"):
        self.folder, self.name, self.times = folder, name, 0
        self.files = ["host/50%/a.txt", "host/50%/b.json"]

    def __call__(self, **key):
        return self.folder.stage(self.name, key, self.files, self.compute)

    def compute(self):
        self.times += 1
        self.folder.write_text(self.files[0], "text")
        self.folder.write_json(self.files[1], {"n": 1})


@pytest.fixture
def folder(tmp_path):
    opened = RunFolder(path=tmp_path / "runs" / "quickstart")
    opened.open(fresh=False)
    return opened


def test_a_finished_stage_is_not_computed_again(folder):
    stage = Stage(folder)
    first = stage(seed=0, lr=0.1)
    assert stage(lr=0.1, seed=0) == first
    assert stage.times == 1


def test_another_process_finds_it_finished_too(folder):
    Stage(folder)(seed=0)
    reopened = RunFolder(path=folder.path)
    reopened.open(fresh=False)
    again = Stage(reopened)
    again(seed=0)
    assert again.times == 0


def test_another_key_computes_again_and_has_another_digest(folder):
    stage = Stage(folder)
    first = stage(seed=0)
    assert stage(seed=1) != first
    assert stage.times == 2
    assert stage(seed=0) == first
    assert stage.times == 3, "the files are those of the last key only"


def test_stages_of_one_key_have_digests_of_their_own(folder):
    assert Stage(folder, "dense")(seed=0) != Stage(folder, "adapt")(seed=0)


def test_stages_whose_names_have_slashes_do_not_share_a_mark(folder):
    for name in ("host/50%/plan", "host/50%/retrain", "pixel-8/50%/plan"):
        stage = Stage(folder, name)
        stage(seed=0)
        assert stage.times == 1


@pytest.mark.parametrize("damage", ["changed", "cut short", "deleted"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_file_that_is_not_what_the_stage_wrote_is_made_again(folder, damage, which):
    stage = Stage(folder)
    stage(seed=0)
    path = folder.path / stage.files[which]
    kept = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(kept[:-1] if damage == "cut short" else kept + b" ")
    stage(seed=0)
    assert stage.times == 2
    assert path.read_bytes() == kept


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"digest": 1}', '{"files": {}}'])
def test_a_damaged_mark_counts_as_not_finished(folder, content):
    stage = Stage(folder)
    stage(seed=0)
    (mark,) = (folder.path / ".stages").glob("*.json")
    mark.write_text(content)
    stage(seed=0)
    assert stage.times == 2


def test_a_stage_that_raises_leaves_no_mark(folder):
    stage = Stage(folder)
    good = stage.compute

    def bad():
        good()
        raise KeyboardInterrupt

    stage.compute = bad
    with pytest.raises(KeyboardInterrupt):
        stage(seed=0)
    stage.compute = good
    stage(seed=0)
    assert stage.times == 2


def test_a_stage_that_raises_forgets_what_was_finished_before(folder):
    """It may have overwritten some of the files: the old key must not find them."""
    stage = Stage(folder)
    stage(seed=0)
    good, stage.compute = stage.compute, lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        stage(seed=1)
    stage.compute = good
    stage(seed=0)
    assert stage.times == 2


def test_fresh_forgets_every_stage_and_keeps_the_files(folder):
    stage = Stage(folder)
    stage(seed=0)
    folder.open(fresh=True)
    assert (folder.path / stage.files[0]).exists()
    stage(seed=0)
    assert stage.times == 2


def test_open_sweeps_out_what_a_killed_run_left_half_written(folder):
    left = folder.path / "host" / "50%" / ".writing-abc"
    left.mkdir(parents=True)
    (left / "model.onnx").write_text("half")
    (folder.path / ".writing-xyz").mkdir()
    whole = folder.path / "host" / "50%" / "model.onnx"
    whole.write_text("whole")
    folder.open(fresh=False)
    assert not list(folder.path.rglob(".writing-*"))
    assert whole.read_text() == "whole"


@pytest.mark.parametrize("name", ["a.txt", "a.json", "a.safetensors"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(folder, name, monkeypatch):
    def write(value):
        match name.rpartition(".")[2]:
            case "txt":
                folder.write_text(name, str(value))
            case "json":
                folder.write_json(name, value)
            case _:
                folder.write_tensors(name, {"x": torch.tensor([value])})

    write(1)
    before = (folder.path / name).read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match="can't be written .No space") as raised:
        write(2)
    assert name in str(raised.value)
    assert (folder.path / name).read_bytes() == before
    assert not list(folder.path.rglob(".writing-*"))


@pytest.mark.parametrize("inside", ["", "deeper/still"])
def test_a_folder_that_can_not_be_written_is_told_with_its_path(tmp_path, inside):
    (tmp_path / "taken").write_text("a file")
    path = tmp_path / "taken" / inside / "quickstart"
    with pytest.raises(RunFolderError, match=r"--out") as raised:
        RunFolder(path=path).open(fresh=False)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe"])
def test_damaged_json_is_told_with_its_path(tmp_path, content):
    path = tmp_path / "loop.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunFolderError) as raised:
        read_json(path)
    assert str(path) in str(raised.value)
    assert "run the recipe again" in str(raised.value)


@pytest.mark.parametrize("share", [None, 0.0, 0.5, 0.99])
def test_damaged_tensors_are_told_with_their_path(tmp_path, share):
    path = tmp_path / "weights.safetensors"
    if share is not None:
        save_tensors(path, {"x": torch.arange(100)})
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(RunFolderError) as raised:
        load_tensors(path)
    assert str(path) in str(raised.value)


def test_tensors_come_back_as_they_were(tmp_path):
    shared = torch.randn(3, 4).t()
    tensors = {"a": shared, "b": shared, "c": torch.tensor(3), "d": torch.zeros(0, 2), "e": torch.tensor([True])}
    save_tensors(tmp_path / "t.safetensors", tensors)
    found = load_tensors(tmp_path / "t.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


def test_results_come_back_and_the_table_says_the_same(folder):
    rows = (ROW, replace(ROW, budget="25%", status="failed", error='a, "b"\nc', measured_p50_ms=None))
    folder.write_results(rows)
    assert folder.read_results() == rows
    with (folder.path / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == [f.name for f in fields(Row)]
    assert table == [{k: "" if v is None else str(v) for k, v in asdict(row).items()} for row in rows]


@pytest.mark.parametrize("content", ['[{"target": "host"}]', '[{"tarket": 1}]', "[3]", "3"])
def test_results_of_another_kind_are_refused(folder, content):
    folder.write_text("results.json", content)
    with pytest.raises(RunFolderError, match=r"results\.json"):
        folder.read_results()


def test_provenance_has_every_file_that_lasts(folder):
    Stage(folder)(seed=0)
    folder.write_text("report.html", "page")
    folder.write_provenance("name: quickstart\n", seed=7)
    told = folder.read_json("provenance.json")
    expected = {name: sha256(folder.path / name) for name in ("host/50%/a.txt", "host/50%/b.json")}
    assert told["files"] == expected
    assert told["seed"] == 7
    assert told["recipe_sha256"] == hashlib.sha256(b"name: quickstart\n").hexdigest()
    assert told["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert {"python", "platform", "cpu", "command", "finished"} <= told.keys()
    assert json.dumps(told)


def test_it_knows_how_long_stages_took(folder):
    folder.stage("first", {}, [], lambda: time.sleep(0.2))
    folder.stage("a/b", {}, [], lambda: None)
    folder.stage("first", {}, [], lambda: time.sleep(5))
    assert list(folder.seconds()) == ["first", "a/b"]
    assert 0.2 <= folder.seconds()["first"] < 2


@pytest.mark.parametrize("length", [0, 1, 2, 4095, 4096, 4097, 10_000, 2_000_000])
def test_a_long_trace_is_thinned_from_the_first_to_the_last_row(length):
    kept = thinned(range(length))
    assert len(kept) <= MOST_ROWS
    assert kept[:1] == list(range(length))[:1]
    assert kept[-1:] == list(range(length))[-1:]
    assert len({b - a for a, b in itertools.pairwise(kept[:-1])}) <= 1
    assert length > MOST_ROWS or len(kept) >= min(length, MOST_ROWS - 1) // 2
