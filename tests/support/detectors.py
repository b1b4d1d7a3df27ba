"""What torchvision's detectors need where torchvision's compiled operators don't load, and targets to train them by."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deploy_prune.networks.libraries import import_torchvision

import_torchvision()

from torchvision.ops import boxes as box_ops  # noqa: E402


def plain_nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Suppression as its definition has it, box by box; two boxes without an area don't overlap (NaN)."""
    overlaps = box_ops.box_iou(boxes, boxes)
    stay: list[int] = []
    for place in scores.argsort(descending=True, stable=True).tolist():
        if not any(overlaps[place, other] > threshold for other in stay):
            stay.append(place)
    return torch.tensor(stay, dtype=torch.int64)


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """The same for each label, the scores falling."""
    places = [torch.where(labels == label)[0] for label in labels.unique()]
    kept = [of_label[plain_nms(boxes[of_label], scores[of_label], threshold)] for of_label in places]
    chosen = torch.cat([torch.zeros(0, dtype=torch.int64), *kept])
    return chosen[scores[chosen].argsort(descending=True, stable=True)]


def targets(num: int, size: tuple[int, int], classes: int = 3, seed: int = 0) -> list[dict[str, Tensor]]:
    """One picture without a box, the others with two."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    found = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}]
    for _ in range(num - 1):
        corner = torch.rand(2, 2, generator=generator) * torch.tensor([width / 2, height / 2])
        side = torch.tensor([width, height]) * (0.15 + 0.3 * torch.rand(2, 2, generator=generator))
        labels = torch.randint(0, classes, (2,), generator=generator)
        found.append({"boxes": torch.cat([corner, corner + side], 1), "labels": labels})
    return found


@torch.no_grad()
def with_statistics(network: nn.Module, *inputs: Tensor) -> nn.Module:
    """The network in eval mode, its batch norms with the statistics of these inputs: random weights that tell much."""
    for module in network.train().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
    network(*inputs)
    return network.eval()
