"""torchvision's two-stage detectors: Faster R-CNN, Mask R-CNN, Keypoint R-CNN.

Their raw form is one graph from the image to what every proposal says: the proposals are chosen in it, the suppression
of boxes stays outside. Between the two stages torchvision also suppresses proposals that overlap; how many are left
depends on the picture, and no graph of fixed shapes has that. Here the best ``rpn_post_nms_top_n_test`` (an argument of
the builders) go on as they are, ordered by their place, so that runtimes agree on the order; those that overlap are
suppressed at the end, with the boxes. The alternative, proposals as a second input, would need the backbone twice for
each picture: its measured time would not be what a user waits for.

Masks and keypoints are made for the ``box_detections_per_img`` proposals with the highest scores, in the box of the
best class, as torchvision does it; one proposal gives one box there. (Their logits are given again, not their numbers:
of two equal proposals, as edges make them, runtimes take either.)

Both stages are trained by their own losses. The second samples from the proposals of the graph; torchvision adds the
true boxes to them, which a network that sees only the image can't. So a detector whose proposals don't meet any object
yet learns its first stage first.

B batch, A anchors, K proposals, M of them with masks or keypoints, C classes, H W height and width of the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune.families.anchors import Grid, box_code, grid_of
from deploy_prune.families.raw_form import Decode, Family, Inputs, RawForm, is_a
from deploy_prune.families.regions import Pooling, best_places, boxes_of, chosen, pooling_of
from deploy_prune.families.two_stage_loss import TwoStageLoss


class TwoStages(nn.Module):
    """From an image to what its proposals say.

    Image [B, 3, H, W] -> objectness [B, A], its box codes [B, A, 4], proposals [B, K, 4], their class logits
    [B, K, 1 + C] and box codes [B, K, 1 + C, 4]; then, where there are any, of the M that go on class logits
    [B, M, 1 + C], boxes [B, M, 4] and masks [B, M, 1 + C, S, S] or keypoints' maps [B, M, P, S, S].
    """

    anchors: Tensor

    def __init__(self, detector: Any, grid: Grid) -> None:
        super().__init__()
        heads = detector.roi_heads
        self.backbone, self.rpn = detector.backbone, detector.rpn.head
        self.box_head, self.box_predictor = heads.box_head, heads.box_predictor
        self.register_buffer("anchors", grid.anchors.to(next(detector.parameters()).device), persistent=False)
        self.proposal_coder, self.box_coder = detector.rpn.box_coder, heads.box_coder
        self.size, self.num_proposals = grid.size, detector.rpn._post_nms_top_n["testing"]
        self.num_parts = heads.detections_per_img
        self.box_pooling = pooling_of(heads.box_roi_pool, grid.sizes, grid.names, grid.size)
        kind = next((k for k in ("mask", "keypoint") if getattr(heads, f"has_{k}")()), None)
        self.part_pooling: Pooling | None = None
        if kind is not None:
            self.part_head, self.part_predictor = getattr(heads, f"{kind}_head"), getattr(heads, f"{kind}_predictor")
            self.part_pooling = pooling_of(getattr(heads, f"{kind}_roi_pool"), grid.sizes, grid.names, grid.size)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """As the class says."""
        features = self.backbone(image)
        features = {"0": features} if isinstance(features, Tensor) else features
        objectness, codes = self._first_stage(list(features.values()))
        best = best_places(objectness, self.num_proposals)
        anchors = self.anchors[best]
        proposals = boxes_of(chosen(codes.detach(), best), anchors, self.proposal_coder, self.size)
        logits, boxes = self.box_predictor(self.box_head(self.box_pooling(features, proposals)))
        logits = logits.unflatten(0, proposals.shape[:2])
        boxes = boxes.unflatten(0, proposals.shape[:2]).unflatten(2, (-1, 4))
        made = (objectness, codes, proposals, logits, boxes)
        return made if self.part_pooling is None else made + self._parts(features, proposals, logits, boxes)

    def _first_stage(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Of all levels, row after row, as the anchors are ordered."""
        objectness, codes = self.rpn(maps)
        flat = [x.permute(0, 2, 3, 1).flatten(1) for x in objectness]
        return torch.cat(flat, 1), torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in codes], 1).unflatten(1, (-1, 4))

    def _parts(
        self, features: Mapping[str, Tensor], proposals: Tensor, logits: Tensor, codes: Tensor
    ) -> tuple[Tensor, ...]:
        assert self.part_pooling is not None
        scores, labels = logits.detach().softmax(-1)[..., 1:].max(-1)
        rows = best_places(scores, self.num_parts)
        of_class = chosen(labels, rows) + 1
        of_rows = chosen(codes.detach(), rows)
        code = of_rows.gather(2, of_class[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)
        boxes = boxes_of(code, chosen(proposals, rows), self.box_coder, self.size)
        parts = self.part_predictor(self.part_head(self.part_pooling(dict(features), boxes)))
        return chosen(logits, rows), boxes, parts.unflatten(0, rows.shape)


def _raw(detector: Any, inputs: Inputs) -> RawForm:
    grid, heads = grid_of(detector, detector.backbone, detector.rpn.anchor_generator, inputs[0]), detector.roi_heads
    settings = {
        "size": list(grid.size), **box_code(heads), "least_score": heads.score_thresh,
        "overlap": heads.nms_thresh, "most_boxes": heads.detections_per_img,
        "parts": "masks" if heads.has_mask() else "keypoints" if heads.has_keypoint() else None,
    }  # fmt: skip
    return RawForm(
        network=TwoStages(detector, grid),
        loss=TwoStageLoss(rpn=detector.rpn, heads=heads, grid=grid),
        decode=Decode(program="decode_rcnn", settings=settings),
    )


FAMILIES: Final = (
    Family(owns=partial(is_a, name="torchvision.models.detection.generalized_rcnn.GeneralizedRCNN"), raw=_raw),
)
