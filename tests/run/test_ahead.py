"""What is measured ahead: as fast as the slowest device, the same plans and rows, and errors where they belong."""

import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from tiny_run import ArithmeticDevice, tiny_recipe

from deploy_prune.budget import candidates
from deploy_prune.budget.candidates import CandidateCosts, identity_of
from deploy_prune.budget.loop import enforce
from deploy_prune.budget.shelf import Shelf
from deploy_prune.device.targets import load_target
from deploy_prune.errors import CommandError, MeasurementError, ParityError
from deploy_prune.latency import granularity, measure
from deploy_prune.networks import build
from deploy_prune.recipe.parts import parse_budget
from deploy_prune.run import ahead, deliver, pipeline, reach, stages
from deploy_prune.surgery.groups import find_groups
from deploy_prune.system.shell import digest, write_text
from deploy_prune.types import Artifact, Progress, silent

SLEEP_S = 0.8
TARGETS = tuple(
    replace(load_target("host"), name=f"board-{n}", runner=f"ssh://board-{n}", granularity=None) for n in range(4)
)
LEARNED = SimpleNamespace(found=None)
BUDGETS = tuple(parse_budget(text, "latency") for text in ("70%", "50%"))


class Spans:
    """When which device measured."""

    def __init__(self):
        self.lock, self.found = threading.Lock(), []

    @contextmanager
    def on(self, device):
        began = time.perf_counter()
        yield
        with self.lock:
            self.found.append((device, began, time.perf_counter()))

    def most(self, device=None):
        """At most so many measurements at once: on this device, or on all."""
        ends = [(when, step) for name, *span in self.found for when, step in zip(span, (1, -1), strict=True)
                if device in (None, name)]  # fmt: skip
        return max(accumulate(step for _, step in sorted(ends)))

    def share(self):
        """Of the time that measurements take one after the other, that in which any device measured."""
        covered = until = 0.0
        for _, began, ended in sorted(self.found, key=lambda span: span[1]):
            covered, until = covered + max(0.0, ended - max(began, until)), max(until, ended)
        return covered / sum(ended - began for _, began, ended in self.found)


class Devices:
    """Devices that sleep when they measure: a network takes as long as its file is large, and its device is slow."""

    def __init__(self):
        self.measured, self.spans, self.broken, self.sleep_s = Counter(), Spans(), set(), 0.0

    def __call__(self, device, program):
        def run(payload, spec, timeout_s):
            if "mode" not in spec:
                return {"about": {"cpu": device[-1], "packages": {}}}
            if device in self.broken:
                message = f"{device} is gone"
                raise CommandError(message)
            with self.spans.on(device):
                time.sleep(self.sleep_s)
                self.measured[device] += 1
            slow = 1 + int(device[-1]) / 10
            sizes = [Path(model["path"]).stat().st_size for model in spec["models"]]
            return {"samples_ms": [[slow * (1 + size / 1000)] * spec["runs"] for size in sizes], "device": device}

        return run


@pytest.fixture
def devices(monkeypatch, tmp_path):
    """The rack, with a cache of its own."""
    found = Devices()
    monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measure, "reach", found)
    monkeypatch.setattr(granularity, "reach", found)
    monkeypatch.setattr(candidates, "profilable", lambda target: False)
    granularity._told.cache_clear()
    yield found
    granularity._told.cache_clear()


@pytest.fixture
def written(monkeypatch):
    """Artifacts are files of as many bytes as the network has parameters; how often each was written."""
    asked = Counter()

    def write(name, network, example, path, precision, part, inputs):
        asked[tuple(tuple(p.shape) for p in network.parameters())] += 1
        write_text(path, "x" * sum(p.numel() for p in network.parameters()))
        shape = tuple(example.shape)
        return Artifact(
            path=path, format=name, precision=precision, sha256=digest(path), input_shape=shape, versions={}
        )

    monkeypatch.setattr(candidates.isolated, "write", write)
    return asked


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    recipe = tiny_recipe()
    example = build.example_input(recipe.data)
    network = build.build_network(recipe.model, 3)
    return CandidateCosts(
        network=network, structure=find_groups(network, (example,), recipe.prune), inputs=(example,),
        identity=identity_of(recipe.model), scratch=tmp_path_factory.mktemp("scratch"), prune=recipe.prune,
        export=recipe.export, measure=recipe.measure,
    )  # fmt: skip


@dataclass(frozen=True)
class Costs:
    """All that the rack itself needs of a network's costs."""

    progress: Progress = silent
    structure: Any = field(default_factory=lambda: SimpleNamespace(branches=()))


