"""Several devices at once: as fast as the slowest of them, the same plans, and nothing left running at Ctrl-C."""

import os
import signal
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_run import tiny_recipe

from deploy_prune.budget import candidates
from deploy_prune.budget.candidates import CandidateCosts, identity_of
from deploy_prune.budget.loop import enforce
from deploy_prune.budget.shelf import Shelf
from deploy_prune.device.targets import load_target
from deploy_prune.errors import BudgetError, CommandError, MeasurementError
from deploy_prune.latency import granularity, measure
from deploy_prune.networks import build
from deploy_prune.recipe.parts import parse_budget
from deploy_prune.run import rack, reach, stages
from deploy_prune.surgery.groups import find_groups
from deploy_prune.system.shell import digest, run_command, write_text
from deploy_prune.types import Artifact, Progress, silent

SLEEP_S = 0.8
TARGETS = tuple(
    replace(load_target("host"), name=f"board-{n}", runner=f"ssh://board-{n}", granularity=None) for n in range(4)
)
BUDGETS = tuple(parse_budget(text, "latency") for text in ("70%", "50%"))


class Devices:
    """Devices that sleep when they measure: a network takes as long as its file is large, and its device is slow."""

    def __init__(self):
        self.measured, self.at_once, self.most, self.broken = Counter(), Counter(), Counter(), set()
        self.lock, self.sleep_s = threading.Lock(), 0.0

    def __call__(self, device, program):
        def run(payload, spec, timeout_s):
            if "mode" not in spec:
                return {"about": {"cpu": device[-1], "packages": {}}}
            if device in self.broken:
                message = f"{device} is gone"
                raise CommandError(message)
            with self.lock:
                for name in (device, "all"):
                    self.at_once[name] += 1
                    self.most[name] = max(self.most[name], self.at_once[name])
            time.sleep(self.sleep_s)
            with self.lock:
                self.measured[device] += 1
                self.at_once.subtract([device, "all"])
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


def planned(tiny, jobs, monkeypatch, folder, targets=TARGETS, budgets=BUDGETS):
    """What a run does before it trains and before it delivers: (the targets that can't be used, seconds)."""
    costs = replace(tiny, _shelf=Shelf(), _sizes={}, since=time.time(), scratch=folder)
    context = SimpleNamespace(recipe=tiny_recipe(), targets=targets, jobs=jobs)
    monkeypatch.setattr(type(context.recipe), "parsed_budgets", budgets)
    monkeypatch.setattr(stages, "is_planned", lambda *args: False)
    monkeypatch.setattr(stages, "choose_channels", lambda context, costs, found, *asked: plan(costs, *asked))
    started = time.perf_counter()
    unusable = reach.unusable_targets(context, costs)
    context.targets = tuple(target for target in targets if target.name not in unusable)
    rack.look_ahead(context, costs, None)
    return costs, unusable, time.perf_counter() - started


def each(targets, work):
    """The same work for each target."""
    return [(target, partial(work, target)) for target in targets]


def plan(costs, target, budget):
    scores = {group.name: torch.arange(float(group.channels)) for group in costs.structure.groups}
    return enforce(costs, target, budget, scores, costs.progress, "plan")


def plans(costs, targets=TARGETS):
    """As the loop makes them later, one after the other."""
    return [[(step.counts, step.observed) for step in plan(costs, t, b).candidates] for t in targets for b in BUDGETS]


def test_four_devices_take_little_longer_than_one_and_the_loop_goes_the_same_way(
    tiny, devices, written, monkeypatch, tmp_path
):
    serial, _, own_s = planned(tiny, 1, monkeypatch, tmp_path / "a")  # what this machine itself takes
    expected, asked = plans(serial), devices.measured.copy()
    assert len(asked) == 4
    assert devices.most["all"] == 1
    written.clear()

    monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(tmp_path / "another"))
    devices.sleep_s, devices.most = SLEEP_S, Counter()
    costs, unusable, seconds = planned(tiny, 4, monkeypatch, tmp_path / "b")
    assert unusable == {}
    assert devices.measured == asked + asked
    assert seconds - own_s <= 0.4 * SLEEP_S * asked.total(), (seconds, own_s, asked)
    assert devices.most["all"] > 1
    assert {devices.most[target.runner] for target in TARGETS} == {1}
    assert set(written.values()) == {1}, "each once for all four"
    assert plans(costs) == expected
    assert devices.measured == asked + asked, "the loop finds all that it measures"


