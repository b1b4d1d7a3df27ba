"""What the result of each stage depends on. A stage is done again exactly when its key has changed.

A later stage's key has the content of the files that it reads, not the keys of the stages that wrote them: weights that
come out the same again keep everything that was made of them.

| stage | what its key has | why |
|---|---|---|
| dense | package, torch, model, weights, source_train, source_test, train, task, seed, precision
  | the recipe's weights, by content, or the training that makes them; scored on the source's test examples; at a
  smaller input size also began, retrain, steps: the largest size's weights, and what trains them on |
| search | package, torch, model, dense, groups, source_train, task, search, prune, goal, seed, precision
  | trains from the dense weights, at the price of the strictest budget; neither what was measured for that price nor
  the machine: it would change a little of the price, and the plan measures anyway |
| adapt | package, torch, model, dense, target_train, target_test, task, retrain, same_task, seed, precision
  | trains the dense network on the target's examples (not where the classes stay the same: then it is copied, whatever
  retrain says); without the settings that only matter beside a teacher |
| branches | package, torch, model, dense, groups, source_train, batch_size, task, prune, seed, precision
  | tries the dense network without some branches, on the source's training examples |
| depth | package, torch, model, dense, groups, source_train, batch_size, task, prune, seed, precision, found, method,
  source_test, budget, loop, target, machine, export, formats, classes, chosen
  | tries cuts of the searched network, repaired to be like the dense one, on the source's training examples |
| plan | package, torch, model, found, method, groups, source_test, prune, budget, loop, target, machine, export,
  formats, classes, chosen
  | chooses by scores, at the depth that was chosen, and by what candidates cost there, and proves the cut on the
  source's test examples; not the latency table, which only leads to the first candidate, nor how many inferences a
  candidate is timed for |
| size | sizes
  | of each input size all that depth's key has: the budget is planned at each |
| retrain | package, torch, model, architecture, found, teacher, target_train, target_test, task, retrain, same_task,
  seed, precision
  | the channels that stay, the weights that they start from, and the teacher; not the target or budget that led there |
| export | package, torch, model, task, network, target_test, calibration, format, export, formats
  | the network, how it is written, and the examples that it is checked on; calibration examples in int8 only |
| pictures | package, torch, model, task, network, target_test
  | the network whose answers are drawn (none for what the targets say), and the examples that they are drawn in
| latency | package, artifacts, target, machine, measure, budget
  | measured: on this machine (its name, processor, cores, and the runtime's version) or that device; with the budget
  and tolerance that it is held to |

What the entries are: ``package`` is this package's version and a digest of its source, for a version stands still
between releases. ``torch`` and ``formats`` are versions: torch's, and those of the format's converter and runtime.
``model`` is its source and arguments, and the library's version or, for ``module:callable``, a digest of the user's
code (``user_code``). ``precision`` is that, and how many batches make a step, whoever takes them. ``task`` is its name,
its score and, of ``module:callable``, a digest of the user's code. Data counts by content: images in memory or their
files, targets, normalisation, size and augmentation. A target counts by what changes its artifacts and its latency,
never by its title, notes or sources. Not in any key: paths, names, trackers, limits of time and memory, where and on
how many threads training runs (which changes the last digits only).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from deploy_prune.budget.depth import Start
from deploy_prune.data.splits import TransferData
from deploy_prune.export import FORMATS
from deploy_prune.latency.granularity import installed, machine
from deploy_prune.recipe.parts import LIBRARIES, ModelPart, Recipe, RetrainPart
from deploy_prune.search.methods import METHODS
from deploy_prune.surgery.remembered import own_code
from deploy_prune.system.shell import digest
from deploy_prune.system.user_code import code_digest
from deploy_prune.training.processes import batches_a_step
from deploy_prune.types import Artifact, Budget, Structure, Target
from deploy_prune.version import __version__

Key = dict[str, Any]
_BESIDE_A_TEACHER = frozenset({"init", "distill", "temperature", "features", "repair"})
"""Settings of retraining that the dense network's own adaptation doesn't take."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Basis:
    """What all stages of a run depend on: the recipe and the examples."""

    recipe: Recipe
    data: TransferData

    @cached_property
    def common(self) -> Key:
        """Of every stage that builds the network."""
        model = self.recipe.model
        made_of = {"source": model.source, "args": model.args, "code": _code(model)}
        return {"package": [__version__, own_code()], "torch": installed("torch"), "model": made_of}

    @property
    def trained(self) -> Key:
        """Of every stage that takes steps."""
        recipe = self.recipe
        precision = {
            "mixed_precision": recipe.mixed_precision, "accumulate": batches_a_step(recipe),
            "checkpointing": recipe.gradient_checkpointing, "compile": recipe.compile,
        }  # fmt: skip
        return {**self.common, "task": self.task_code, "seed": recipe.seed, "precision": precision}

    @cached_property
    def task_code(self) -> list[str | None]:
        """The task's name, its score and, of a task of the user's own, a digest of its code."""
        name = self.recipe.task
        return [name, self.recipe.score, code_digest(name) if ":" in name else None]

    @property
    def task(self) -> Key:
        """Of every stage that trains and scores on the target's examples."""
        same = self.data.same_task
        target = {"target_train": self.data.target_train.digest, "target_test": self.data.target_test.digest}
        return {**self.trained, **target, "same_task": same}


