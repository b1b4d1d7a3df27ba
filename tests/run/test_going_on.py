"""A run that is killed inside a stage goes on there, and ends with the same files."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import tiny_recipe

from deploy_prune.device.targets import load_target
from deploy_prune.recipe.parts import parse_budget
from deploy_prune.run import context as run_context
from deploy_prune.run import stages
from deploy_prune.run.context import prepare
from deploy_prune.run.folder import RunFolder

SETTINGS = {
    "accumulate": 2,
    "data": {
        "image_size": 16, "channels": 1, "source_classes": [0, 1, 2], "target_classes": [3, 4, 5], "shots": 5,
        "augment": "affine",
    },
    "train": {"steps": 10, "batch_size": 16},
    "search": {"steps": 10, "batch_size": 16},
    "retrain": {"steps": 10, "batch_size": 4, "hold_out": 0.2, "ema": 0.9, "mix": "mixup"},
}  # fmt: skip
WORKS = ("train the dense network", "search", "adapt the dense network", "pixel-8 50% macs: retrain")
STOPPED = 9


class StoppedError(Exception):
    """Stands in for the end of the process."""


def run_stages(path, progress, fresh=False):
    """All stages that train, on a device that is not attached."""
    recipe = tiny_recipe(**SETTINGS)
    context = prepare(recipe, RunFolder(path=path), progress)
    context.folder.open(fresh)
    costs = stages.candidate_costs(context, path / ".scratch")
    dense = stages.train_dense(context)
    found = stages.search(context, costs, dense)
    stages.adapt_dense(context, dense)
    planned = stages.plan(context, costs, found, load_target("pixel-8"), parse_budget("50% macs", "latency"))
    stages.retrain(context, costs, "pixel-8/50% macs", planned)
    return path


def files(path):
    """What lasts, by name."""
    found = {p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.is_file()}
    return {name: p.read_bytes() for name, p in found.items() if not name.startswith(".")}


def silent(work, done, total, **figures):
    pass


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Never stopped."""
    return run_stages(tmp_path_factory.mktemp("finished") / "run", silent)


@pytest.fixture(autouse=True)
def _kept_at_every_step(monkeypatch):
    monkeypatch.setattr(run_context, "KEEP_EVERY_S", 0.0)


def killed(path, work):
    """A process of its own runs the stages, and is killed in that work; returns its exit code."""
    program = (
        "import os, signal, sys; from pathlib import Path; import test_going_on as t\n"
        "def progress(work, done, total, **figures):\n"
        "    if work.startswith(sys.argv[2]) and done == t.STOPPED: os.kill(os.getpid(), signal.SIGKILL)\n"
        "t.run_context.KEEP_EVERY_S = 0.0\n"
        "t.run_stages(Path(sys.argv[1]), progress)"
    )
    places = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", program, str(path), work]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": places}, check=False, timeout=600).returncode  # noqa: S603


def test_stopped_in_every_stage_it_ends_with_the_same_files(finished, tmp_path):
    told, left = [], list(WORKS)

    def progress(work, done, total, **figures):
        told.append((work, done))
        if left and work.startswith(left[0]) and done == STOPPED:
            del left[0]
            raise StoppedError

    for _ in WORKS:
        with pytest.raises(StoppedError):
            run_stages(tmp_path / "run", progress)
    run_stages(tmp_path / "run", progress)
    for work in WORKS:
        mine = [(name, done) for name, done in told if name.startswith(work)]
        assert [done for name, done in mine if " goes on " not in name] == [*range(1, STOPPED + 1), STOPPED, 10]
        assert [name.endswith(" goes on at step 9 of 10") for name, _ in mine].count(True) == 1
    assert files(tmp_path / "run") == files(finished)
    assert not list((tmp_path / "run/.stages").glob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("work", [WORKS[0], WORKS[1], WORKS[3]])
def test_a_killed_process_too(finished, tmp_path, work):
    assert killed(tmp_path / "run", work) == -signal.SIGKILL
    (partial,) = (tmp_path / "run/.stages").glob("*.partial")
    before, told = partial.stat().st_size, []
    run_stages(tmp_path / "run", lambda name, done, total, **figures: told.append((name, done)))
    assert before > 0
    assert [done for name, done in told if name.startswith(work) and "goes on" not in name] == [STOPPED, 10]
    assert files(tmp_path / "run") == files(finished)


def test_fresh_begins_at_the_first_step(tmp_path):
    def stop(work, done, total, **figures):
        taken.append(done) if work == WORKS[0] else None
        if work == WORKS[0] and done == STOPPED:
            raise StoppedError

    for _ in range(2):
        taken = []
        with pytest.raises(StoppedError):
            run_stages(tmp_path / "run", stop, fresh=True)
        assert taken == list(range(1, STOPPED + 1))
        assert (tmp_path / "run/.stages/dense.partial").exists()
