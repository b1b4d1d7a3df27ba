"""An architecture on a new task: `deploy-prune transfer`. What people share is the structure, with weights or without.

Every episode draws its own classes (``data.ways``) and shots, with the recipe's seed plus its number; all else is the
same. The first one's network is what is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune import data, models
from deploy_prune.data import TransferData
from deploy_prune.errors import DataError, RunFolderError
from deploy_prune.recipe import Recipe
from deploy_prune.recipe_file import dump, load, resolve
from deploy_prune.retrain.episodes import interval
from deploy_prune.retrain.features import match
from deploy_prune.retrain.fewshot import adapt, for_new_classes
from deploy_prune.runfolder import load_tensors, read_json, save_tensors
from deploy_prune.shell import write_text
from deploy_prune.surgery import architecture
from deploy_prune.surgery.architecture import Architecture
from deploy_prune.surgery.cut import cut
from deploy_prune.training import Session, accuracy, make_accelerator, set_seed
from deploy_prune.types import Progress, Structure, silent

ARCHITECTURE: Final = "architecture.json"
WEIGHTS: Final = "weights.safetensors"
RECIPE: Final = "transfer.yaml"


@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """What there is to begin with: a structure, its weights, the dense network's, and the recipe they were made by."""

    architecture: Architecture
    weights: Mapping[str, Tensor] | None = None
    teacher: Mapping[str, Tensor] | None = None
    recipe: Recipe | None = None
    normalisation: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One draw of classes and shots, and what came of it; accuracies from 0 to 1 on the task's test examples."""

    seed: int
    classes: tuple[int, ...]
    split: str
    accuracy: float
    accuracy_teacher: float | None
    steps: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """All episodes, their mean accuracy, half its 95% interval (None of one), and where the first one's network is."""

    folder: Path
    episodes: tuple[Episode, ...]
    accuracy: float
    interval: float | None
    init: str
    params: int

    def as_json(self) -> dict[str, Any]:
        """For transfer.json."""
        return {key: value for key, value in asdict(self).items() if key != "folder"}


def transfer(
    source: Path,
    settings: Sequence[str],
    *,
    out: Path,
    episodes: int = 1,
    teacher: Path | None = None,
    trust: bool = False,
    progress: Progress = silent,
) -> Transfer:
    """Adapt an architecture to new data, and write the architecture, weights, recipe and figures to ``out``.

    Args:
        source: an architecture.json (fresh weights), or a folder that has one, as a run's TARGET/BUDGET (its weights,
            but for the classifier, unless retrain.init is fresh).
        settings: a recipe's, as in "data.source=cifar10" or "retrain.steps=400"; later ones win. See `as_settings`.
        out: the folder to write.
        episodes: draws of classes and shots.
        teacher: the dense network's weights, which teach after they are adapted themselves; by default the run's.
        trust: build networks whose source is ``module:callable`` too. That imports and calls what the file names.
        progress: told of every step.

    Raises:
        DeployPruneError: the architecture, the data or a setting doesn't work, or the loss is not finite.
    """
    given = gather(source, teacher)
    recipe = transfer_recipe(given, settings)
    session = Session(
        accelerator=make_accelerator(recipe.device, recipe.mixed_precision, recipe.accumulate),
        seed=recipe.seed,
        progress=progress,
    )
    torch.set_num_threads(recipe.threads or torch.get_num_threads())
    done = tuple(_episode(given, recipe, session, number, trust, out) for number in range(episodes))
    mean, half = interval([one.accuracy for one in done])
    params = sum(tensor.numel() for tensor in load_tensors(out / WEIGHTS).values())
    found = Transfer(folder=out, episodes=done, accuracy=mean, interval=half, init=recipe.retrain.init, params=params)
    write_text(out / RECIPE, dump(recipe))
    write_text(out / "transfer.json", json.dumps(found.as_json(), indent=1) + "\n")
    return found


def as_settings(collection: str, shots: int | None = None, init: str | None = None) -> list[str]:
    """What is most often set, as settings.

    ``collection``: a folder with a folder of images per class, an .npz of arrays, or a data set's name. ``shots``:
    training examples of each class, 10 if not given. ``init``: inherit or fresh.
    """
    path = Path(collection)
    kind = "folder" if path.is_dir() else "npz" if path.suffix == ".npz" else None
    source = {} if kind is None else {"data.source": kind, "data.root": collection}
    given = {"data.source": collection, "data.shots": shots, "retrain.init": init} | source
    return [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]


def gather(source: Path, teacher: Path | None) -> Given:
    """Everything of a source that a transfer can use.

    Raises:
        ArchitectureError, RunFolderError, WeightsError: something is missing or damaged.
    """
    if not source.exists():
        message = f"There is no {source}; give an architecture.json, or a run's TARGET/BUDGET folder."
        raise RunFolderError(message)
    if not source.is_dir():
        return Given(architecture=architecture.load(source), teacher=_teacher(teacher))
    described = architecture.load(source / ARCHITECTURE)
    run = source.resolve().parent.parent
    dense = run / "dense"
    told = read_json(dense / "training.json") if (dense / "training.json").is_file() else {}
    return Given(
        architecture=described, weights=load_tensors(source / WEIGHTS),
        teacher=_teacher(teacher or (dense / WEIGHTS if (dense / WEIGHTS).is_file() else None)),
        recipe=load(str(run / "recipe.yaml")) if (run / "recipe.yaml").is_file() else None,
        normalisation={key: told[key] for key in ("mean", "std")} if "mean" in told else None,
    )  # fmt: skip


