"""The stages of a run, one function each; ``pipeline.run`` puts them in order.

A stage reads what earlier stages left in the run folder and leaves its own files there; if they are already there for
the same inputs, it does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from deploy_prune import cost
from deploy_prune.architecture import json_file
from deploy_prune.budget import depth
from deploy_prune.budget.candidates import CANDIDATE_INPUTS, CandidateCosts, identity_of
from deploy_prune.budget.loop import Plan, enforce
from deploy_prune.errors import ParityError
from deploy_prune.export import FORMATS, isolated
from deploy_prune.networks import weights
from deploy_prune.recipe.parts import ExportPart
from deploy_prune.report.units import in_unit
from deploy_prune.run import keys, trained
from deploy_prune.run.context import RunContext
from deploy_prune.run.folder import RunFolder
from deploy_prune.run.proof import calibration_inputs, prove_artifact, some_inputs
from deploy_prune.run.trained import PROOF_EXAMPLES as PROOF_EXAMPLES
from deploy_prune.run.trained import source_network as source_network
from deploy_prune.run.trained import target_network as target_network
from deploy_prune.run.trained import teacher_of as teacher_of
from deploy_prune.search.frame import SearchGoal
from deploy_prune.search.gated_network import gates_of
from deploy_prune.search.methods import METHODS, values
from deploy_prune.surgery import verify
from deploy_prune.surgery.cut import cut
from deploy_prune.system.shell import remove
from deploy_prune.tasks import Score
from deploy_prune.types import Artifact, Budget, SearchResult, Structure, Target


def candidate_costs(context: RunContext, scratch: Path) -> CandidateCosts:
    """The network with initial weights, and its channel groups, each tried for real."""
    context.session.progress("find the channel groups", 0, 1)
    network, structure = trained.cuttable(context)
    context.session.progress("find the channel groups", 1, 1, groups=len(structure.groups))
    part, int8 = context.recipe.export, any(target.precision == "int8" for target in context.targets)
    wanted = min(part.calibration_examples, CANDIDATE_INPUTS)
    return CandidateCosts(
        network=network, structure=structure, inputs=context.example, identity=identity_of(context.recipe.model),
        scratch=scratch, prune=context.recipe.prune, export=part, measure=context.recipe.measure,
        progress=context.session.progress, calibration=calibration_inputs(context.data, wanted) if int8 else None,
        since=context.since,
    )  # fmt: skip


def train_dense(context: RunContext) -> str:
    """DENSE/weights.safetensors: the recipe's weights, or the network trained on the source data.

    At a smaller input size it is the one of the largest, trained on.
    """
    folder, place, is_smaller = context.folder, context.dense, context.smaller is not None
    began = folder.content(["dense/weights.safetensors"]) if is_smaller else None
    key, files = keys.dense(context.basis, began), [f"{place}/weights.safetensors", f"{place}/training.json"]

    def compute() -> None:
        work = trained.dense_at_size if is_smaller else trained.dense
        trained.do(context, place, key, work, in_steps=is_smaller or trained.is_trained(context.recipe))

    context.stage(place, key, files, compute)
    return folder.content(files[:1])


def search(context: RunContext, costs: CandidateCosts, dense: str) -> tuple[str, SearchResult]:
    """search/: scores per group, and the network's weights when the search ended. One search for all budgets."""
    folder, key = context.folder, keys.search(context.basis, dense, costs.structure, strictest(context, costs))

    def compute() -> None:
        in_steps, goal = METHODS[context.recipe.search.method].in_steps, smallest_goal(context, costs)
        trained.do(context, "search", key, trained.search, goal, structure=costs.structure, in_steps=in_steps)

    files = ["search/scores.safetensors", "search/weights.safetensors", "search/trace.json"]
    context.stage("search", key, files, compute)
    result = SearchResult(
        scores=folder.read_tensors(files[0]),
        state=folder.read_tensors(files[1]),
        trace=tuple(folder.read_json(files[2])),
    )
    return folder.content(files[:2]), result