def test_alike_devices_share_the_budgets_of_one_target(tiny, devices, written, monkeypatch, tmp_path):
    alone, several = replace(TARGETS[0], name="farm"), ("ssh://a-0", "ssh://b-0", "ssh://c-0")  # alike: equally slow
    budgets = tuple(parse_budget(text, "latency") for text in ("80%", "70%", "60%", "50%"))
    found = {}
    for name, target in (("one", alone), ("several", replace(alone, runner=several[0], alike=several[1:]))):
        monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(tmp_path / name))
        devices.sleep_s, devices.measured, devices.most = SLEEP_S, Counter(), Counter()
        costs, _, seconds = planned(tiny, 3, monkeypatch, tmp_path / f"{name}-files", (target,), budgets)
        found[name] = seconds, devices.measured.copy(), devices.most.copy(), plans(costs, (target,))
    assert found["one"][2]["all"] == 1
    assert set(found["several"][1]) == set(several)
    assert {found["several"][2][device] for device in several} == {1}
    assert found["several"][2]["all"] == 3
    assert found["several"][3] == found["one"][3]
    assert found["several"][0] < 0.8 * found["one"][0], found


def test_an_error_on_one_device_is_that_targets_only(tiny, devices, written, monkeypatch, tmp_path):
    devices.broken.add("ssh://board-2")
    costs, unusable, _ = planned(tiny, 4, monkeypatch, tmp_path)
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
    rack.look_ahead(SimpleNamespace(recipe=tiny_recipe(), targets=TARGETS, jobs=4), Costs(), None)
    assert sorted(fails) == [target.name for target in TARGETS]


def test_what_is_planned_is_not_looked_at_again(monkeypatch):
    monkeypatch.setattr(stages, "is_planned", lambda context, costs, found, target, budget: target.name != "board-3")
    asked = []
    monkeypatch.setattr(stages, "choose_channels", lambda context, costs, found, target, budget: asked.append(target))
    for jobs in (1, 4):
        rack.look_ahead(SimpleNamespace(recipe=tiny_recipe(), targets=TARGETS, jobs=jobs), Costs(), None)
    assert asked == [TARGETS[3]], "and with one job nothing is"


@pytest.mark.parametrize("jobs", [1, 2, 9])
def test_outcomes_come_in_the_order_of_the_targets(jobs):
    most, inside, lock = [0], Counter(), threading.Lock()

    def work(target, costs):
        with lock:
            inside[target.runner] += 1
            assert inside[target.runner] == 1, "two at once on a device"
            most[0] = max(most[0], inside.total())
        if jobs > 1:
            torch.rand(1)
        time.sleep(0.3 if target is TARGETS[0] else 0.1)
        with lock:
            inside[target.runner] -= 1
        if target is TARGETS[1]:
            raise BudgetError(target.name)
        return target.name

    targets = [*TARGETS, replace(TARGETS[0], name="same-device")]
    state = torch.get_rng_state()
    with closing(rack.at_once(Costs(), each(targets, work), jobs)) as outcomes:
        found = [str(outcome) for outcome in outcomes]
    assert found == [target.name for target in targets]
    assert most[0] == min(jobs, 4)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_fault_of_the_program_is_raised_where_its_outcome_is_asked_for():
    def work(target, costs):
        return 1 / 0

    with pytest.raises(ZeroDivisionError):
        list(rack.at_once(Costs(), each(TARGETS, work), 4))


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_every_thread_and_what_they_wait_for():
    begun, threads, went_on = threading.Barrier(5), [], []

    def work(target, costs):
        threads.append(threading.current_thread())
        begun.wait(10)
        if target is TARGETS[0]:
            while True:  # at its next step it stops
                costs.progress("measure", 0, 1)
                time.sleep(0.01)
        run_command(["sleep", "60"], 60)
        went_on.append(target)

    def interrupt():
        begun.wait(10)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(rack.at_once(Costs(), each(TARGETS, work), 4))
    assert time.monotonic() - started < 8
    assert len(threads) == 4
    assert not any(thread.is_alive() for thread in threads)
    assert went_on == []
