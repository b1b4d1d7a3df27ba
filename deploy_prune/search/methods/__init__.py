"""The search methods: a page each, and a line in the table."""

from __future__ import annotations

from typing import Final

from deploy_prune.cost import CostModel
from deploy_prune.recipe.parts import Part, SearchPart
from deploy_prune.search.frame import Method, NoOptions, read_options
from deploy_prune.search.methods.baselines import (
    BnScaleOptions,
    MagnitudeOptions,
    TaylorOptions,
    bn_scale,
    magnitude,
    random,
    taylor,
    uniform,
)
from deploy_prune.search.methods.dap import DapOptions, dap
from deploy_prune.search.methods.gate import GateOptions, gate
from deploy_prune.search.methods.gumbel import GumbelOptions, gumbel
from deploy_prune.search.threshold import threshold_values
from deploy_prune.types import Scores

METHODS: Final[dict[str, Method]] = {
    "dap": dap,
    "gate": gate,
    "gumbel": gumbel,
    "uniform": uniform,
    "random": random,
    "magnitude": magnitude,
    "bn_scale": bn_scale,
    "taylor": taylor,
}

OPTIONS: Final[dict[str, type[Part]]] = {
    "dap": DapOptions,
    "gate": GateOptions,
    "gumbel": GumbelOptions,
    "uniform": NoOptions,
    "random": NoOptions,
    "magnitude": MagnitudeOptions,
    "bn_scale": BnScaleOptions,
    "taylor": TaylorOptions,
}

VALUED: Final = frozenset({"taylor"})
"""Methods whose scores are values as they stand, in units of the loss; all others rank."""


def values(method: str, scores: Scores, cost: CostModel) -> Scores:
    """What a method's scores are worth at this cost, for `choose`: group -> float[C].

    One search serves every target and budget: its ranks are the same for all, and each is priced by its own cost.
    """
    return scores if method in VALUED else threshold_values(scores, cost)


def check_options(config: SearchPart) -> None:
    """Refuse an unknown option or a bad value, before anything runs.

    Raises:
        RecipeError: with the nearest known option.
    """
    read_options(OPTIONS[config.method], config)