def smallest_goal(context: RunContext, costs: CandidateCosts) -> SearchGoal:
    """The strictest budget, as the search is asked for it.

    Of a budget that only a smaller input meets, the search is asked for the smallest cut.
    """
    target, budget = strictest(context, costs)
    cost = costs.cost(target, budget.metric)
    asked = budget.absolute(cost(costs.structure.dense_counts))
    return SearchGoal(cost=cost, limit=max(asked, cost(costs.smallest(target))))


def strictest(context: RunContext, costs: CandidateCosts) -> tuple[Target, Budget]:
    """The target and budget that leave least of the dense network, whatever the order that they are listed in.

    Of those that leave the same share, the first by name. Other targets change a target's networks only by being
    stricter, or as strict and earlier by name: all are chosen by the same ranks, each at its own prices.
    """

    def order(asked: tuple[Target, Budget]) -> tuple[float, str, str]:
        target, budget = asked
        dense = 1.0 if budget.relative else costs.cost(target, budget.metric)(costs.structure.dense_counts)
        return budget.limit / dense, target.name, budget.metric

    return min(((t, b) for t in context.targets for b in context.recipe.budgets_of(t.name)), key=order)


def adapt_dense(context: RunContext, dense: str) -> str:
    """DENSE/adapted.safetensors: the dense network on the target task, the teacher and the yardstick.

    Where the classes stay the same, that is the network as it is; else it gets new class layers and is trained.
    """
    folder, key = context.folder, keys.adapt(context.basis, dense)
    name = context.dense.replace("dense", "adapt")

    def compute() -> None:
        trained.do(context, name, key, trained.adapted, in_steps=not context.same_task)

    files = [f"{context.dense}/adapted.safetensors", f"{context.dense}/adapted.json"]
    context.stage(name, key, files, compute)
    return folder.content(files[:1])


def plan(
    context: RunContext, costs: CandidateCosts, found: tuple[str, SearchResult], target: Target, budget: Budget
) -> str:
    """TARGET/BUDGET/architecture.json: what stays, met by measurement and proven equal to masking."""
    folder, place = context.folder, place_of(target, budget)
    choose_depth(context, costs, found, target, budget)
    key, files = _of_plan(context, costs, found, target, budget)

    def compute() -> None:
        planned = choose_channels(context, costs, found, target, budget)
        proof = prove(context, costs.structure, source_network(context, found[1].state).form.network, planned)
        dense = target_network(context, None).form.network
        described = json_file.describe(
            context.recipe.model, context.data.num_target, context.example, planned.keep, dense,
            cut(dense, costs.structure, planned.keep),
        )  # fmt: skip
        folder.write_text(f"{place}/architecture.json", json_file.dumps(described))
        folder.write_json(f"{place}/verification.json", asdict(proof))
        folder.write_json(f"{place}/loop.json", planned.as_json(context.recipe.measure.tolerance))

    folder.stage(f"{place}/plan", key, files, compute)
    return folder.content(files[:1])


def is_planned(
    context: RunContext, costs: CandidateCosts, found: tuple[str, SearchResult], target: Target, budget: Budget
) -> bool:
    """Whether ``plan`` would do nothing."""
    key, files = _of_plan(context, costs, found, target, budget)
    return context.folder.is_finished(f"{place_of(target, budget)}/plan", key, files)


def _of_plan(
    context: RunContext, costs: CandidateCosts, found: tuple[str, SearchResult], target: Target, budget: Budget
) -> tuple[keys.Key, list[str]]:
    """A plan's key and files."""
    files = [f"{place_of(target, budget)}/{n}.json" for n in ("architecture", "verification", "loop")]
    chosen = context.folder.content([f"{place_of(target, budget)}/depth.json"]) if costs.structure.branches else None
    beside = None if costs.beside is None else [list(x.shape) for x in costs.beside.inputs]
    return keys.plan(context.basis, found[0], costs.structure, target, budget, [chosen, beside]), files


