"""A run whose stages are trained by several processes, and what is refused before that."""

import math
import os
import subprocess
import sys

import pytest
import torch
from tiny_run import tiny_recipe

from deploy_prune.device.targets import load_target
from deploy_prune.errors import TrainingError
from deploy_prune.recipe.parts import parse_budget
from deploy_prune.run import context as run_context
from deploy_prune.run import pipeline, stages, trained
from deploy_prune.run.context import prepare
from deploy_prune.run.folder import RunFolder, load_tensors
from deploy_prune.system.launched import require_started_once
from deploy_prune.training import processes
from deploy_prune.training.ranks import Ranks

PLACE = "pixel-8/50% macs"
SETTINGS = {
    "data": {
        "image_size": 16, "channels": 1, "source_classes": [0, 1, 2], "target_classes": [3, 4, 5], "shots": 5,
        "augment": "affine",
    },
    "retrain": {"steps": 6, "batch_size": 5, "hold_out": 0.2, "mix": "mixup"},
}  # fmt: skip


def run_stages(path, progress, **changes):
    """All stages that train, on a device that is not attached."""
    recipe = tiny_recipe(**SETTINGS, **changes)
    context = prepare(recipe, RunFolder(path=path), progress)
    context.folder.open(fresh=False)
    costs = stages.candidate_costs(context, path / ".scratch")
    dense = stages.train_dense(context)
    found = stages.search(context, costs, dense)
    stages.adapt_dense(context, dense)
    planned = stages.plan(context, costs, found, load_target("pixel-8"), parse_budget("50% macs", "latency"))
    stages.retrain(context, costs, PLACE, planned)


def files(path):
    """What lasts, by name."""
    return {p.relative_to(path).as_posix(): p for p in path.rglob("*.*") if p.is_file() and ".stages" not in p.parts}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_of_two_processes_is_one_with_twice_the_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(run_context, "KEEP_EVERY_S", 0.0)
    told, started = [], []
    monkeypatch.setattr(
        trained, "run_together", lambda *given: started.append(given[0]) or processes.run_together(*given)
    )

    class StoppedError(Exception):
        """Stands in for an interrupt."""

    def progress(work, done, total, **figures):
        told.append((work, done))
        if told.count((work, done)) == 1 and (work, done) == ("search", 2):
            raise StoppedError

    with pytest.raises(StoppedError):
        run_stages(tmp_path / "two", progress, processes=2)
    assert (tmp_path / "two/.stages/search.partial").exists()
    run_stages(tmp_path / "two", progress, processes=2)
    assert started == [2] * 5
    first, second, *again = [done for work, done in told if work == "search"]
    assert (first, second) == (1, 2)
    assert again == list(range(max(2, again[0]), 7)), "what was done before the processes had ended is not done again"
    assert [work for work, _ in told].count(f"search goes on at step {again[0]} of 6") == 1
    run_stages(tmp_path / "one", lambda *_, **__: None, accumulate=2)
    two, one = files(tmp_path / "two"), files(tmp_path / "one")
    assert two.keys() == one.keys()
    assert not list((tmp_path / "two/.stages").glob("*.partial"))
    for name in (n for n in one if n.endswith(".safetensors")):
        ours, theirs = load_tensors(two[name]), load_tensors(one[name])
        for key, tensor in theirs.items():
            torch.testing.assert_close(ours[key], tensor, rtol=0, atol=1e-5, msg=lambda told, n=name: f"{n}: {told}")
    for name in ("dense/adapted.json", f"{PLACE}/retrain.json", f"{PLACE}/architecture.json"):
        assert two[name].read_bytes() == one[name].read_bytes()