def dense(basis: Basis, began: str | None = None) -> Key:
    """Of DENSE/weights.safetensors and training.json. ``began``: at a smaller input size, of the largest's weights."""
    recipe, model = basis.recipe, basis.recipe.model
    path = model.weights
    content = digest(Path(path)) if path and Path(path).is_file() else path
    return {
        **basis.trained, "weights": content and [content, model.weights_key, model.head],
        "source_train": basis.data.source_train.digest, "source_test": basis.data.source_test.digest,
        "train": recipe.train.model_dump(), **_at_smaller(recipe, began),
    }  # fmt: skip


def _at_smaller(recipe: Recipe, began: str | None) -> Key:
    """What trains the dense network on at a smaller input size."""
    if began is None:
        return {}
    return {"began": began, "retrain": recipe.retrain.model_dump(), "steps": recipe.search.steps}


def search(basis: Basis, dense: str, structure: Structure, strictest: tuple[Target, Budget]) -> Key:
    """Of search/. ``dense``: the digest of the dense weights."""
    target, budget = strictest
    priced_there = budget.metric in {"latency", "size"}
    goal = {**_asked(budget), "target": _priced(target) if priced_there else None}
    return {
        **basis.trained, "dense": dense, "groups": groups(structure), "goal": goal,
        "source_train": basis.data.source_train.digest, "search": basis.recipe.search.model_dump(),
        "prune": _prune(basis.recipe),
    }  # fmt: skip


def adapt(basis: Basis, dense: str) -> Key:
    """Of dense/adapted.safetensors."""
    task, part = basis.task, basis.recipe.retrain.model_dump(exclude=set(_BESIDE_A_TEACHER))
    return {**task, "dense": dense, "retrain": None if task["same_task"] else part}


def branches(basis: Basis, dense: str, structure: Structure) -> Key:
    """Of dense/branches.json. ``dense``: the digest of the dense weights."""
    source = {"source_train": basis.data.source_train.digest, "batch_size": basis.recipe.search.batch_size}
    return {**basis.trained, **source, "dense": dense, "groups": groups(structure), "prune": _prune(basis.recipe)}


def depth(basis: Basis, found: str, dense: str, structure: Structure, target: Target, budget: Budget) -> Key:
    """Of TARGET/BUDGET/depth.json. ``found`` and ``dense``: digests of what search and dense network left."""
    return {**branches(basis, dense, structure), **plan(basis, found, structure, target, budget)}


def size(depths: Sequence[Key]) -> Key:
    """Of TARGET/BUDGET/size.json. ``depths``: at each input size, as `depth`."""
    return {"sizes": list(depths)}


def plan(
    basis: Basis, found: str, structure: Structure, target: Target, budget: Budget, chosen: Sequence[Any] = ()
) -> Key:
    """Of TARGET/BUDGET/architecture.json. ``found``: the digest of what was found.

    ``chosen``: the digest of depth.json, and the inputs of the network that shares are of, where it has a larger input.
    """
    recipe, attached = basis.recipe, target.runner is not None
    measured = attached and (budget.metric == "latency" or target.granularity is None)
    steps = {"tolerance": recipe.measure.tolerance, "max_corrections": recipe.measure.max_corrections}
    return {
        **basis.common, "found": found, "method": recipe.search.method, "groups": groups(structure),
        "source_test": basis.data.source_test.digest, "prune": _prune(recipe), "budget": _asked(budget), "loop": steps,
        "target": {**_priced(target), "runner": target.runner}, "machine": machine(target) if measured else None,
        "export": {"opset": recipe.export.opset, "dynamic_batch": recipe.export.dynamic_batch},
        "formats": _versions(target), "classes": basis.data.num_target, "chosen": [*chosen],
    }  # fmt: skip