def planned(tiny, jobs, monkeypatch, folder, targets=TARGETS, budgets=BUDGETS):
    """What a run does before it trains and before it delivers: (costs, the targets that can't be used)."""
    costs = replace(tiny, _shelf=Shelf(), _sizes={}, since=time.time(), scratch=folder)
    context = SimpleNamespace(recipe=tiny_recipe(), targets=targets, jobs=jobs)
    monkeypatch.setattr(type(context.recipe), "budgets_of", lambda recipe, target: budgets)
    monkeypatch.setattr(stages, "is_planned", lambda *args: False)
    monkeypatch.setattr(stages, "choose_channels", lambda context, costs, found, *asked: plan(costs, *asked))
    unusable = reach.unusable_targets(context, costs)
    context.targets = tuple(target for target in targets if target.name not in unusable)
    ahead.plan(context, costs, LEARNED)
    return costs, unusable


def plan(costs, target, budget):
    scores = {group.name: torch.arange(float(group.channels)) for group in costs.structure.groups}
    return enforce(costs, target, budget, scores, costs.progress, "plan")


def plans(costs, targets=TARGETS):
    """As the loop makes them later, one after the other."""
    return [[(step.counts, step.observed) for step in plan(costs, t, b).candidates] for t in targets for b in BUDGETS]


def test_four_devices_take_little_longer_than_one_and_the_loop_goes_the_same_way(
    tiny, devices, written, monkeypatch, tmp_path
):
    serial, _ = planned(tiny, 1, monkeypatch, tmp_path / "a")
    expected, asked = plans(serial), devices.measured.copy()
    assert len(asked) == 4
    assert devices.spans.most() == 1
    written.clear()

    monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(tmp_path / "another"))
    devices.sleep_s, devices.spans = SLEEP_S, Spans()
    costs, unusable = planned(tiny, 4, monkeypatch, tmp_path / "b")
    assert unusable == {}
    assert devices.measured == asked + asked
    assert devices.spans.share() <= 0.4
    assert {devices.spans.most(target.runner) for target in TARGETS} == {1}
    assert set(written.values()) == {1}, "each once for all four"
    assert plans(costs) == expected
    assert devices.measured == asked + asked, "the loop finds all that it measures"


def test_alike_devices_share_the_budgets_of_one_target(tiny, devices, written, monkeypatch, tmp_path):
    alone, several = replace(TARGETS[0], name="farm"), ("ssh://a-0", "ssh://b-0", "ssh://c-0")  # alike: equally slow
    budgets = tuple(parse_budget(text, "latency") for text in ("80%", "70%", "60%", "50%"))
    found = {}
    for name, target in (("one", alone), ("several", replace(alone, runner=several[0], alike=several[1:]))):
        monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(tmp_path / name))
        devices.sleep_s, devices.measured, devices.spans = SLEEP_S, Counter(), Spans()
        costs, _ = planned(tiny, 3, monkeypatch, tmp_path / f"{name}-files", (target,), budgets)
        found[name] = devices.measured.copy(), devices.spans, plans(costs, (target,))
    assert found["one"][1].most() == 1
    assert set(found["several"][0]) == set(several)
    spans = found["several"][1]
    assert {spans.most(device) for device in several} == {1}
    assert spans.most() == 3
    assert found["several"][2] == found["one"][2]
    assert spans.share() < 0.8


def test_an_error_on_one_device_is_that_targets_only(tiny, devices, written, monkeypatch, tmp_path):
    devices.broken.add("ssh://board-2")
    costs, unusable = planned(tiny, 4, monkeypatch, tmp_path)
    assert list(unusable) == ["board-2"]
    assert "board-2 is gone" in str(unusable["board-2"])
    asked = devices.measured.copy()
    assert len(asked) == 3
    devices.broken.add("ssh://board-1")
    plans(costs, [target for target in TARGETS if target.name != "board-2"])
    assert devices.measured == asked, "the others were planned"


def test_an_error_while_looking_ahead_is_met_again_by_the_loop(monkeypatch):
    fails = []

    def choose(context, costs, found, target, budget):
        fails.append(target.name)
        message = "gone"
        raise MeasurementError(message)

    monkeypatch.setattr(stages, "is_planned", lambda *args: False)
    monkeypatch.setattr(stages, "choose_channels", choose)
    ahead.plan(SimpleNamespace(recipe=tiny_recipe(), targets=TARGETS, jobs=4), Costs(), LEARNED)
    assert sorted(fails) == [target.name for target in TARGETS]


def test_what_is_planned_is_not_looked_at_again(monkeypatch):
    monkeypatch.setattr(stages, "is_planned", lambda context, costs, found, target, budget: target.name != "board-3")
    asked = []
    monkeypatch.setattr(stages, "choose_channels", lambda context, costs, found, target, budget: asked.append(target))
    for jobs in (1, 4):
        ahead.plan(SimpleNamespace(recipe=tiny_recipe(), targets=TARGETS, jobs=jobs), Costs(), LEARNED)
    assert asked == [TARGETS[3]], "and with one job nothing is"