def test_one_process_does_what_takes_no_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(trained, "run_together", lambda *_: pytest.fail("processes are started"))
    search = {"steps": 6, "batch_size": 16, "method": "magnitude"}
    recipe = tiny_recipe(processes=2, search=search)
    context = prepare(recipe, RunFolder(path=tmp_path / "run"), lambda *_, **__: None)
    context.folder.open(fresh=False)
    costs = stages.candidate_costs(context, tmp_path / ".scratch")
    made = trained.source_network(context, context.build(3).form.network.state_dict())
    context.folder.write_tensors("dense/weights.safetensors", made.form.network.state_dict())
    stages.search(context, costs, "dense")
    assert (tmp_path / "run/search/scores.safetensors").exists()


@pytest.mark.parametrize(("rank", "every_s"), [(0, 2.5), (1, math.inf)])
def test_only_the_first_process_keeps_how_far_it_has_come(tmp_path, rank, every_s):
    def work(context, session, structure, given):
        assert (context.folder.path, structure, given) == (tmp_path, None, "given")
        assert (session.ranks.rank, session.seed) == (rank, context.recipe.seed)
        assert session.kept.every_s == every_s
        session.kept.tell("it goes on")

    told = []
    asked = trained._Asked(
        recipe=tiny_recipe(processes=2), folder=tmp_path, kept=tmp_path / "kept", key="key", every_s=2.5,
        needs_structure=False,
    )  # fmt: skip
    trained._in_rank(Ranks(rank=rank, size=2), lambda *what: told.append(what), asked, work, ("given",))
    assert told == [("progress", "it goes on", 1, 1, {})]


# --- how many ---


@pytest.mark.parametrize(
    ("devices", "keys", "expected"),
    [
        (0, {}, 1),
        (0, {"processes": "auto", "device": "auto"}, 1),
        (4, {"processes": "auto", "device": "auto"}, 4),
        (4, {"processes": "auto", "device": "cuda"}, 4),
        (4, {"processes": "auto", "device": "cuda:2"}, 1),
        (4, {"processes": "auto", "device": "cpu"}, 1),
        (4, {"processes": 4, "device": "auto"}, 4),
        (4, {"processes": 6, "device": "cpu"}, 6),
        (0, {"processes": 2, "device": "auto"}, 2),
    ],
    ids=str,
)
def test_how_many_processes_a_recipe_asks_for(monkeypatch, devices, keys, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    assert processes.require_processes(tiny_recipe(**keys)) == expected


@pytest.mark.parametrize(
    ("devices", "keys", "sentence"),
    [
        (2, {"processes": 3, "device": "auto"}, r"processes: 3 are asked for, .* torch finds 2; ask for at most 2, or"),
        (0, {"processes": 2, "device": "cuda"}, r"processes: 2 are asked for, .* torch finds 0; ask for at most 1, or"),
        (4, {"processes": 2, "device": "cuda:1"}, r"CUDA devices 0 to 1, and device is cuda:1; write device: cuda\."),
    ],
    ids=str,
)
def test_more_processes_than_devices_are_refused_before_any_work(tmp_path, monkeypatch, devices, keys, sentence):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    with pytest.raises(TrainingError, match=sentence):
        prepare(tiny_recipe(**keys), RunFolder(path=tmp_path / "run"), lambda *_, **__: None)
    assert not list(tmp_path.iterdir())


def test_they_share_the_cores(monkeypatch):
    monkeypatch.setattr(processes.joblib, "cpu_count", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert [processes.threads_of_rank(size, None) for size in (1, 2, 3, 8, 16)] == [8, 4, 2, 1, 1]
    assert processes.threads_of_rank(4, 3) == 3


# --- launchers ---


def test_what_a_launcher_starts_ends_at_once_and_names_processes(tmp_path):
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "deploy_prune.cli", "recipe", "quickstart", "--out", str(tmp_path / "runs")],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == TrainingError.exit_code
        (line,) = errors.splitlines()
        assert "started this command 2 times at once (WORLD_SIZE is 2)" in line
        assert line.endswith("with --set processes=2.")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_so_does_a_run_from_python(tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "3")
    with pytest.raises(TrainingError, match=f"{name} is 3.*processes=3"):
        pipeline.run(tiny_recipe(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_one_process_of_a_launcher_is_no_trouble(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    require_started_once()