def choose_depth(
    context: RunContext, costs: CandidateCosts, found: tuple[str, SearchResult], target: Target, budget: Budget
) -> None:
    """TARGET/BUDGET/depth.json: which branches go. Nothing where the network has none, or they may not go."""
    if not costs.structure.branches:
        return
    folder, name = context.folder, f"{place_of(target, budget)}/depth.json"

    tried = order_branches(context, costs)

    def compute() -> None:
        ranks, by_trial = found[1].scores, folder.read_json(f"{context.dense}/branches.json")
        scores = values(context.recipe.search.method, ranks, costs.cost(target, budget.metric))
        orders = {"search": depth.by_rank(ranks, costs.structure), "trial": by_trial}
        judges = trained.judges(context, costs.structure)
        chosen = depth.choose_depth(costs, target, budget, ranks, scores, orders, judges, costs.progress)
        folder.write_json(name, asdict(chosen))

    key = keys.depth(context.basis, found[0], tried, costs.structure, target, budget)
    folder.stage(name.removesuffix(".json"), key, [name], compute)


def order_branches(context: RunContext, costs: CandidateCosts) -> str:
    """DENSE/branches.json: the branches in the order in which the dense network misses them least."""
    folder, structure = context.folder, costs.structure
    files = [f"{context.dense}/weights.safetensors", f"{context.dense}/branches.json"]
    key = keys.branches(context.basis, folder.content(files[:1]), structure)

    def compute() -> None:
        judge = trained.judges(context, structure, ("dense",))["dense"]
        folder.write_json(files[1], depth.by_trial(structure, cost.macs(structure), judge, costs.progress))

    context.stage(context.dense.replace("dense", "branches"), key, files[1:], compute)
    return folder.content(files)


def choose_channels(
    context: RunContext, costs: CandidateCosts, found: tuple[str, SearchResult], target: Target, budget: Budget
) -> Plan:
    """What stays, by the search's scores at the depth that was chosen; candidates are written and measured."""
    structure, name = costs.structure, f"{place_of(target, budget)}/depth.json"
    gone = context.folder.read_json(name)["gone"] if structure.branches else ()
    scores = values(context.recipe.search.method, found[1].scores, costs.cost(target, budget.metric))
    return enforce(
        costs, target, budget, scores, costs.progress, f"{target.name} {budget.text}: budget",
        depth.fixed_counts(structure, gone),
    )  # fmt: skip


def prove(context: RunContext, structure: Structure, network: nn.Module, planned: Plan) -> verify.Verification:
    """Prove masked == cut for the trained network, on real examples."""
    inputs = some_inputs(context.data.source_test, PROOF_EXAMPLES)
    return verify.prove(network, structure, planned.keep, inputs, gates_of(structure))


def retrain(context: RunContext, costs: CandidateCosts, place: str, key: str) -> str:
    """TARGET/BUDGET/weights.safetensors: the slim network, adapted to the target task with the dense one as teacher."""
    folder, recipe = context.folder, context.recipe
    start = trained.start_of(context, costs.structure, place)
    began = folder.content([trained.weights_of(context, start)]) if recipe.retrain.init == "inherit" else ""
    taught_by = folder.content([f"{context.dense}/adapted.safetensors"])
    depends = keys.retrain(context.basis, key, began, taught_by, start)

    def compute() -> None:
        trained.do(context, f"{place}/retrain", depends, trained.retrained, place, structure=costs.structure)

    files = [f"{place}/weights.safetensors", f"{place}/retrain.json"]
    context.stage(f"{place}/retrain", depends, files, compute)
    return folder.content([f"{place}/architecture.json", f"{place}/weights.safetensors"])


def slim_network(context: RunContext, costs: CandidateCosts, place: str) -> nn.Module:
    """The retrained slim network of a place."""
    keep = json_file.load(context.folder.path / place / "architecture.json").keep
    slim = cut(target_network(context, None).form.network, costs.structure, keep)
    weights.load_state(slim, context.folder.read_tensors(f"{place}/weights.safetensors"))
    return slim.eval()