# --- whole runs -------------------------------------------------------------------------------------------------------


class Boards(ArithmeticDevice):
    """Arithmetic devices that sleep when they measure; ``slowed``: those on which finished networks miss budgets."""

    def __init__(self):
        super().__init__()
        self.sleep_s, self.spans, self.slowed = 0.0, Spans(), set()

    def reach(self, device, program):
        def run(payload, spec, timeout_s):
            if "models" not in spec:
                return {"about": {"cpu": "board", "packages": {}}}
            with self.spans.on(device):
                time.sleep(self.sleep_s)
            with self.spans.lock:
                told = self(payload, spec, timeout_s)
            finished = "model.onnx" in spec["models"][-1]["path"] and len(spec["models"]) > 1
            if device in self.slowed and finished:
                told["samples_ms"][-1] = [2 * ms for ms in told["samples_ms"][-1]]
            return {**told, "device": device}

        return run


@pytest.fixture
def boards(monkeypatch, tmp_path):
    """Four boards, and the recipe of a run on them."""
    found = Boards()
    monkeypatch.setattr(measure, "reach", found.reach)
    monkeypatch.setattr(granularity, "reach", found.reach)
    monkeypatch.setattr(candidates, "profilable", lambda target: False)
    names = []
    for target in TARGETS:
        told = {"name": target.name, "title": "A board", "format": "onnx", "precision": "fp32", "threads": 1}
        told |= {"runtime": "onnxruntime", "runner": target.runner, "granularity": {"value": 1, "source": "here"}}
        (tmp_path / f"{target.name}.yaml").write_text(yaml.safe_dump(told))
        names.append(str(tmp_path / f"{target.name}.yaml"))
    return found, tiny_recipe(targets=names, budgets=["60%"], metric="latency")


def rows_of(recipe, folder, jobs, monkeypatch):
    """The rows of a new run."""
    monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(folder / "cache"))
    granularity._told.cache_clear()
    return pipeline.run(recipe, folder, jobs=jobs).rows


@pytest.mark.slow
def test_a_whole_run_measures_on_four_devices_at_once_and_comes_to_the_same_rows(boards, monkeypatch, tmp_path):
    device, recipe = boards
    expected = rows_of(recipe, tmp_path / "alone", 1, monkeypatch)
    assert {row.status for row in expected} == {"ok"}
    assert device.spans.most() == 1
    asked, device.sleep_s, device.spans = device.asked.total(), SLEEP_S, Spans()
    assert rows_of(recipe, tmp_path / "at-once", 4, monkeypatch) == expected
    assert device.asked.total() == 2 * asked, "nothing is measured twice"
    assert {device.spans.most(target.runner) for target in TARGETS} == {1}
    assert device.spans.share() <= 0.4


@pytest.mark.slow
def test_a_budget_that_is_missed_on_one_of_the_devices_is_planned_again_there_alone(boards, monkeypatch, tmp_path):
    device, recipe = boards
    device.slowed.add(TARGETS[1].runner)
    expected = rows_of(recipe, tmp_path / "alone", 1, monkeypatch)
    asked = device.asked.total()
    rows = rows_of(recipe, tmp_path / "at-once", 4, monkeypatch)
    assert rows == expected
    assert [row.target for row in rows if row.status == "failed"] == [TARGETS[1].name]
    assert device.asked.total() == 2 * asked


@pytest.mark.slow
def test_what_fails_ahead_fails_its_own_row_and_is_done_once(boards, monkeypatch, tmp_path):
    device, recipe = boards
    working, tried = stages.export, []

    def export(context, network, target, place, key):
        if place == f"{TARGETS[2].name}/60%":
            tried.append(place)
            message = "no"
            raise ParityError(message)
        return working(context, network, target, place, key)

    monkeypatch.setattr(stages, "export", export)
    rows = rows_of(recipe, tmp_path, 4, monkeypatch)
    assert [(row.target, row.error) for row in rows if row.status == "failed"] == [(TARGETS[2].name, "no")]
    assert len(tried) == 1


@pytest.mark.slow
def test_with_one_device_each_row_is_known_as_soon_as_its_network_is(boards, monkeypatch, tmp_path):
    device, recipe = boards
    recipe = tiny_recipe(targets=recipe.targets[:1], budgets=["70%", "60%"], metric="latency")
    made, timed = [], []
    monkeypatch.setattr(deliver, "make", lambda *args, make=deliver.make: made.append(args[4].text) or make(*args))
    monkeypatch.setattr(deliver, "measured", lambda *a, do=deliver.measured: timed.append(len(made)) or do(*a))
    rows_of(recipe, tmp_path, 4, monkeypatch)
    assert (made, timed) == (["70%", "60%"], [1, 2])
