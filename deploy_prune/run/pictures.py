"""Pictures of a few test examples with what a network finds in them, where the task can draw; the page shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune.data.examples import spread
from deploy_prune.errors import DataError, DeployPruneError
from deploy_prune.run import keys, stages
from deploy_prune.run.context import RunContext
from deploy_prune.system.shell import atomic
from deploy_prune.tasks import Drawn
from deploy_prune.training.loop import device_of, placed

TRUTH: Final = "truth"
"""The place of what the targets say."""
NUM: Final = 3
"""Test examples, spread over the classes."""
QUALITY: Final = 80
"""Of JPEG: a picture has about 10 kB."""


def draw(context: RunContext, place: str, network: nn.Module | None = None, key: str = "") -> None:
    """PLACE/pictures.json and the JPEGs that it names; nothing where the task can't draw.

    ``network``: whose answers are drawn; None: the targets are. ``key``: the digest of its files.
    """
    told, folder = f"{place}/pictures.json", context.folder
    if context.task.draw is None:
        (folder.path / told).unlink(missing_ok=True)  # of a task that could, once
        return
    places = spread(context.data.target_test.strata, NUM)
    files = [f"{place}/pictures/{number}.jpg" for number in range(1, 1 + len(places))]

    def compute() -> None:
        answers = None if network is None else _answers(context, network, places)
        drawn = _drawn(context, places, answers)
        for file, one in zip(files, drawn, strict=True):
            with atomic(folder.path / file) as temporary:
                one.picture.convert("RGB").save(temporary, "JPEG", quality=QUALITY)
        shown = [
            {"file": file.removeprefix(f"{place}/"), "found": list(map(list, one.found))}
            for file, one in zip(files, drawn, strict=True)
        ]
        folder.write_json(told, {"pictures": shown})

    folder.stage(f"{place}/pictures", keys.pictures(context.basis, key), [told, *files], compute)


@torch.no_grad()
def _answers(context: RunContext, network: nn.Module, places: Tensor) -> Any:
    """What the network gives for these test examples, as the task judges it."""
    device = device_of(network)
    with placed(network, device, training=False):
        outputs = network(*(x.to(device) for x in context.data.target_test.take(places).inputs))
    return stages.target_network(context, None).decoded(outputs)


def _drawn(context: RunContext, places: Tensor, answers: Any) -> Sequence[Drawn]:
    """The task's pictures.

    Raises:
        DataError: a task of the user's own fails, or draws something else.
    """
    name, draw = context.recipe.task, context.task.draw
    assert draw is not None
    try:
        drawn = list(draw(context.data, places, answers))
    except DeployPruneError:
        raise
    except Exception as error:
        message = f"task: the draw of {name!r} failed: {type(error).__name__}: {error}"
        raise DataError(message) from error
    if len(drawn) != len(places) or not all(isinstance(one, Drawn) for one in drawn):
        message = f"task: the draw of {name!r} must give a deploy_prune.Drawn for each of {len(places)} examples."
        raise DataError(message)
    return drawn
