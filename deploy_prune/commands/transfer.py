"""`deploy-prune transfer`: train an architecture on new data, with its weights or without.

Every episode draws its own classes (``data.ways``) and shots, with the recipe's seed plus its number; all else is the
same. The first one's network is what is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from deploy_prune.architecture import json_file
from deploy_prune.architecture.json_file import Architecture
from deploy_prune.data.splits import TransferData
from deploy_prune.errors import DataError, RecipeError, RunFolderError, WeightsError
from deploy_prune.families import raw_form
from deploy_prune.networks import build, weights
from deploy_prune.recipe.data import sizes_of
from deploy_prune.recipe.file import dump, resolve
from deploy_prune.recipe.parts import Recipe
from deploy_prune.report.results import Episode, Transfer
from deploy_prune.retrain.episodes import interval
from deploy_prune.retrain.features import match
from deploy_prune.retrain.fewshot import adapt, feature_weight, for_new_classes
from deploy_prune.run.context import example_of
from deploy_prune.run.folder import load_tensors, read_json, save_tensors
from deploy_prune.run.saved import ARCHITECTURE, RECIPE, WEIGHTS
from deploy_prune.run.trust import found_recipe
from deploy_prune.surgery.cut import cut
from deploy_prune.system import strict_json
from deploy_prune.system.locks import hold
from deploy_prune.system.outputs import require_outside_runs
from deploy_prune.system.shell import shown, write_text
from deploy_prune.tasks import Objective, task_named
from deploy_prune.training.loop import Session, make_accelerator, network_score, set_seed
from deploy_prune.training.processes import batches_a_step
from deploy_prune.training.threads import Tell, share_cores
from deploy_prune.types import Progress, Structure, silent

FIGURES: Final = "transfer.json"
FEW_SHOTS: Final = 10
"""Training examples (objects of a detector) of each class, where neither the settings nor a run say how many."""
_OF_THE_NETWORK: Final = frozenset({"image_size", "channels", "augment", "fit", "objects"})
"""Keys of a run's ``data`` that hold for other data, too."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """What a transfer begins with: structure, weights, the dense network's weights, and the recipe."""

    architecture: Architecture
    weights: Mapping[str, Tensor] | None = None
    teacher: Mapping[str, Tensor] | None = None
    recipe: Recipe | None = None
    normalisation: Mapping[str, Any] | None = None


def transfer(
    source: Path,
    settings: Sequence[str],
    *,
    out: Path,
    episodes: int = 1,
    teacher: Path | None = None,
    trust: bool = False,
    progress: Progress = silent,
    tell_threads: Tell | None = None,
) -> Transfer:
    """Adapt an architecture to new data, and write the architecture, weights, recipe and figures to ``out``.

    Args:
        source: an architecture.json (fresh weights), or a folder that has one, as a run's TARGET/BUDGET (its weights,
            but for the class layers, unless retrain.init is fresh).
        settings: a recipe's, as in "data.source=cifar10" or "retrain.steps=400"; later ones win. See `as_settings`.
        out: the folder to write.
        episodes: draws of classes and shots.
        teacher: the dense network's weights, which teach after they are adapted themselves; by default the run's.
        trust: build networks whose source is ``module:callable`` too. That imports and calls what the file names.
        progress: told of every step.
        tell_threads: see `pipeline.run`.

    Raises:
        RunFolderError: ``out`` is in a run folder, has files that are no transfer's, or is being written by another.
        DeployPruneError: the architecture, the data or a setting doesn't work, or the loss is not finite.
    """
    _require_own(out)
    with hold(out, keep=False):
        given = gather(source, teacher, trust)
        recipe = transfer_recipe(given, settings)
        accelerator = make_accelerator(recipe.device, recipe.mixed_precision, batches_a_step(recipe))
        told = share_cores(progress, recipe.threads, accelerator.device, tell_threads)
        session = Session(
            accelerator=accelerator, seed=recipe.seed, progress=told, checkpointing=recipe.gradient_checkpointing,
            compiling=recipe.compile,
        )  # fmt: skip
        return _transferred(given, recipe, session, out, episodes, trust)


def _require_own(out: Path) -> None:
    """Only an earlier transfer's files are replaced."""
    require_outside_runs(out)
    there = [name for name in (ARCHITECTURE, WEIGHTS, FIGURES) if (out / name).exists()]
    if there and not (out / RECIPE).is_file():
        message = f"{shown(out)} has a file {there[0]} that transfer didn't write; choose another --out."
        raise RunFolderError(message)


