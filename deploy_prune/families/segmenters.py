"""torchvision's segmenters: LRASPP, and DeepLabV3 and FCN, which are one class.

Their raw form gives what they call "out": image [B, 3, H, W] -> class logits [B, C, H, W]. The second head of FCN and
DeepLabV3 (``aux_loss``), which only helps to train them, is not a part of it: a search would have to pay for channels
that nothing reads once the network is used. The loss is the task's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import torch.nn.functional as F
from torch import Tensor, nn

from deploy_prune.families.raw_form import Family, Inputs, RawForm, is_a


class Out(nn.Module):
    """Backbone and head, with their names in the segmenter: image [B, 3, H, W] -> class logits [B, C, H, W].

    ``level``: of the backbone's maps, the one that the head reads; None: all of them.
    """

    def __init__(self, segmenter: Any, level: str | None) -> None:
        super().__init__()
        self.backbone, self.classifier, self.level = segmenter.backbone, segmenter.classifier, level

    def forward(self, image: Tensor) -> Tensor:
        """Class logits, at the image's size by bilinear interpolation."""
        maps: Mapping[str, Tensor] = self.backbone(image)
        logits: Tensor = self.classifier(maps if self.level is None else maps[self.level])
        return F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)


def _raw(segmenter: nn.Module, inputs: Inputs, level: str | None) -> RawForm:
    return RawForm(network=Out(segmenter, level))


_LEVELS: Final = {
    "torchvision.models.segmentation.lraspp.LRASPP": None,
    "torchvision.models.segmentation._utils._SimpleSegmentationModel": "out",
}
FAMILIES: Final = tuple(
    Family(owns=partial(is_a, name=name), raw=partial(_raw, level=level)) for name, level in _LEVELS.items()
)
