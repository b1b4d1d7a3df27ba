"""Networks of every task as people use them, small: cut to half of their MACs by a learned search, proven, trained on
by their own loss, exported to ONNX, compared in ONNX Runtime, and their outputs decoded there.

Ultralytics' YOLOs are in test_ultralytics.py. Letters: B batch, H W height and width, T time, V words.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hf_networks
import numpy as np
import pytest
import task_networks
import torch
import torch.nn.functional as F
from _zoo_own import SuperResolution, UNet
from _zoo_sequences import M5, TextReader
from detectors import targets, with_statistics
from torch import Tensor, nn
from torchvision.models import detection, get_model, resnet18, vgg16
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.ssd import SSDFeatureExtractorVGG

import deploy_prune
from deploy_prune import device
from deploy_prune.families import RawForm, raw_form

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SIZE = (64, 96)
CLASSES = 3
EXAMPLES = 2
WIDTH = 32
FEW = {"rpn_post_nms_top_n_test": 12, "box_detections_per_img": 4}
OF_TRANSFORMERS = ("segformer", "detr", "rtdetr")


def pictures(num: int) -> tuple[Tensor, ...]:
    return (torch.randn(num, 3, *SIZE),)


def boxes(num: int) -> list[dict[str, Tensor]]:
    return targets(num, SIZE, CLASSES)


def pixels(num: int) -> Tensor:
    return torch.randint(0, CLASSES, (num, *SIZE))


def per_pixel(logits: Tensor, wanted: Tensor) -> Tensor:
    return F.cross_entropy(F.interpolate(logits, wanted.shape[-2:], mode="bilinear"), wanted, ignore_index=255)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, inputs and targets for so many examples, and a loss where the family has none."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]] = pictures
    targets: Callable[[int], Any] = boxes
    loss: Callable[[Any, Any], Tensor] | None = None
    parts: str | None = None
    min_channels: int = 8


def detector(name: str, **args: Any) -> Callable[[], nn.Module]:
    return lambda: get_model(name, weights=None, weights_backbone=None, num_classes=CLASSES + 1, **args)


def segmenter(name: str) -> Case:
    build = lambda: get_model(name, weights=None, weights_backbone=None, num_classes=CLASSES)  # noqa: E731
    return Case(build=build, targets=pixels, loss=per_pixel)


def pyramid() -> nn.Module:
    """ResNet-18 at a quarter of its width, and maps of WIDTH channels at five scales (arXiv 1612.03144)."""
    return BackboneWithFPN(
        narrowed(resnet18(weights=None)), {f"layer{i}": str(i - 1) for i in (1, 2, 3, 4)}, [16, 32, 64, 128], WIDTH
    )


def narrowed(network: nn.Module, by: int = 4) -> nn.Module:
    """The network with so many times fewer channels, but for its first input's."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Conv2d):
            into = layer.in_channels if layer.in_channels == 3 else layer.in_channels // by
            args = layer.kernel_size, layer.stride, layer.padding, layer.dilation
            made = nn.Conv2d(into, layer.out_channels // by, *args, bias=layer.bias is not None)
            nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.BatchNorm2d):
            made = nn.BatchNorm2d(layer.num_features // by)
        else:
            continue
        network.set_submodule(name, made)
    return network


def ssd() -> nn.Module:
    """SSD300 on VGG-16, both at a quarter of their width."""
    body = SSDFeatureExtractorVGG(vgg16(weights=None).features, highres=False)
    scale = torch.full((512 // 4,), 20.0)
    narrowed(body).scale_weight = nn.Parameter(scale)
    boxes = detection.anchor_utils.DefaultBoxGenerator(
        [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
        scales=[0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05],
        steps=[8, 16, 32, 64, 100, 300],
    )
    return detection.ssd.SSD(body, boxes, (300, 300), CLASSES + 1)


def keypoint_rcnn() -> nn.Module:
    return detection.KeypointRCNN(
        pyramid(),
        CLASSES + 1,
        keypoint_head=KeypointRCNNHeads(WIDTH, (WIDTH,) * 8),
        keypoint_predictor=KeypointRCNNPredictor(WIDTH, 5),
        **FEW,
    )


class Pose(nn.Module):
    """HRNet's maps of all scales at the finest one's size (arXiv 1904.04514), and a map for each of 17 joints."""

    def __init__(self) -> None:
        super().__init__()
        timm = pytest.importorskip("timm", reason="timm is not installed")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.body = timm.create_model(
                "hrnet_w18_small", features_only=True, pretrained=False, out_indices=(1, 2, 3, 4)
            )
        self.head = nn.Conv2d(sum(self.body.feature_info.channels()), 17, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.body(x)
        return self.head(torch.cat([F.interpolate(y, maps[0].shape[-2:], mode="bilinear") for y in maps], 1))


def read(logits: Tensor, text: Tensor) -> Tensor:
    lengths = torch.full((len(text),), logits.shape[1])
    return F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), text, lengths, torch.full((len(text),), text.shape[1]))


def flow_loss(flows: tuple[Tensor, Tensor], truth: Tensor) -> Tensor:
    half, full = flows
    return (full - truth).norm(dim=1).mean() + 0.5 * (half - truth / 2).norm(dim=1).mean()


CASES = {
    "ssdlite320": Case(build=detector("ssdlite320_mobilenet_v3_large")),
    "ssd300": Case(build=ssd, inputs=lambda n: (torch.randn(n, 3, 300, 300),)),
    "retinanet": Case(build=lambda: detection.RetinaNet(pyramid(), CLASSES + 1)),
    "fcos": Case(build=lambda: detection.FCOS(pyramid(), CLASSES + 1)),
    "faster_rcnn": Case(build=detector("fasterrcnn_mobilenet_v3_large_320_fpn", rpn_post_nms_top_n_test=20)),
    "mask_rcnn": Case(build=lambda: detection.MaskRCNN(pyramid(), CLASSES + 1, **FEW), parts="masks"),
    "keypoint_rcnn": Case(build=keypoint_rcnn, parts="keypoints"),
    "lraspp": segmenter("lraspp_mobilenet_v3_large"),
    "deeplabv3": segmenter("deeplabv3_mobilenet_v3_large"),
    "unet": Case(build=lambda: UNet(CLASSES), targets=pixels, loss=per_pixel),
    "segformer": Case(build=hf_networks.segformer, targets=pixels, loss=per_pixel),
    "detr": Case(build=hf_networks.detr),
    "rtdetr": Case(build=lambda: hf_networks.rtdetr(num_denoising=0)),
    "hrnet_pose": Case(
        build=Pose, inputs=lambda n: (torch.randn(n, 3, 64, 96),), targets=lambda n: torch.rand(n, 17, 16, 24),
        loss=F.mse_loss, min_channels=2,
    ),
    "crnn": Case(
        build=TextReader, inputs=lambda n: (torch.randn(n, 1, 32, 96),),
        targets=lambda n: torch.randint(1, 37, (n, 6)), loss=read,
    ),
    "m5_audio": Case(
        build=M5, inputs=lambda n: (torch.randn(n, 1, 8000),), targets=lambda n: torch.randint(0, 10, (n,)),
        loss=F.cross_entropy,
    ),
    "super_resolution": Case(
        build=SuperResolution, inputs=lambda n: (torch.randn(n, 3, 24, 32),),
        targets=lambda n: torch.randn(n, 3, 96, 128), loss=F.l1_loss,
    ),
    "flow": Case(
        build=task_networks.Flow, inputs=lambda n: (torch.randn(n, 1, 16, 16), torch.randn(n, 1, 16, 16)),
        targets=lambda n: torch.randn(n, 2, 1, 1), loss=flow_loss,
    ),
    "translation": Case(
        build=task_networks.Translator,
        inputs=lambda n: (torch.randint(1, 12, (n, 8)), torch.randint(1, 12, (n, 8))),
        targets=lambda n: torch.randint(1, 12, (n, 8)),
        loss=lambda logits, words: F.cross_entropy(logits.flatten(0, 1), words.flatten()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.transformers if name in OF_TRANSFORMERS else ()) for name in CASES
])  # fmt: skip
def test_cut_to_half_trained_exported_and_run(name, tmp_path):
    torch.manual_seed(0)
    case = CASES[name]
    inputs, wanted = case.inputs(EXAMPLES), case.targets(EXAMPLES)
    raw = raw_form(case.build(), inputs)
    with_statistics(raw.network, *inputs)
    loss = raw.loss or case.loss
    assert (raw.loss is None) == (case.loss is not None)
    form = RawForm(network=raw.network, loss=loss, decode=raw.decode)
    (found,) = deploy_prune.prune(
        form,
        inputs,
        batches=[(inputs, wanted)],
        budget="50% macs",
        steps=2,
        lr=1e-3,
        min_channels=case.min_channels,
    )
    assert found.macs <= 0.5 * found.dense_macs
    assert found.proof.difference <= found.proof.tolerance
    slim = found.network
    train(slim, inputs, wanted, loss)
    with_statistics(slim, *inputs)
    one = tuple(x[:1] for x in inputs)
    artifact = deploy_prune.export_network(slim, one, "onnx", path=tmp_path / "slim.onnx", calibration=inputs)
    assert artifact.unchecked is None
    if raw.decode is not None:
        made = device.run(artifact, inputs if len(inputs) > 1 else inputs[0], "onnxruntime")
        well_formed(raw.decode(made), case.parts, len(inputs[0]))


def train(slim: nn.Module, inputs: tuple[Tensor, ...], wanted: Any, loss: Callable[[Any, Any], Tensor]) -> None:
    """One step, whose gradients reach every weight."""
    before = [p.detach().clone() for p in slim.parameters()]
    optimizer = torch.optim.SGD(slim.train().parameters(), lr=1e-3)
    slim.zero_grad()
    value = loss(slim(*inputs), wanted)
    value.backward()
    assert torch.isfinite(value)
    missed = [n for n, p in slim.named_parameters() if p.requires_grad and p.grad is None]
    assert not missed
    assert all(torch.isfinite(p.grad).all() for p in slim.parameters() if p.grad is not None)
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, slim.parameters(), strict=True))


def well_formed(found: list[dict[str, np.ndarray]], parts: str | None, num: int) -> None:
    """Boxes with scores that fall, labels of the data's classes, and the parts that the network has."""
    assert len(found) == num
    for one in found:
        count = len(one["scores"])
        assert one["boxes"].shape == (count, 4)
        assert np.isfinite(one["boxes"]).all()
        assert ((one["labels"] >= 0) & (one["labels"] < CLASSES)).all()
        assert (np.diff(one["scores"]) <= 0).all()
        assert ((one["scores"] >= 0) & (one["scores"] <= 1)).all()
        if parts == "masks":
            assert one["masks"].shape == (count, *SIZE)
        if parts == "keypoints":
            assert one["keypoints"].shape == (count, 5, 3)
