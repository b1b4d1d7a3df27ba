"""The families that are known, and the raw form of any network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor, nn

from deploy_prune.families import dense_detectors, grid, segmenters, transformers, two_stage, ultralytics
from deploy_prune.families.raw_form import Family, RawForm

FAMILIES: Final[tuple[Family, ...]] = (
    *grid.FAMILIES,
    *dense_detectors.FAMILIES,
    *two_stage.FAMILIES,
    *segmenters.FAMILIES,
    *transformers.FAMILIES,
    *ultralytics.FAMILIES,
)
"""The first that owns a network makes its raw form."""


def raw_form(network: nn.Module, inputs: Sequence[Tensor]) -> RawForm:
    """The raw form of a network, for inputs as it will be given, each [B, ...].

    A network that has a method ``raw_form(inputs)`` says itself what it is. Else its family does; one of no family is
    its own. The raw form shares the network's weights: its state dict may have other names.
    """
    own = getattr(network, "raw_form", None)
    if callable(own):
        said: RawForm = own(tuple(inputs))
        return said
    for family in FAMILIES:
        if family.owns(network):
            return family.raw(network, tuple(inputs))
    return RawForm(network=network)
