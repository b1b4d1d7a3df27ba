"""The work of the stages that train, each done in this process or in several that train together.

It reads what earlier stages left in the run folder, and leaves its own files there.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune.architecture import json_file
from deploy_prune.budget.depth import STARTS, Judge, Start
from deploy_prune.data.examples import Examples, spread
from deploy_prune.data.loaders import batches
from deploy_prune.networks import build, weights
from deploy_prune.networks.copies import copied
from deploy_prune.networks.tensors import moved
from deploy_prune.recipe.data import sizes_of
from deploy_prune.recipe.parts import Recipe
from deploy_prune.retrain.distill import taught
from deploy_prune.retrain.features import Match, match
from deploy_prune.retrain.fewshot import adapt, for_new_classes
from deploy_prune.retrain.repair import repair
from deploy_prune.retrain.repair import some_inputs as some_inputs_of
from deploy_prune.retrain.stopping import SIZES, hold_out
from deploy_prune.run import keys, preprocessing
from deploy_prune.run.context import RunContext
from deploy_prune.run.folder import RunFolder, thinned
from deploy_prune.run.judge import EXAMPLES, by_loss
from deploy_prune.run.proof import some_inputs
from deploy_prune.search.frame import SearchGoal, SearchJob
from deploy_prune.search.gated_network import gates_of
from deploy_prune.search.methods import METHODS
from deploy_prune.surgery import remembered
from deploy_prune.surgery.cut import cut
from deploy_prune.tasks import Objective
from deploy_prune.training.channels_last import channels_last, sample
from deploy_prune.training.checkpointing import checkpointed
from deploy_prune.training.kept import Kept
from deploy_prune.training.loop import (
    Session,
    make_accelerator,
    network_score,
    set_seed,
    train_network,
)
from deploy_prune.training.processes import device_of_rank, run_together, threads_of_rank
from deploy_prune.training.ranks import Ranks
from deploy_prune.types import Keep, Structure

HELD_OUT: Final = 0.1
"""Where the input may have several sizes, the best is chosen by this share of the source's training examples, on which
nothing is trained."""
JUDGED_BY: Final = 2000
"""By at most so many of them: of a share near 90% that is a standard error of 0.7 points."""
PROOF_EXAMPLES = 8
"""Real examples on which a cut is compared with the network."""
Work = Callable[..., None]
"""(context, session, structure, and what it is given): the work of a stage."""


def do(
    context: RunContext, stage: str, key: keys.Key, work: Work, *given: Any, structure: Structure | None = None,
    in_steps: bool = True,
) -> None:  # fmt: skip
    """Do a stage's work, in several processes if the run has them and the work takes steps."""
    session = context.session_of(stage, key)
    if context.processes == 1 or not in_steps:
        work(context, session, structure, *given)
        return
    assert session.kept is not None
    asked = _Asked(
        recipe=context.recipe, folder=context.folder.path, kept=session.kept.path, key=session.kept.key,
        every_s=session.kept.every_s, needs_structure=structure is not None, smaller=context.smaller,
    )  # fmt: skip
    hear = partial(_hear, session)
    run_together(context.processes, _in_rank, [asked, work, given], hear, context.recipe.device)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What a process is told, beside the work: the run, and where a training that is stopped goes on."""

    recipe: Recipe
    folder: Path
    kept: Path
    key: str
    every_s: float
    needs_structure: bool
    smaller: tuple[int, int] | None = None


def _hear(session: Session, kind: str, *what: Any) -> None:
    """What the first of the processes tells, here."""
    if kind == "log":
        name, level, message = what
        logging.getLogger(name).log(level, "%s", message)
    else:
        work, done, total, figures = what
        session.progress(work, done, total, **figures)


def _in_rank(ranks: Ranks, tell: Callable[..., None], asked: _Asked, work: Work, given: tuple[Any, ...]) -> None:
    """The work in one of several processes. Only the first keeps how far it has come."""
    recipe = asked.recipe
    torch.set_num_threads(threads_of_rank(ranks.size, recipe.threads))

    def progress(work: str, done: int, total: int, **figures: float) -> None:
        tell("progress", work, done, total, figures)

    every_s = asked.every_s if ranks.rank == 0 else math.inf
    kept = Kept(asked.kept, asked.key, lambda sentence: progress(sentence, 1, 1), every_s)
    accelerator = make_accelerator(
        device_of_rank(ranks.rank, recipe.device), recipe.mixed_precision, recipe.accumulate
    )  # fmt: skip
    session = Session(
        accelerator=accelerator, seed=recipe.seed, progress=progress, kept=kept, ranks=ranks,
        checkpointing=recipe.gradient_checkpointing, compiling=recipe.compile,
    )  # fmt: skip
    found = preprocessing.resolve(recipe)
    context = RunContext(
        recipe=found.recipe, task=found.task, folder=RunFolder(path=asked.folder), data=found.data, session=session,
        targets=(), since=0.0, summary=(), processes=ranks.size,
    )  # fmt: skip
    context = context if asked.smaller is None else context.at_size(asked.smaller)
    work(context, session, cuttable(context)[1] if asked.needs_structure else None, *given)


def cuttable(context: RunContext) -> tuple[nn.Module, Structure]:
    """The network with initial weights, and its channel groups, each tried for real."""
    set_seed(context.recipe.seed)
    network = as_if_trained(context.build(context.data.num_source).form.network)
    inputs = some_inputs(context.data.source_test, PROOF_EXAMPLES // 2)
    return network, remembered.cuttable_groups(network, context.example, inputs, context.recipe.prune, gates_of)


def as_if_trained(network: nn.Module) -> nn.Module:
    """Initial biases and norms are all alike, and exporters store equal tensors once; a trained network's differ."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.empty_like(parameter).uniform_(-0.1, 0.1))
    return network