def _transferred(given: Given, recipe: Recipe, session: Session, out: Path, episodes: int, trust: bool) -> Transfer:
    judged = task_named(recipe.task, recipe.score)
    task: _Task | None = None
    done: list[Episode] = []
    for seed in range(recipe.seed, recipe.seed + episodes):
        examples = judged.load(recipe.data, seed)
        task = task or _Task(given, recipe, examples, trust)
        slim, episode = task.episode(examples, replace(session, seed=seed))
        if not done:
            write_text(out / RECIPE, dump(recipe))  # first, for it marks the folder as ours
            write_text(out / ARCHITECTURE, json_file.dumps(task.described))
            save_tensors(out / WEIGHTS, slim.state_dict())
        done.append(episode)
    mean, half = interval([one.score for one in done])
    norm, rated = examples.target_train, judged.score
    found = Transfer(
        folder=out, episodes=tuple(done), score=mean, interval=half, init=recipe.retrain.init,
        params=sum(p.numel() for p in slim.parameters()), mean=_values(norm, "mean"), std=_values(norm, "std"),
        score_name=rated.name, score_unit=rated.unit,
    )  # fmt: skip
    write_text(out / FIGURES, json.dumps(found.as_json(), indent=1) + "\n")
    return found


def _values(examples: Any, name: str) -> tuple[float, ...]:
    """Mean or standard deviation per channel of what inputs are normalised with; () where they aren't."""
    found = getattr(examples, name, None)
    return () if found is None else tuple(found.tolist())


def as_settings(collection: str | None, shots: int | None = None, init: str | None = None) -> list[str]:
    """The command's own options as settings of a recipe.

    ``collection``: a folder with a folder of images per class, an .npz of arrays, or a data set's name; None: the
    run's. ``shots``: as ``data.shots``; 10 or the run's if not given. ``init``: inherit or fresh.
    """
    path = Path(collection or "")
    kind = "folder" if path.is_dir() else "npz" if path.suffix == ".npz" else None
    source = {} if kind is None or collection is None else {"data.source": kind, "data.root": collection}
    given = {"data.source": collection, "data.shots": shots, "retrain.init": init} | source
    return [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]