def export(context: RunContext, network: nn.Module, target: Target, place: str, key: str) -> Artifact:
    """The artifact of a place, and parity.json: checked against the network in the artifact's own runtime."""
    kind, part = FORMATS[target.format], context.recipe.export
    name = f"{place}/model{kind.suffix}"
    path = context.folder.path / name

    def compute() -> None:
        try:
            artifact, told = _proven(context, network, target, path, target.precision)
        except ParityError as error:
            if target.precision != "int8" or part.on_refusal != "fp16" or "fp16" not in kind.precisions:
                message = f"{error}{_offer(target, part)}"
                raise ParityError(message) from error
            remove(path)
            artifact, told = _proven(context, network, target, path, "fp16")
            told["refused"] = f"int8 was refused: {str(error).replace(str(path), path.name)}"
        context.folder.write_json(f"{place}/parity.json", told)
        record = {**asdict(artifact), "path": path.name, "versions": dict(artifact.versions)}
        context.folder.write_json(f"{place}/artifact.json", record)

    files = [name, f"{place}/parity.json", f"{place}/artifact.json"]
    context.stage(f"{place}/export", keys.export(context.basis, key, target), files, compute)
    return artifact_of(context.folder, place)


def _proven(
    context: RunContext, network: nn.Module, target: Target, path: Path, precision: str
) -> tuple[Artifact, dict[str, Any]]:
    """The artifact in this precision, and what parity.json says of it.

    Raises:
        ParityError: it isn't the network; or, in int8 where fp16 may take its place, its score drops too far.
    """
    part = context.recipe.export
    inputs = calibration_inputs(context.data, part.calibration_examples) if precision == "int8" else None
    artifact = isolated.write(target.format, network, context.example, path, precision, part, inputs)
    told = prove_artifact(context.data, network, artifact, target_network(context, None))
    if precision == "int8" and part.on_refusal == "fp16":
        refuse_loss(str(path), told, part, context.task.score)
    return artifact, told


def _offer(target: Target, part: ExportPart) -> str:
    """What can be done about a refusal of int8."""
    if target.precision != "int8":
        return ""
    if "fp16" not in FORMATS[target.format].precisions:
        return f" The format {target.format} has no fp16: use fp32, or give int8 more export.calibration_examples."
    return (
        " What can be done: export.on_refusal: fp16 writes it in fp16 instead; a target in fp16; more "
        f"export.calibration_examples (now {part.calibration_examples}); a larger budget."
    )


def require_score(context: RunContext, place: str) -> float | None:
    """The score of a place's artifact on the target task's test examples; None in fp32, where it is the network's.

    Raises:
        ParityError: it is further from that of the network that it was made from than ``export.max_score_drop``.
    """
    told = context.folder.read_json(f"{place}/parity.json")
    refuse_loss(place, told, context.recipe.export, context.task.score)
    found: float | None = told.get("score_artifact")
    return found


def refuse_loss(place: str, told: Mapping[str, Any], part: ExportPart, score: Score) -> None:
    """Refuse an artifact, by what its parity.json tells, whose score is too much worse than its network's.

    Raises:
        ParityError: it is further from it than ``export.max_score_drop``.
    """
    found, expected = told.get("score_artifact"), told.get("score")
    if found is None or expected is None:
        return
    lost, allowed = (expected - found) * (1 if score.higher else -1), part.allowed_drop(expected)
    if lost > allowed:
        message = (
            f"{place}: the artifact's {score.name} is {in_unit(found, score.unit)}, the network's "
            f"{in_unit(expected, score.unit)}; it may be worse by {in_unit(allowed, score.unit)} "
            "(export.max_score_drop). Use fp16 (for int8, export.on_refusal: fp16 does it), or more "
            "export.calibration_examples."
        )
        raise ParityError(message)


def refused(context: RunContext, place: str) -> str | None:
    """Why a place's artifact isn't in its target's precision; None: it is."""
    found: str | None = context.folder.read_json(f"{place}/parity.json").get("refused")
    return found


def artifact_of(folder: RunFolder, place: str) -> Artifact:
    """The artifact that a place's artifact.json tells of."""
    return folder.read_artifact(place)


def place_of(target: Target, budget: Budget) -> str:
    """The folder of one target and budget inside the run folder."""
    return f"{target.name}/{budget.text.replace('/', '_')}"