def source_parts(context: RunContext) -> tuple[Examples, Examples | None]:
    """Source examples to train on, and those that an input size is chosen by: none where there is only one."""
    several = len(sizes_of(context.recipe.data)) > 1
    share = HELD_OUT if several else 0.0
    return hold_out(context.data.source_train, share, context.recipe.seed, SIZES)


def is_trained(recipe: Recipe) -> bool:
    """Whether the dense network takes steps: it has no weights, or new class layers."""
    return recipe.model.weights is None or recipe.model.head == "new"


def dense(context: RunContext, session: Session, structure: Structure | None) -> None:
    """The recipe's weights, or the network trained on the source data."""
    recipe, folder = context.recipe, context.folder
    set_seed(recipe.seed)
    given = build.build_network(recipe.model, context.data.num_source)
    losses: list[float] = []
    taken = weights.load_given(given, recipe.model, context.data.num_source)
    made = context.objective(given)
    network = made.form.network
    if is_trained(recipe):
        losses = train_network(
            network, source_parts(context)[0], made, recipe.train, session=session, work="train the dense network"
        )
    folder.write_tensors("dense/weights.safetensors", network.state_dict())
    found = network_score(network, context.data.source_test, made, accelerator=session.accelerator)
    norm = {"mean": getattr(recipe.data, "mean", None), "std": getattr(recipe.data, "std", None)}
    folder.write_json(
        "dense/training.json", {"loss": thinned(losses), "source_score": found, **norm, "taken": taken and vars(taken)}
    )


def dense_at_size(context: RunContext, session: Session, structure: Structure | None) -> None:
    """The dense network of the largest input, trained on at this size, for as many steps as the search."""
    recipe, folder = context.recipe, context.folder
    made = source_network(context, folder.read_tensors("dense/weights.safetensors"))
    network = made.form.network
    part = recipe.retrain.model_copy(update={"steps": recipe.search.steps, "init": "inherit", "hold_out": 0.0})
    high, wide = context.data.source_train.take(torch.tensor([0])).inputs[0].shape[-2:]
    work = f"train the dense network on at {high} x {wide}"
    done = adapt(network, source_parts(context)[0], made, part, teacher=None, session=session, work=work)
    folder.write_tensors(f"{context.dense}/weights.safetensors", network.state_dict())
    found = network_score(network, context.data.source_test, made, accelerator=session.accelerator)
    folder.write_json(f"{context.dense}/training.json", {"loss": thinned(done.losses), "source_score": found})


def search(context: RunContext, session: Session, structure: Structure | None, goal: SearchGoal) -> None:
    """Scores per group, and the network's weights when the search ended."""
    assert structure is not None
    recipe, folder = context.recipe, context.folder
    examples = source_parts(context)[0]
    made = source_network(context, folder.read_tensors("dense/weights.safetensors"))
    network = made.form.network
    stream = batches(examples, recipe.search.batch_size, recipe.seed)
    set_seed(recipe.seed)
    device = session.accelerator.device
    teacher = copied(network).to(device).eval()
    loss = taught(made, teacher, recipe.search.distill, recipe.search.temperature)
    job = SearchJob(
        network=network, structure=structure, loss=loss, batches=stream, goal=goal, config=recipe.search,
        session=session,
    )  # fmt: skip
    inputs = sample(examples, device)
    with (
        channels_last(network, inputs, device),
        channels_last(teacher, inputs, device),
        checkpointed(network, session.checkpointing),
    ):
        found = METHODS[recipe.search.method](job)
    folder.write_tensors("search/scores.safetensors", found.scores)
    folder.write_tensors("search/weights.safetensors", found.state)
    folder.write_json("search/trace.json", thinned(found.trace))