def gather(source: Path, teacher: Path | None, trust: bool = False) -> Given:
    """Everything of a source that a transfer can use.

    Raises:
        ArchitectureError, RunFolderError, WeightsError: something is missing or damaged, or needs ``trust``.
    """
    if not source.exists():
        message = f"There is no {source}; give an architecture.json, or a run's TARGET/BUDGET folder."
        raise RunFolderError(message)
    if not source.is_dir():
        return Given(architecture=json_file.load(source), teacher=_teacher(teacher))
    described = json_file.load(source / ARCHITECTURE)
    run = source.resolve().parent.parent
    dense = run / "dense"
    if (source / RECIPE).is_file():  # an earlier transfer, which belongs to no run
        recipe_file, told_file, known = source / RECIPE, source / FIGURES, None
    else:
        recipe_file, told_file, known = run / "recipe.yaml", dense / "training.json", dense / WEIGHTS
    told = read_json(told_file) if told_file.is_file() else {}
    return Given(
        architecture=described, weights=load_tensors(source / WEIGHTS),
        teacher=_teacher(teacher or (known if known is not None and known.is_file() else None)),
        recipe=found_recipe(recipe_file, trust) if recipe_file.is_file() else None,
        normalisation=_normalisation(told, told_file),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Normalisation:
    """Of what is told of a training, what inputs were normalised with; per channel."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def _normalisation(told: Any, file: Path) -> dict[str, Any] | None:
    found = strict_json.conform(_Normalisation, told, RunFolderError, str(file))
    if found.mean is None or found.std is None:
        return None
    return {"mean": list(found.mean), "std": list(found.std)}


def _teacher(path: Path | None) -> Mapping[str, Tensor] | None:
    return None if path is None else weights.read_state(path)


def transfer_recipe(given: Given, settings: Sequence[str]) -> Recipe:
    """The whole recipe: settings first, then the run's or the architecture's values, then defaults.

    Where they name no data, the data is the run's, target classes and shots included. Inherited weights keep the
    normalisation that they were trained with.

    Raises:
        RecipeError: a setting is wrong, there is no data, or weights are to be inherited where there are none.
    """
    made_by, described = given.recipe, given.architecture
    values: dict[str, Any] = {"name": "transfer", "model": described.model.model_dump()}
    if made_by is not None:
        values |= {"task": made_by.task, "score": made_by.score}
    keys = _data_keys(values, settings)
    values["data"] = examples = {key: value for key, value in _pictures(described).items() if key in keys}
    named = "source" in resolve(values, settings, "transfer").data.model_fields_set
    if made_by is None and "source" in keys and not named:
        message = "data.source: there is no run to take the data from; name it with --data or data.source."
        raise RecipeError(message)
    if made_by is not None:
        kept = [key for key in type(made_by.data).model_fields if not named or key in _OF_THE_NETWORK]
        values["data"] = {key: getattr(made_by.data, key) for key in kept}
        if len(sizes_of(made_by.data)) > 1:
            values["data"]["image_size"] = examples["image_size"]
        values["retrain"] = made_by.retrain.model_dump()
    if given.weights is None:
        values["retrain"] = {"init": "fresh"}
    recipe = resolve(values, settings, "transfer")
    if "shots" not in recipe.data.model_fields_set:  # class layers are always new
        values["data"] = {**values["data"], "shots": FEW_SHOTS}
        recipe = resolve(values, settings, "transfer")
    unset = "mean" in keys and recipe.data.mean is None and recipe.data.channels == examples.get("channels")
    if recipe.retrain.init == "inherit" and given.normalisation is not None and unset:
        recipe = resolve({**values, "data": {**values["data"], **given.normalisation}}, settings, "transfer")
    if given.weights is None and recipe.retrain.init == "inherit":
        message = "retrain.init: there are no weights to inherit in an architecture.json alone; give the folder that "
        message += "has them, or leave init out."
        raise RecipeError(message)
    return recipe


def _data_keys(values: Mapping[str, Any], settings: Sequence[str]) -> frozenset[str]:
    """The keys that ``data`` has for the task, which a setting may name."""
    of_task = [text for text in settings if text.partition("=")[0].strip() == "task"]
    return frozenset(type(resolve(values, of_task, "transfer").data).model_fields)


def _pictures(described: Architecture) -> dict[str, Any]:
    """What a recipe's ``data`` says of pictures that are the network's input; nothing, if they aren't."""
    shape = described.input_shape
    return {"image_size": _side(shape), "channels": shape[1]} if len(shape) == 4 else {}


def _side(shape: Sequence[int]) -> int | list[int]:
    """A recipe's image_size, of an input [B, C, H, W]."""
    return shape[2] if shape[2] == shape[3] else [*shape[2:]]


def _require_alike(example: Sequence[Tensor], architecture: Architecture) -> None:
    """The data's inputs are of the kind that the architecture reads; lengths, heights and widths may differ.

    Raises:
        DataError: they aren't.
    """
    asked, there = (
        [(len(x.shape), x.shape[1] if len(x.shape) > 2 else None, x.dtype) for x in inputs]
        for inputs in (example, architecture.example)
    )
    if asked != there:
        found, read = (", ".join("x".join(map(str, x.shape[1:])) for x in xs) for xs in (example, architecture.example))
        key = "data.channels" if len(example) == 1 and len(example[0].shape) == 4 else "data"
        message = f"{key}: inputs are {found}, and the architecture reads {read}."
        raise DataError(message)


class _Task:
    """An architecture for so many classes, and the networks of its episodes."""

    def __init__(self, given: Given, recipe: Recipe, examples: TransferData, trust: bool) -> None:
        self.given, self.recipe, self.trust = given, recipe, trust
        num_classes = examples.num_target
        example = example_of(examples)
        _require_alike(example, given.architecture)
        self.described, dense = json_file.retarget(given.architecture, num_classes, example, trust)
        self.structure: Structure = json_file.structure_of(self.described, dense, example=example)
        self.head = build.head_tensors(
            self.described.model, num_classes, lambda network: raw_form(network, example).network
        )
        made = raw_form(build.build_network(self.described.model, num_classes), example)
        self.objective = Objective(task=task_named(recipe.task, recipe.score), form=made)
        self.part = for_new_classes(recipe.retrain) if self.head else recipe.retrain

    def episode(self, examples: TransferData, session: Session) -> tuple[nn.Module, Episode]:
        """Adapt the teacher, adapt the slim network, score."""
        teacher, told = self._teacher(examples, session)
        slim = self._slim(session.seed)
        done = adapt(
            slim, examples.target_train, self.objective, self.part, teacher=teacher,
            session=session, match=match(self.structure, self.described.keep),
            work=f"seed {session.seed}: adapt the slim network",
        )  # fmt: skip
        return slim, Episode(
            seed=session.seed, classes=examples.target_classes, split=examples.digest,
            score=self._score(slim, examples, session), score_teacher=told,
            steps=len(done.losses), seconds=round(done.seconds, 1),
        )  # fmt: skip

    def _teacher(self, examples: TransferData, session: Session) -> tuple[nn.Module | None, float | None]:
        """The dense network, adapted to the task with the same examples, and its score."""
        asked = self.recipe.retrain
        if self.given.teacher is None or not (asked.distill or feature_weight(asked) or asked.repair):
            return None, None
        part = self.part.model_copy(update={"init": "inherit"})
        teacher = self._dense(session.seed)
        weights.load_state(teacher, self._body(self.given.teacher, teacher), strict=False)
        adapt(
            teacher, examples.target_train, self.objective, part, teacher=None, session=session,
            work=f"seed {session.seed}: adapt the teacher",
        )  # fmt: skip
        return teacher, self._score(teacher, examples, session)

    def _score(self, network: nn.Module, examples: TransferData, session: Session) -> float:
        return network_score(network, examples.target_test, self.objective, accelerator=session.accelerator)

    def _slim(self, seed: int) -> nn.Module:
        """The slim network: new class layers, all else inherited or new."""
        slim = cut(self._dense(seed), self.structure, self.described.keep)
        if self.recipe.retrain.init == "inherit" and self.given.weights is not None:
            weights.load_state(slim, self._body(self.given.weights, slim), strict=False)
        return slim

    def _dense(self, seed: int) -> nn.Module:
        set_seed(seed)
        return json_file.dense_network(self.described, self.trust)

    def _body(self, state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
        body = {name: tensor for name, tensor in state.items() if name not in self.head}
        for name, tensor in network.state_dict().items():
            if name not in self.head and (name not in body or body[name].shape != tensor.shape):
                found = [*body[name].shape] if name in body else "nothing"
                message = f"The weights are another network's: {name} is {[*tensor.shape]}, and they have {found}."
                raise WeightsError(message)
        return body
