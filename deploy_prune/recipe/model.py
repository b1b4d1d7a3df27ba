"""The part of a recipe that names the network and its weights."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationInfo, field_validator

from deploy_prune.recipe.data import Part, known_source

BUILT_IN_NETWORKS: Final = (
    "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "conv2", "conv4", "conv6", "grid_detector", "unet",
)  # fmt: skip
LIBRARIES: Final = ("torchvision", "timm", "ultralytics")
"""Packages whose networks are built by name, as in timm:NAME; their code is not the user's."""
DEFAULT: Final = "default"
HUB: Final = "hf://"
WITH_DEFAULTS: Final = ("torchvision", "timm")
"""Libraries that publish weights."""
_ON_HUB: Final = r"hf://[\w.-]+/[\w.-]+/([\w.-]+/)*[\w.-]+\.safetensors(@[\w./-]+)?"


def is_published(weights: str | None) -> bool:
    """Whether weights are named, rather than a file of the user's own."""
    return weights is not None and (weights == DEFAULT or weights.startswith(HUB))


class ModelPart(Part):
    """Which network, and its weights."""

    source: str = Field(
        description="The network: torchvision:NAME, timm:NAME, ultralytics:NAME, one of the built-in "
        "resnet20/32/44/56/110, conv2/4/6, grid_detector and unet, or module:callable for a function of your own."
    )
    args: dict[str, Any] = Field(
        default={}, description="Keyword arguments of the function that builds it. num_classes comes from the data."
    )
    weights: str | None = Field(
        default=None,
        description="The trained weights: a .safetensors file, or a file that torch.save wrote; default for those that "
        "torchvision or timm publish for this network, or hf://OWNER/NAME/FILE.safetensors@REVISION for a file on the "
        "Hugging Face Hub, which are fetched. null: the network is trained on the source classes first, see train.",
    )
    weights_key: str | None = Field(
        default=None, description="The entry of the weights file to use, if several would fit, as in state_dict_ema."
    )
    head: Literal["keep", "new"] = Field(
        default="keep",
        description="keep: the weights file has the class layers too. new: the file is of other classes; its class "
        "layers are left out, and train trains new ones.",
    )
    score: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="The accuracy (0 to 1) that a classifier's weights are said to have on the source classes. You are "
        "warned if they score far less here.",
    )

    @field_validator("weights")
    @classmethod
    def _published(cls, value: str | None, info: ValidationInfo) -> str | None:
        library = str(info.data.get("source", "")).partition(":")[0]
        if value == DEFAULT and library not in WITH_DEFAULTS:
            message = f"only networks of {' and '.join(WITH_DEFAULTS)} have default weights; give a file, or "
            message += f"{HUB}OWNER/NAME/FILE.safetensors"
            raise ValueError(message)
        if value is not None and value.startswith(HUB) and not re.fullmatch(_ON_HUB, value):
            message = f"a file on the hub is written {HUB}OWNER/NAME/FILE.safetensors, with @REVISION for one of its "
            message += "commits; files of other kinds may hold programs"
            raise ValueError(message)
        return value

    @field_validator("weights_key", "head")
    @classmethod
    def _of_weights(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value not in {None, "keep"} and info.data.get("weights") is None:
            message = "it needs model.weights, which is not given; give it, or remove this key"
            raise ValueError(message)
        return value

    @field_validator("source")
    @classmethod
    def _known_source(cls, source: str) -> str:
        return known_source(source, BUILT_IN_NETWORKS, LIBRARIES, "network")