def _teacher(path: Path | None) -> Mapping[str, Tensor] | None:
    return None if path is None else models.read_state(path)


def transfer_recipe(given: Given, settings: Sequence[str]) -> Recipe:
    """The settings as a whole recipe; what they leave open is the run's, or the architecture's, or the default.

    Inherited weights keep the normalisation that they were trained with.

    Raises:
        RecipeError: a setting is wrong.
    """
    made_by, described = given.recipe, given.architecture
    shape = described.input_shape
    examples = {"image_size": shape[-1], "channels": shape[1]} if len(shape) == 4 else {}
    values: dict[str, Any] = {"name": "transfer", "model": described.model.model_dump(), "data": examples}
    if made_by is not None:
        kept = ("image_size", "channels", "augment", "mean", "std")
        values["data"] = {key: getattr(made_by.data, key) for key in kept}
        values["retrain"] = made_by.retrain.model_dump()
    recipe = resolve(values, settings, "transfer")
    unset = recipe.data.mean is None and recipe.data.channels == examples.get("channels")
    if recipe.retrain.init == "inherit" and given.normalisation is not None and unset:
        recipe = resolve({**values, "data": {**values["data"], **given.normalisation}}, settings, "transfer")
    if given.weights is None and recipe.retrain.init == "inherit":
        recipe = recipe.model_copy(update={"retrain": recipe.retrain.model_copy(update={"init": "fresh"})})
    return recipe


def _episode(given: Given, recipe: Recipe, session: Session, number: int, trust: bool, out: Path) -> Episode:
    """Draw, adapt the teacher, adapt the slim network, score."""
    seed = recipe.seed + number
    examples = data.load(recipe.data, seed)
    task = _Task(given, recipe, replace(session, seed=seed), examples, trust)
    teacher, score = task.taught_teacher()
    slim = task.slim()
    done = adapt(
        slim, examples.target_train, for_new_classes(recipe.retrain), teacher=teacher, session=task.session,
        augment=recipe.data.augment, match=match(task.structure, task.described.keep),
        work=f"episode {number + 1}: adapt the slim network",
    )  # fmt: skip
    if number == 0:
        write_text(out / ARCHITECTURE, architecture.dumps(task.described))
        save_tensors(out / WEIGHTS, slim.state_dict())
    return Episode(
        seed=seed, classes=examples.target_classes, split=examples.digest, accuracy=task.accuracy(slim),
        accuracy_teacher=score, steps=len(done.losses), seconds=round(done.seconds, 1),
    )  # fmt: skip


class _Task:
    """One episode's networks."""

    def __init__(self, given: Given, recipe: Recipe, session: Session, examples: TransferData, trust: bool) -> None:
        self.given, self.recipe, self.session, self.examples, self.trust = given, recipe, session, examples, trust
        self._require_channels()
        self.described, dense = self._dense()
        example = torch.zeros(self.described.input_shape)
        self.structure: Structure = architecture.structure_of(self.described, dense, example=example)
        self.head = models.head_tensors(self.described.model, examples.num_target)

    def _dense(self) -> tuple[Architecture, nn.Module]:
        set_seed(self.session.seed)
        shape = (1, self.recipe.data.channels, self.recipe.data.image_size, self.recipe.data.image_size)
        return architecture.retarget(self.given.architecture, self.examples.num_target, shape, self.trust)

    def _require_channels(self) -> None:
        shape = self.given.architecture.input_shape
        if len(shape) != 4 or shape[1] != self.recipe.data.channels:
            message = f"data.channels: {self.recipe.data.channels} are given, and the architecture reads {shape[1:]}."
            raise DataError(message)

    def taught_teacher(self) -> tuple[nn.Module | None, float | None]:
        """The dense network, adapted to the task with the same examples, and its accuracy."""
        part = for_new_classes(self.recipe.retrain.model_copy(update={"init": "inherit"}))
        if self.given.teacher is None or (part.distill == 0 and part.features == 0):
            return None, None
        _, teacher = self._dense()
        models.load_state(teacher, self._body(self.given.teacher, teacher), strict=False)
        adapt(
            teacher, self.examples.target_train, part, teacher=None, session=self.session,
            augment=self.recipe.data.augment, work=f"seed {self.session.seed}: adapt the teacher",
        )  # fmt: skip
        return teacher, self.accuracy(teacher)

    def slim(self) -> nn.Module:
        """The slim network: a new classifier, all else inherited or new."""
        _, dense = self._dense()
        slim = cut(dense, self.structure, self.described.keep)
        if self.recipe.retrain.init == "inherit" and self.given.weights is not None:
            models.load_state(slim, self._body(self.given.weights, slim), strict=False)
        return slim

    def _body(self, state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
        body = {name: tensor for name, tensor in state.items() if name not in self.head}
        missing = [n for n in network.state_dict() if n not in body and n not in self.head]
        if missing:
            message = f"The weights are another network's: they lack {missing[0]!r}."
            raise RunFolderError(message)
        return body

    def accuracy(self, network: nn.Module) -> float:
        """On the task's test examples."""
        return accuracy(network, self.examples.target_test, accelerator=self.session.accelerator)
