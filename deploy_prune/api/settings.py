"""What `prune` takes by name."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationError

from deploy_prune.errors import RecipeError, perhaps
from deploy_prune.recipe.parts import MeasurePart, PrunePart, SearchPart
from deploy_prune.search.methods import check_options


class Settings(SearchPart, PrunePart, MeasurePart):
    """What `prune` takes by name, with the defaults of a recipe's parts ``search``, ``prune`` and ``measure``.

    But for ``max_step``, as nothing is known of the loss: without it, squared errors of large values end a network.
    ``granule``: every group keeps a multiple of so many channels; None: the target's granularity, 1 without a target.
    ``batch_size`` only says how large the batches are.
    """

    granule: Annotated[int, Field(ge=1)] | None = None
    max_step: Annotated[float, Field(gt=0)] | None = 0.003


def read_settings(method: str, settings: dict[str, Any]) -> Settings:
    """The settings, checked.

    Raises:
        RecipeError: one is unknown (the nearest known one is named) or has a bad value.
    """
    try:
        config = Settings(method=method, **settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        hint = perhaps(name, Settings.model_fields) if first["type"] == "extra_forbidden" else ""
        message = f"prune: {name}: {first['msg'].removeprefix('Value error, ')} (given {first['input']!r}).{hint}"
        raise RecipeError(message) from None
    check_options(config, config)
    return config
