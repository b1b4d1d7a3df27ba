"""Write a recipe for a network, data and a device: what can be found out is looked at, the rest is asked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from torch import nn

from deploy_prune.commands.check import check
from deploy_prune.data.recognise import Reading, readings
from deploy_prune.errors import DataError, RecipeError
from deploy_prune.families.table import raw_form
from deploy_prune.networks import build
from deploy_prune.recipe.file import resolve
from deploy_prune.recipe.parts import Recipe
from deploy_prune.report.results import CheckReport
from deploy_prune.run import preprocessing
from deploy_prune.run.context import example_of
from deploy_prune.run.preprocessing import Resolved
from deploy_prune.system.shell import shown, write_text
from deploy_prune.tasks.task import Objective
from deploy_prune.types import Progress, silent

_WHY: Final = {
    "image_size": "in pixels; neither the network nor the pictures say a size",
    "broken": "some annotations are broken: they are left out, and named by check",
    "unreadable": "some images can't be read: they are left out, and named by check",
}
Ask = Callable[[str, str, Sequence[str]], str]
"""Gets a question, the answer that is likeliest, and the answers that there are (none: any); gives the answer."""

MODELS: Final = {
    "classification": "torchvision:mobilenet_v2",
    "detection": "torchvision:ssdlite320_mobilenet_v3_large",
    "segmentation": "torchvision:lraspp_mobilenet_v3_large",
}
"""What is taken if no network is named: the ones that are made for phones."""
SIZES: Final = {"classification": 224, "detection": 320, "segmentation": 256}
"""Sides of inputs in pixels, where neither network nor pictures say one."""
LARGEST_BATCH: Final = {"classification": 64, "detection": 16, "segmentation": 16}
MEMORY: Final = 0.4
"""The share of the free memory that a training step may take."""
SHARES: Final = (50, 60, 70, 80, 90)
"""Budgets in percent that are tried, from the smallest on, where none is asked for."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the user has said; None and (): nothing."""

    data: Path
    model: str | None = None
    weights: str | None = None
    targets: tuple[str, ...] = ()
    budgets: tuple[str, ...] = ()
    task: str | None = None
    out: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A recipe that was found: its file, its values, and why each is so (by its whole key).

    ``words``: what the data is; ``told``: what goes into the network, and how many examples there are.
    """

    path: Path
    values: Mapping[str, Any]
    reasons: Mapping[str, str]
    words: str
    told: tuple[str, ...] = ()

    @property
    def recipe(self) -> Recipe:
        """As `recipe` would read it."""
        return resolve(self.values, name="the new recipe")


def answered(wanted: Wanted, ask: Ask) -> Wanted:
    """With what the user has not said asked for, where it can't be found out: task, network, devices, in this order.

    Raises:
        DataError: nothing in the folder is known, or nothing is for the task.
    """
    tasks = list(dict.fromkeys(one.task for one in readings(wanted.data)))
    task = wanted.task or (tasks[0] if len(tasks) == 1 else ask("What is the network for?", tasks[0], tasks))
    wanted = replace(wanted, task=_reading(wanted.data, task).task)
    model = wanted.model or ask("Which network?", MODELS[task], ())
    targets = wanted.targets or tuple(re.split(r"[\s,]+", ask("Which devices?", "host", ()).strip()))
    return replace(wanted, model=model, targets=targets)


def begin(wanted: Wanted, progress: Progress = silent) -> tuple[Begun, CheckReport]:
    """A recipe, and what `check` says of it: that its budgets can be met, unless others were asked for.

    Args:
        wanted: as `answered` gives it.
        progress: told of what `check` does.

    Raises:
        RecipeError: the file is there already.
        DataError: the data can't be read.
        DeployPruneError: network, weights or target don't work.
    """
    reading, model = _reading(wanted.data, str(wanted.task)), str(wanted.model)
    name = _as_name(wanted.data, model)
    path = wanted.out or Path(f"{name}.yaml")
    if path.exists():
        message = f"{shown(path)} is there already; name another with --out."
        raise RecipeError(message)
    values: dict[str, Any] = {
        "name": name,
        "task": reading.task,
        "model": {"source": model, **({"weights": wanted.weights} if wanted.weights else {})},
        "data": {"source": reading.source, "root": str(reading.root.resolve())},
        "targets": list(wanted.targets),
        "budgets": list(wanted.budgets or ["50%"]),
    }
    begun = Begun(path=path, values=values, reasons={"data.source": reading.words}, words=reading.words)
    begun, found = _with_size(begun)
    begun = _with_batch(begun, found)
    return _checked(begun, free=not wanted.budgets, progress=progress)


def _reading(data: Path, task: str) -> Reading:
    """How the data is read for this task."""
    found = readings(data)
    fitting = [one for one in found if one.task == task]
    if not fitting:
        message = f"{shown(data)} has nothing for {task}: it has {', '.join(one.words for one in found)}."
        raise DataError(message)
    return fitting[0]


def _as_name(data: Path, model: str) -> str:
    words = f"{data.resolve().stem}-{re.split(r'[:.]', model)[-1]}"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", words).strip("-._") or "my-network"


def _with_size(begun: Begun) -> tuple[Begun, Resolved]:
    """The data loads: with an image size if nothing says one, and without what is broken if something is.

    Raises:
        DataError: it doesn't; the first reason.
    """
    size, loose = {"image_size": SIZES[begun.values["task"]]}, _loose(begun.values["task"])
    first: DataError | None = None
    for more in ({}, size, loose, size | loose):
        tried = _set(begun, "data", more, {f"data.{key}": _WHY[key] for key in more})
        try:
            found = preprocessing.resolve(tried.recipe)
        except DataError as error:
            first = first or error
        else:
            return replace(tried, told=found.summary), found
    assert first is not None
    raise first


def _loose(task: str) -> dict[str, Any]:
    """What leaves out what can't be read."""
    return {"unreadable": "skip"} if task == "classification" else {"broken": "skip"}


