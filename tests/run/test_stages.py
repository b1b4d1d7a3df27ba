"""The stages one by one: what each leaves in the folder, and what it makes of trouble."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_run import tiny_recipe
from torch import nn

from deploy_prune.budget.candidates import Timed
from deploy_prune.budget.loop import Candidate, Plan
from deploy_prune.device.targets import load_target
from deploy_prune.errors import (
    BudgetError,
    ParityError,
    TrainingError,
    VerificationError,
    WeightsError,
)
from deploy_prune.networks import build
from deploy_prune.recipe.parts import parse_budget
from deploy_prune.retrain.fewshot import FEATURES, RATES, adapt
from deploy_prune.run import final_latency, stages
from deploy_prune.run.context import prepare
from deploy_prune.run.folder import RunFolder, save_tensors
from deploy_prune.run.reach import require_reach
from deploy_prune.surgery.cut import cut
from deploy_prune.tasks.classification import CLASSIFIER
from deploy_prune.training.loop import network_score
from deploy_prune.types import Artifact, Latency

HOST = replace(load_target("host"), granularity=4)
PIXEL = load_target("pixel-8")
HALF = parse_budget("50%", "latency")


def make_context(path, **changes):
    recipe = tiny_recipe(**changes)
    context = prepare(recipe, RunFolder(path=path / recipe.name), lambda *args, **figures: None)
    context.folder.open(fresh=False)
    return context


@pytest.fixture
def context(tmp_path):
    return make_context(tmp_path)


@pytest.fixture(scope="module")
def costs(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench")
    return stages.candidate_costs(make_context(path), path / "scratch")


def no_training(*args, **kwargs):
    pytest.fail("this trains")


# --- the dense network ------------------------------------------------------------------------------------------------


def test_the_dense_network_is_trained_and_scored(context):
    stages.train_dense(context)
    told = context.folder.read_json("dense/training.json")
    assert len(told["loss"]) == 10
    assert told["loss"][-1] < told["loss"][0]
    assert 0 < told["source_score"] <= 1
    torch.manual_seed(0)
    untrained = build.build_network(context.recipe.model, 3).state_dict()
    trained = context.folder.read_tensors("dense/weights.safetensors")
    assert trained.keys() == untrained.keys()
    assert not torch.equal(trained["0.weight"], untrained["0.weight"])


def test_weights_of_the_recipe_are_taken_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(stages.trained, "train_network", no_training)
    network = build.build_network(tiny_recipe().model, 3)
    save_tensors(tmp_path / "given.safetensors", network.state_dict())
    model = {"source": "tiny_run:network", "weights": str(tmp_path / "given.safetensors")}
    context = make_context(tmp_path, model=model)
    first = stages.train_dense(context)
    found = context.folder.read_tensors("dense/weights.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in network.state_dict().items())
    nn.init.zeros_(network[-1].bias)
    save_tensors(tmp_path / "given.safetensors", network.state_dict())
    assert stages.train_dense(context) != first, "other weights in the same file"
    assert not context.folder.read_tensors("dense/weights.safetensors")[f"{len(network) - 1}.bias"].any()


def test_a_new_head_is_trained_on_top_of_the_files_other_layers(tmp_path, monkeypatch):
    """The file is of a network for other classes."""
    given, seen = build.build_network(tiny_recipe().model, 7).state_dict(), {}

    def train(network, *args, **kwargs):
        seen.update({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return [1.0]

    monkeypatch.setattr(stages.trained, "train_network", train)
    torch.save({"state_dict": given}, tmp_path / "given.pt")
    model = {"source": "tiny_run:network", "weights": str(tmp_path / "given.pt")}
    with pytest.raises(WeightsError, match=r"model\.head: new"):
        make_context(tmp_path, model=model)
    context = make_context(tmp_path, model={**model, "head": "new"})
    stages.train_dense(context)
    same = {name for name, tensor in seen.items() if tensor.shape == given[name].shape}
    assert set(seen) - same == build.head_tensors(context.recipe.model, 3)
    assert all(torch.equal(seen[name], given[name]) for name in same)
    told = context.folder.read_json("dense/training.json")
    assert (told["loss"], told["taken"]["key"]) == ([1.0], "state_dict")


def test_a_loss_that_is_not_finite_names_work_step_and_rate_and_leaves_nothing(tmp_path, monkeypatch):
    context = make_context(tmp_path, train={"steps": 10, "lr": 1000.0})
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda self, x: x * 1e6)
    with pytest.raises(
        TrainingError, match=r"^train the dense network: the loss is (nan|inf|[\d.e+]+) at step \d+, .*rate \d+"
    ):
        stages.train_dense(context)
    assert not (context.folder.path / "dense").exists()
    assert not list((context.folder.path / ".stages").glob("*.json"))


def test_a_new_task_gets_a_new_classifier_and_keeps_all_else(context):
    state = {
        name: torch.full_like(t, 7) for name, t in build.build_network(context.recipe.model, 3).state_dict().items()
    }
    network = stages.target_network(context, state).form.network
    head = set(network[-1].parameters())
    for name, tensor in network.state_dict(keep_vars=True).items():
        assert bool((tensor == 7).all()) == (tensor not in head), name


def test_the_same_task_keeps_its_classifier(tmp_path):
    data = tiny_recipe().data.model_dump() | {"target_classes": [0, 1, 2]}
    context = make_context(tmp_path, data=data)
    state = {
        name: torch.full_like(t, 7) for name, t in build.build_network(context.recipe.model, 3).state_dict().items()
    }
    again = stages.target_network(context, state).form.network
    assert all(bool((tensor == 7).all()) for tensor in again.state_dict().values())


def test_a_new_classifier_takes_a_higher_rate(context, monkeypatch):
    asked = []
    monkeypatch.setattr(
        stages.trained, "adapt", lambda *args, **kwargs: asked.append(args[3].lr) or adapt(*args, **kwargs)
    )
    stages.adapt_dense(context, stages.train_dense(context))
    assert asked == [RATES["fresh"]]
    assert context.folder.read_json("dense/adapted.json")["adapted"]


@pytest.mark.parametrize("shots", [5, None])
def test_where_the_classes_stay_the_dense_network_is_the_one_given(tmp_path, monkeypatch, shots):
    monkeypatch.setattr(stages.trained, "adapt", no_training)
    changes = {"target_classes": [0, 1, 2], "shots": shots}
    context = make_context(tmp_path, data=tiny_recipe().data.model_dump() | changes)
    stages.adapt_dense(context, stages.train_dense(context))
    given, dense = (context.folder.read_tensors(f"dense/{name}.safetensors") for name in ("weights", "adapted"))
    assert dense.keys() == given.keys()
    assert all(torch.equal(dense[name], tensor) for name, tensor in given.items())
    told, found = (
        context.folder.read_json("dense/adapted.json"),
        network_score(stages.teacher_of(context), context.data.target_test, CLASSIFIER),
    )
    assert (told["adapted"], told["score"]) == (False, found)


def retrained(path, **part):
    """What retraining makes of half the channels: the slim network's weights."""
    context = make_context(path, retrain={"steps": 5, "batch_size": 15, **part})
    costs = stages.candidate_costs(context, path / "scratch")
    dense = stages.train_dense(context)
    found = stages.search(context, costs, dense)
    stages.adapt_dense(context, dense)
    planned = stages.plan(context, costs, found, PIXEL, parse_budget("50% macs", "latency"))
    stages.retrain(context, costs, "pixel-8/50% macs", planned)
    return context.folder.read_tensors("pixel-8/50% macs/weights.safetensors")