def judges(context: RunContext, structure: Structure, starts: Sequence[Start] = STARTS) -> dict[Start, Judge]:
    """Tell how good cuts are, of the search's weights and of the dense network's, by the source's training examples."""
    folder, batch_size = context.folder, context.recipe.search.batch_size
    made = {start: source_network(context, folder.read_tensors(weights_of(context, start))) for start in starts}
    dense = source_network(context, folder.read_tensors(weights_of(context, "dense"))).form.network
    stream = batches(source_parts(context)[0], batch_size, context.recipe.seed)
    inputs = some_inputs_of(stream, EXAMPLES)
    held_out = [next(stream) for _ in range(-(-EXAMPLES // batch_size))]
    device = context.session.accelerator.device
    return {
        start: by_loss(one.form.network, dense, structure, inputs, held_out, one.batch_loss, device)
        for start, one in made.items()
    }


def score_of_cut(context: RunContext, structure: Structure, keep: Keep, start: Start) -> float:
    """The score on held-out source examples of the network cut by these masks and repaired; nothing is trained."""
    train, held = source_parts(context)
    assert held is not None
    made = source_network(context, context.folder.read_tensors(weights_of(context, start)))
    dense = source_network(context, context.folder.read_tensors(weights_of(context, "dense"))).form.network
    device = context.session.accelerator.device
    slim = moved(cut(made.form.network, structure, keep).eval(), device)
    stream = batches(train, context.recipe.search.batch_size, context.recipe.seed)
    repair(slim, dense, match(structure, keep), some_inputs_of(stream, EXAMPLES))
    some = held.subset(spread(held.strata, JUDGED_BY))
    return network_score(slim, some, made, accelerator=context.session.accelerator)


def start_of(context: RunContext, structure: Structure, place: str) -> Start:
    """Whose weights a place's slim network begins with."""
    if not structure.branches:
        return "search"
    start: Start = context.folder.read_json(f"{place}/depth.json")["start"]
    return start


def weights_of(context: RunContext, start: Start) -> str:
    """The file of these weights: of the search, or of this input size's dense network."""
    return f"{context.dense if start == 'dense' else start}/weights.safetensors"


def adapted(context: RunContext, session: Session, structure: Structure | None) -> None:
    """The dense network on the target task: as it is, or with new class layers and trained."""
    folder, place = context.folder, context.dense
    state = folder.read_tensors(f"{place}/weights.safetensors")
    if context.same_task:
        found = folder.read_json(f"{place}/training.json")["source_score"]
        told = {"score": found, "steps": 0, "chosen_step": 0, "held_out": 0}
    else:
        made = target_network(context, state)
        network = made.form.network
        told = _adapt(context, network, made, None, None, "adapt the dense network", session)
        state = network.state_dict()
    folder.write_tensors(f"{place}/adapted.safetensors", state)
    folder.write_json(f"{place}/adapted.json", {**told, "adapted": not context.same_task})


def retrained(context: RunContext, session: Session, structure: Structure | None, place: str) -> None:
    """The slim network of a place, trained on the target task with the dense one as teacher."""
    assert structure is not None
    folder, recipe = context.folder, context.recipe
    keep = json_file.load(folder.path / place / "architecture.json").keep
    start = start_of(context, structure, place)
    began = folder.read_tensors(weights_of(context, start)) if recipe.retrain.init == "inherit" else None
    teacher = teacher_of(context)
    made = target_network(context, began)
    slim = cut(made.form.network, structure, keep)
    told = _adapt(
        context, slim, made, teacher, match(structure, keep), f"{place.replace('/', ' ')}: retrain", session, start
    )  # fmt: skip
    folder.write_tensors(f"{place}/weights.safetensors", slim.state_dict())
    folder.write_json(f"{place}/retrain.json", told)


def _adapt(
    context: RunContext, network: nn.Module, objective: Objective, teacher: nn.Module | None, match: Match | None,
    work: str, session: Session, start: Start = "search",
) -> dict[str, Any]:  # fmt: skip
    """Train in place on the target task; what there is to tell of it."""
    recipe = context.recipe
    part = keys.retraining(recipe, start) if teacher else recipe.retrain.model_copy(update={"init": "inherit"})
    part = part if context.same_task else for_new_classes(part)
    work = f"{work} with {len(context.data.target_train)} of {context.data.num_available} examples"
    done = adapt(
        network, context.data.target_train, objective, part, teacher=teacher, session=session, match=match, work=work,
    )  # fmt: skip
    found = network_score(network, context.data.target_test, objective, accelerator=session.accelerator)
    told = {"steps": len(done.losses), "chosen_step": done.chosen_step, "held_out": done.num_held_out}
    return {"score": found, **told, "repaired": done.repaired and vars(done.repaired)}


def source_network(context: RunContext, state: Mapping[str, Tensor]) -> Objective:
    """The dense network for the source classes, with these weights."""
    made = context.build(context.data.num_source)
    weights.load_state(made.form.network, state)
    return made


def target_network(context: RunContext, state: Mapping[str, Tensor] | None) -> Objective:
    """The dense network for the target classes: new class layers, all else as in ``state`` (None: all new)."""
    set_seed(context.recipe.seed)
    made = context.build(context.data.num_target)
    if state is not None:
        head = frozenset[str]() if context.same_task else _head_tensors(context)
        weights.load_state(made.form.network, {k: v for k, v in state.items() if k not in head}, strict=False)
    return made


def _head_tensors(context: RunContext) -> frozenset[str]:
    """The dense network's tensors whose shapes depend on the number of target classes."""
    return build.head_tensors(
        context.recipe.model, context.data.num_target, lambda network: context.objective(network).form.network
    )


def teacher_of(context: RunContext) -> nn.Module:
    """The dense network on the target task."""
    network = target_network(context, None).form.network
    weights.load_state(network, context.folder.read_tensors(f"{context.dense}/adapted.safetensors"))
    return network
