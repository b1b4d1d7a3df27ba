"""What a search method is, what it is asked for, and how its options are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError
from torch import nn

from deploy_prune.cost import CostModel
from deploy_prune.errors import RecipeError
from deploy_prune.recipe.parts import Part, SearchPart
from deploy_prune.training.loop import Session
from deploy_prune.types import Loss, SearchResult, Structure

OptionsT = TypeVar("OptionsT", bound=Part)


@dataclass(frozen=True, kw_only=True)
class SearchGoal:
    """The smallest budget of the run: ``limit`` is absolute, in the unit of ``cost``."""

    cost: CostModel
    limit: float


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchJob:
    """What a method is given: a network and its groups, the loss, endless batches, and the goal."""

    network: nn.Module
    structure: Structure
    loss: Loss
    batches: Iterator[Any]
    goal: SearchGoal
    config: SearchPart
    session: Session


class Method(Protocol):
    """Score every unit of every group. The network it is given stays untouched; the same seed gives the same scores.

    The scores only rank units, over all groups, whatever a device asks for them (but `SearchMethod.valued`). Priced at
    a target's cost by `values`, they are what `budget.choose` adds up when it maximises the kept score within a budget.
    """

    def __call__(self, job: SearchJob) -> SearchResult:
        """Search, and return scores [C] per group, the network's state dict at the end, and a trace."""


class NoOptions(Part):
    """The options of a method that has none."""


@dataclass(frozen=True, kw_only=True)
class SearchMethod:
    """One line of ``METHODS``: the method, its options, and what its scores are.

    ``valued``: they are values as they stand, in units of the loss or of outputs; all others only rank.
    ``in_steps``: it takes the search's steps (`loop.fit`), which several processes can take together.
    """

    score: Method
    options: type[Part] = NoOptions
    valued: bool = False
    in_steps: bool = False

    def __call__(self, job: SearchJob) -> SearchResult:
        """As `Method`."""
        return self.score(job)


def read_options(kind: type[OptionsT], config: SearchPart) -> OptionsT:
    """The method's options as frozen data.

    Raises:
        RecipeError: an option is unknown (the nearest known one is named) or has a bad value.
    """
    try:
        return kind.model_validate(config.options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = str(first["loc"][0])
        what = first["msg"] + f" (given {first['input']!r})"
        if first["type"] == "extra_forbidden":
            what = _unknown(option, tuple(kind.model_fields))
        message = f"search.options.{option} of the method {config.method}: {what}."
        raise RecipeError(message) from None


def _unknown(option: str, known: tuple[str, ...]) -> str:
    """What is wrong, with the nearest known option, or all of them."""
    everything = f"known are: {', '.join(known)}" if known else "there are none"
    hint = next((f"perhaps you meant {near!r}" for near in get_close_matches(option, known, n=1)), everything)
    return f"unknown option; {hint}"