def retrain(basis: Basis, architecture: str, found: str, teacher: str, start: Start = "search") -> Key:
    """Of TARGET/BUDGET/weights.safetensors. The first three are digests of the files that it starts from."""
    return {
        **basis.task, "architecture": architecture, "found": found, "teacher": teacher,
        "retrain": retraining(basis.recipe, start).model_dump(),
    }  # fmt: skip


def retraining(recipe: Recipe, start: Start = "search") -> RetrainPart:
    """How slim networks are retrained: repaired first if no search trained their weights, unless the recipe says."""
    part, is_trained = recipe.retrain, METHODS[recipe.search.method].in_steps and start == "search"
    if part.repair is not None or is_trained or part.init == "fresh":
        return part
    return part.model_copy(update={"repair": True})


def export(basis: Basis, network: str, target: Target) -> Key:
    """Of a place's artifact. ``network``: the digest of its files."""
    part, calibrated = basis.recipe.export.content(), target.precision == "int8"
    if not calibrated:
        del part["calibration_examples"], part["on_refusal"]
    elif part["on_refusal"] == "fp16":
        part["max_score_drop"] = basis.recipe.export.max_score_drop
    return {
        **basis.common, "task": basis.task_code, "network": network, "target_test": basis.data.target_test.digest,
        "calibration": _inputs(basis) if calibrated else None, "format": [target.format, target.precision],
        "export": part, "formats": _versions(target),
    }  # fmt: skip


def pictures(basis: Basis, network: str) -> Key:
    """Of a place's pictures. ``network``: the digest of its files; "" where the targets are drawn."""
    target_test = basis.data.target_test.digest
    return {**basis.common, "task": basis.task_code, "network": network, "target_test": target_test}


def latency(basis: Basis, target: Target, budget: Budget | None, artifacts: Sequence[Artifact]) -> Key:
    """Of a place's latency.json; without a budget only what is measured counts, not what it is held to."""
    part = basis.recipe.measure.model_dump(include={"runs", "warmup", "tolerance"})
    if budget is None or budget.metric != "latency":
        del part["tolerance"]
    return {
        "package": basis.common["package"], "artifacts": [a.sha256 for a in artifacts],
        "target": [target.runner, target.runtime, target.threads, _program(target)], "machine": machine(target),
        "measure": part, "budget": None if budget is None or budget.metric != "latency" else _asked(budget),
    }  # fmt: skip


def _code(model: ModelPart) -> str | None:
    """Of a library's network its version, of the user's own a digest; a built-in one is this package's."""
    prefix, colon, _ = model.source.partition(":")
    if not colon:
        return None
    return installed(prefix) if prefix in LIBRARIES else code_digest(model.source)


def _inputs(basis: Basis) -> list[str]:
    """Where calibration examples are taken from."""
    return [basis.data.target_train.digest, basis.data.source_train.digest]


def _asked(budget: Budget) -> Key:
    """A budget, however it is written."""
    return {"metric": budget.metric, "limit": budget.limit, "relative": budget.relative}


def _priced(target: Target) -> Key:
    """What a cost on a target depends on, but for the machine."""
    rates = asdict(target.roofline) if target.roofline is not None and target.runner is None else None
    if rates is not None:
        del rates["source"]
    names = ("format", "precision", "runtime", "threads", "granularity")
    return {name: getattr(target, name) for name in names} | {"roofline": rates, "program": _program(target)}


def _program(target: Target) -> str | None:
    path = target.program
    return digest(Path(path)) if path and Path(path).is_file() else path


def _versions(target: Target) -> Mapping[str, str | None]:
    """Of the format's converter and runtime."""
    return {package: installed(package) for package in FORMATS[target.format].packages}


def _prune(recipe: Recipe) -> Key:
    return recipe.prune.model_dump(exclude={"trace_timeout_s"})


def groups(structure: Structure) -> list[tuple[str, int, int]]:
    """The channel groups, as keys have them."""
    return [(group.name, group.channels, group.period) for group in structure.groups]