def _set(begun: Begun, part: str, more: Mapping[str, Any], reasons: Mapping[str, str]) -> Begun:
    values = {**begun.values, part: {**begun.values.get(part, {}), **more}} if more else begun.values
    return replace(begun, values=values, reasons={**begun.reasons, **reasons})


def _with_batch(begun: Begun, found: Resolved) -> Begun:
    """The largest batch size whose step fits into the free memory."""
    size, reason = _batch_size(found)
    for part in ("train", "search", "retrain"):
        begun = _set(begun, part, {"batch_size": size}, {f"{part}.batch_size": reason} if part == "train" else {})
    return begun


def _batch_size(found: Resolved) -> tuple[int, str]:
    recipe = found.recipe
    network = build.build_network(recipe.model, found.data.num_source)
    made = Objective(task=found.task, form=raw_form(network, example_of(found.data)))
    batch = found.data.source_train.take(torch.arange(min(2, len(found.data.source_train))))
    saved = kept_bytes(made, batch) / len(batch.inputs[0])
    weights = 4 * sum(p.numel() * p.element_size() for p in network.parameters())
    free = _free_bytes(recipe.device)
    most, examples = LARGEST_BATCH[recipe.task], len(found.data.target_train)
    fits = (MEMORY * free - weights) / max(saved, 1)
    size = 2 ** max(1, min(int(math.log2(max(fits, 2))), int(math.log2(most)), int(math.log2(max(examples, 2)))))
    return size, f"a step takes about {(weights + size * saved) / 1e9:.1f} GB"


def kept_bytes(objective: Objective, batch: Any) -> float:
    """What a step on this batch keeps for its gradients beside the weights, in bytes."""
    network: nn.Module = objective.form.network
    own = {x.untyped_storage().data_ptr() for x in (*network.parameters(), *network.buffers())}
    sizes: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = objective.batch_loss(network.train(), batch)
    del loss
    return float(sum(size for place, size in sizes.items() if place not in own))


def _free_bytes(device: str) -> float:
    if device != "cpu" and torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    return float(psutil.virtual_memory().available)


def _checked(begun: Begun, free: bool, progress: Progress) -> tuple[Begun, CheckReport]:
    """What `check` says; where no budget was asked for, the smallest that can be met."""
    report = check(begun.recipe, progress)
    unmet = [one for one in report.budgets if not one.met]
    if unmet and free:
        least = max(reach.smallest / reach.dense for reach in report.targets)
        share = next((share for share in SHARES if share / 100 >= least), None)
        if share is not None:
            reason = f"the smallest that can be reached is {least:.0%}"
            values = {**begun.values, "budgets": [f"{share}%"]}
            begun = replace(begun, values=values, reasons={**begun.reasons, "budgets": reason})
            report = check(begun.recipe, progress)
    return begun, report


def write(begun: Begun) -> None:
    """Write the recipe with comments.

    Raises:
        RunFolderError: it can't be written.
    """
    write_text(begun.path, text(begun))


def text(begun: Begun) -> str:
    """The recipe's file, with what was found as comments."""
    lines = [
        f"# Written by deploy-prune init. The data: {begun.words}.",
        *(f"# {sentence}" for sentence in begun.told),
        "#",
        f"#   deploy-prune check {begun.path}      what can be pruned, and whether the budgets can be met",
        f"#   deploy-prune recipe {begun.path}     run it; the results are in runs/{begun.values['name']}",
        "#",
        "# Every key that is left out has a default: `deploy-prune schema` lists them all.",
        "",
    ]
    for key in _ORDER:
        value = begun.values[key]
        if not isinstance(value, Mapping):
            reason = begun.reasons.get(key) or _MEANS[key]
            lines += [*([""] if key == "targets" else []), f"{key}: {_shown(value)}{_comment(reason)}"]
            continue
        lines += ["", f"{key}:{_comment(_MEANS.get(key, ''))}"]
        for sub, each in value.items():
            lines.append(f"  {sub}: {_shown(each)}{_comment(begun.reasons.get(f'{key}.{sub}', ''))}")
        if "weights" not in value:
            lines += _OFFERED.get(key, ())
    return "\n".join(lines) + "\n"


_ORDER: Final = ("name", "task", "model", "data", "train", "search", "retrain", "targets", "budgets")
_MEANS: Final = {
    "name": "the run folder's name",
    "task": "what the network is for",
    "train": "the dense network, if there are no weights for it",
    "search": "which channels matter",
    "retrain": "the slim network; the dense one is its teacher",
    "targets": "the devices; `deploy-prune targets` lists more, `deploy-prune targets new` describes yours",
    "budgets": "of the dense network's latency; or '4 ms', '50% macs', '3 Mparams', '2.5 MB'",
}
_OFFERED: Final = {
    "model": ("  # weights: my-network.safetensors    # your trained weights, or default for the library's own",),
    "train": ("  # steps: 300                         # longer is better, and takes longer",),
}


_WORDS: Final = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})
"""What YAML takes for something else than text."""


def _comment(words: str) -> str:
    return f"  # {words}" if words else ""


def _shown(value: Any) -> str:
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z/][\w./:-]*", value)
    return value if plain and value.lower() not in _WORDS else json.dumps(value, ensure_ascii=False)