def test_a_retrained_network_is_matched_with_its_teachers_features(tmp_path):
    """Of inherited weights by default, and as the recipe weighs them."""
    default, without, same = (
        retrained(tmp_path / name, **part)["0.weight"]
        for name, part in (("default", {}), ("without", {"features": 0.0}), ("same", {"features": FEATURES["inherit"]}))
    )
    assert not torch.equal(default, without)
    assert torch.equal(default, same)


# --- goals and places -------------------------------------------------------------------------------------------------


def test_one_search_serves_the_budget_that_leaves_least(tmp_path):
    context = make_context(tmp_path, budgets=["80% macs", "50% params", "60% macs"])
    goal = stages.smallest_goal(context, stages.candidate_costs(context, tmp_path))
    assert goal.cost.metric == "params"
    assert goal.limit == pytest.approx(
        0.5 * sum(p.numel() for p in build.build_network(context.recipe.model, 3).parameters())
    )


def test_each_target_and_budget_has_a_place_of_its_own():
    texts = ["50%", "50% macs", "4 ms", "120 MMACs"]
    places = {stages.place_of(target, parse_budget(t, "latency")) for target in (HOST, PIXEL) for t in texts}
    assert len(places) == 8
    assert "host/50% macs" in places
    assert all(place.count("/") == 1 for place in places)


