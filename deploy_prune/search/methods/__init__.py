"""The search methods: a page each, and a line in the table."""

from __future__ import annotations

from typing import Final

from deploy_prune.cost import CostModel
from deploy_prune.errors import RecipeError
from deploy_prune.recipe.parts import PrunePart, SearchPart
from deploy_prune.search.frame import SearchMethod, read_options
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
from deploy_prune.search.methods.obs import ObsOptions, obs
from deploy_prune.search.threshold import threshold_values
from deploy_prune.types import Scores

METHODS: Final = {
    "dap": SearchMethod(score=dap, options=DapOptions, in_steps=True),
    "gate": SearchMethod(score=gate, options=GateOptions, in_steps=True),
    "gumbel": SearchMethod(score=gumbel, options=GumbelOptions, in_steps=True),
    "uniform": SearchMethod(score=uniform),
    "random": SearchMethod(score=random),
    "magnitude": SearchMethod(score=magnitude, options=MagnitudeOptions),
    "bn_scale": SearchMethod(score=bn_scale, options=BnScaleOptions),
    "taylor": SearchMethod(score=taylor, options=TaylorOptions, valued=True),
    "obs": SearchMethod(score=obs, options=ObsOptions, valued=True),
}
"""Every value of ``search.method``."""


def values(method: str, scores: Scores, cost: CostModel) -> Scores:
    """What a method's scores are worth at this cost, for `choose`: group -> float[C].

    One search serves every target and budget: its ranks are the same for all, and each is priced by its own cost.
    """
    return scores if METHODS[method].valued else threshold_values(scores, cost)


def check_options(config: SearchPart, prune: PrunePart | None = None) -> None:
    """Refuse an unknown option or a bad value, before anything runs.

    Raises:
        RecipeError: with the nearest known option; or branches are to go, and the method doesn't rank them.
    """
    read_options(METHODS[config.method].options, config)
    if prune is not None and prune.depth and not METHODS[config.method].in_steps:
        learned = ", ".join(name for name, method in METHODS.items() if method.in_steps)
        message = f"prune.depth: search.method {config.method} doesn't rank branches; those that do are {learned}."
        raise RecipeError(message)
