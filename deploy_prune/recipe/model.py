"""The part of a recipe that names the network and its weights."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationInfo, field_validator

from deploy_prune.recipe.data import Part, known_source

BUILT_IN_NETWORKS: Final = (
    "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "conv2", "conv4", "conv6", "grid_detector", "unet",
)  # fmt: skip
LIBRARIES: Final = ("torchvision", "timm", "ultralytics")
"""Packages whose networks are built by name, as in timm:NAME; their code is not the user's."""


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
        description="The trained weights: a .safetensors file, or a file that torch.save wrote. null: the network is "
        "trained on the source classes first, see train.",
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