def test_the_first_budget_that_can_not_be_met_stops_the_run():
    reaches = [
        SimpleNamespace(met=met, budget=b, target="host", reason="too small")
        for met, b in ((True, "50%"), (False, "1%"))
    ]
    require_reach(reaches[:1])
    with pytest.raises(BudgetError, match=r"'1%' can't be met on host: too small"):
        require_reach(reaches)


# --- proof, export ----------------------------------------------------------------------------------------------------


def planned(costs):
    counts = {name: n // 2 for name, n in costs.structure.dense_counts.items()}
    candidate = Candidate(limit=1, predicted=1, observed=1, asked=1, dense=2, counts=counts)
    keep = {g.name: torch.arange(g.channels) % 2 == 0 for g in costs.structure.groups}
    return Plan(metric="macs", keep=keep, candidates=(candidate,), chosen=candidate)


def trained(context):
    stages.train_dense(context)
    return stages.source_network(context, context.folder.read_tensors("dense/weights.safetensors")).form.network


def test_a_cut_is_proven_on_the_trained_network(context, costs):
    proof = stages.prove(context, costs.structure, trained(context), planned(costs))
    assert proof.difference <= proof.tolerance < min(proof.moved_by_input, proof.moved_by_channel)
    assert proof.num_inputs == stages.PROOF_EXAMPLES


def test_a_cut_that_is_not_the_masked_network_is_refused(context, costs, monkeypatch):
    def wrong(network, structure, keep):
        slim = cut(network, structure, keep)
        with torch.no_grad():
            slim[0].weight.copy_(slim[0].weight.flip(0))
        return slim

    monkeypatch.setattr(stages.verify, "cut", wrong)
    with pytest.raises(VerificationError):
        stages.prove(context, costs.structure, trained(context), planned(costs))


def test_an_artifact_that_differs_is_no_finished_stage(context, monkeypatch):
    network = trained(context)
    working = stages.prove_artifact

    def differs(*args):
        message = "it differs"
        raise ParityError(message)

    monkeypatch.setattr(stages, "prove_artifact", differs)
    with pytest.raises(ParityError):
        stages.export(context, network, PIXEL, "pixel-8/50%", "key")
    assert not (context.folder.path / "pixel-8" / "50%" / "artifact.json").exists()
    monkeypatch.setattr(stages, "prove_artifact", working)
    artifact = stages.export(context, network, PIXEL, "pixel-8/50%", "key")
    assert artifact == stages.artifact_of(context.folder, "pixel-8/50%")
    assert artifact.path == context.folder.path / "pixel-8" / "50%" / "model.onnx"
    assert artifact.input_shape == (1, 1, 16, 16)


def refusing_int8(monkeypatch, told=None):
    """int8 is refused; or, if there is something to tell, told so of it."""
    working = stages.prove_artifact

    def refused(data, network, artifact, objective):
        if artifact.precision == "int8" and told is None:
            message = "too much noise."
            raise ParityError(message)
        return {**working(data, network, artifact, objective), **(told if artifact.precision == "int8" else {})}

    monkeypatch.setattr(stages, "prove_artifact", refused)


def asking(context, **export):
    part = context.recipe.export.model_copy(update=export)
    return replace(context, recipe=context.recipe.model_copy(update={"export": part}))


@pytest.mark.parametrize("told", [None, {"score": 0.9, "score_artifact": 0.5}])
def test_a_refused_int8_artifact_becomes_fp16_where_the_recipe_says_so(context, monkeypatch, told):
    refusing_int8(monkeypatch, told)
    int8, place = replace(PIXEL, precision="int8"), "pixel-8/50%"
    artifact = stages.export(asking(context, on_refusal="fp16"), trained(context), int8, place, "key")
    assert artifact.precision == "fp16"
    assert stages.artifact_of(context.folder, place).precision == "fp16"
    assert stages.refused(context, place).startswith("int8 was refused: ")


def test_a_refusal_of_int8_says_what_can_be_done(context, monkeypatch):
    refusing_int8(monkeypatch)
    with pytest.raises(ParityError, match=r"too much noise\. What can be done: export\.on_refusal: fp16 writes it"):
        stages.export(context, trained(context), replace(PIXEL, precision="int8"), "pixel-8/50%", "key")
    ort = replace(PIXEL, precision="int8", format="ort")
    with pytest.raises(ParityError, match="too much noise. The format ort has no fp16"):
        stages.export(asking(context, on_refusal="fp16"), trained(context), ort, "pixel-8/50%", "key")


# --- the last measurement ---------------------------------------------------------------------------------------------


@pytest.fixture
def device(monkeypatch):
    """The slim network's times in the next measurements; the dense one takes 2 ms."""
    answers: list[float] = []

    def measure(target, artifacts, runs, warmup, progress):
        times = (2.0,) if len(artifacts) == 1 else (2.0, answers.pop(0))
        return tuple(
            Latency(samples_ms=(ms,) * runs, warmup=warmup, threads=1, device="test", measured_on="host")
            for ms in times
        )

    monkeypatch.setattr(final_latency, "measure_steadily", measure)
    return answers


def artifacts(context):
    one = Artifact(path=context.folder.path, format="onnx", precision="fp32", sha256="1", input_shape=(1,), versions={})
    return one, replace(one, sha256="2")


@pytest.mark.parametrize("took", [1.0, 1.03, 0.9], ids=["met", "just within the tolerance", "faster"])
def test_a_budget_that_is_met_is_written_down(context, device, took):
    device += [took]
    slim, dense = final_latency.time_slim(context, HOST, HALF, artifacts(context))
    assert (slim.p50_ms, dense.p50_ms) == (took, 2.0)
    assert slim.measured_on == "host"
    assert final_latency.time_slim(context, HOST, HALF, artifacts(context)) == (slim, dense), "and not measured again"


@pytest.mark.parametrize("took", [1.031, 1.2], ids=["just above the tolerance", "far above"])
def test_a_budget_that_is_missed_is_an_error_with_both_figures(context, device, took):
    assert context.recipe.measure.tolerance == 0.03
    device += [took]
    with pytest.raises(
        BudgetError, match=rf"host/50% takes {took} ms; the budget is 1 ms \(\+-3%\).*measure\.tolerance"
    ):
        final_latency.time_slim(context, HOST, HALF, artifacts(context))
    assert not (context.folder.path / "host" / "50%" / "latency.json").exists()
    device.append(1.0)
    assert final_latency.time_slim(context, HOST, HALF, artifacts(context))[0].p50_ms == 1.0


def test_the_record_has_percentiles_and_all_samples(context, device):
    device += [1.0]
    final_latency.time_slim(context, HOST, HALF, artifacts(context))
    final_latency.time_dense(context, HOST, artifacts(context)[0])
    runs = context.recipe.measure.runs
    for place, ms, beside in (("host/50%", 1.0, [2.0] * runs), ("dense/host", 2.0, None)):
        told = context.folder.read_json(f"{place}/latency.json")
        assert (told["p50_ms"], told["p90_ms"], told["p99_ms"]) == (ms, ms, ms)
        assert (told["samples_ms"], told["dense_samples_ms"]) == ([ms] * runs, beside)


@pytest.mark.parametrize(("budget", "asked_ms"), [("50%", 1.0), ("50% macs", 1.02)])
def test_the_last_measurement_tells_what_was_asked_and_what_it_took(context, device, budget, asked_ms):
    told = []
    session = SimpleNamespace(progress=lambda *args, **figures: told.append((*args, figures)))
    context = replace(context, session=session)
    device += [1.02]
    final_latency.time_slim(context, HOST, parse_budget(budget, "latency"), artifacts(context))
    work = f"host {budget}: measure"
    assert told == [(work, 0, 1, {}), (work, 1, 1, {"asked_ms": asked_ms, "p50_ms": 1.02})]


def test_a_finished_measurement_is_judged_again_by_another_tolerance(context, device):
    device += [1.02, 1.02]
    final_latency.time_slim(context, HOST, HALF, artifacts(context))
    strict = tiny_recipe(measure={"runs": 20, "warmup": 2, "tolerance": 0.01})
    stricter = replace(context, recipe=strict)
    with pytest.raises(BudgetError, match=r"1\.02 ms; the budget is 1 ms \(\+-1%\)"):
        final_latency.time_slim(stricter, HOST, HALF, artifacts(context))


def test_without_a_latency_budget_one_measurement_is_enough(context, device):
    device += [1.9]
    assert (
        final_latency.time_slim(context, HOST, parse_budget("50% macs", "latency"), artifacts(context))[0].p50_ms == 1.9
    )
    assert device == []


def test_the_dense_network_is_timed_once(context, device):
    first = final_latency.time_dense(context, HOST, artifacts(context)[0])
    assert first.p50_ms == 2.0
    assert len(first.samples_ms) == context.recipe.measure.runs
    assert final_latency.time_dense(context, HOST, artifacts(context)[0]) == first


class Learner:
    """Costs that take note of corrections."""

    def __init__(self):
        self.corrections = []

    def override(self, target, counts, timed):
        self.corrections.append((target.name, counts, timed))


@pytest.mark.parametrize(
    ("observed", "scale", "words"),
    [
        (0.5, None, "candidate was in int8, and this artifact, for which int8 was refused, is in fp16"),
        (1.15, 1.0, "slow$"),
        (0.5, 1e-37, r"took 25% of dense, this one 60%: [1-9]\d*% of what 0 gives are denormal numbers"),
        (0.5, 1.0, "treats these weights differently"),
        (None, 1e-37, "slow$"),
    ],
    ids=["refused", "as planned", "denormal", "another cause", "not measured"],
)
def test_a_finished_artifact_much_slower_than_its_candidate_says_why(context, monkeypatch, observed, scale, words):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    nn.init.constant_(network[0].weight, 0.01 * (scale or 1.0))
    nn.init.zeros_(network[0].bias)
    monkeypatch.setattr(final_latency, "slim_network", lambda *args: network.eval())
    step = {"counts": {"a": 4}, "chosen": True, "observed": observed, "dense": 2.0}
    context.folder.write_json("host/50%/loop.json", {"steps": [step]})
    context.folder.write_json("host/50%/parity.json", {} if scale else {"refused": "int8 was refused: noise"})
    slim, dense = (
        Latency(samples_ms=(ms,) * 9, warmup=1, threads=1, device="test", measured_on="host") for ms in (1.2, 2.0)
    )
    missed = final_latency.BudgetMissedError("slow", slim, dense)
    error = final_latency.explained(context, None, HOST, HALF, missed)
    assert re.search(words, str(error))
    assert (error.slim, error.dense) == (slim, dense)


def test_what_the_finished_artifact_took_is_learned_and_the_plan_is_made_again(context):
    steps = [{"counts": {"a": 8}, "chosen": False}, {"counts": {"a": 4}, "chosen": True}]
    context.folder.write_json("host/50%/loop.json", {"steps": steps})
    context.folder.stage("host/50%/plan", {}, ["host/50%/loop.json"], lambda: None)
    learner = Learner()
    slim, dense = (
        Latency(samples_ms=(ms,) * 9, warmup=1, threads=1, device="test", measured_on="host") for ms in (1.2, 2.0)
    )
    final_latency.replan_after_miss(context, learner, HOST, HALF, final_latency.BudgetMissedError("slow", slim, dense))
    assert learner.corrections == [("host", {"a": 4}, Timed(slim_ms=1.2, dense_ms=2.0))]
    done = []
    context.folder.stage("host/50%/plan", {}, ["host/50%/loop.json"], lambda: done.append("again"))
    assert done == ["again"]
