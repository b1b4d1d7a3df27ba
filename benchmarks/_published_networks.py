"""What the names in published tables of latencies mean: the network, and the size of its input.

ncnn's table is of benchncnn, whose source has the input sizes, and benchmark/*.param in Tencent/ncnn the networks. Five
of them differ from torchvision's: its vision transformer has patches of 32 pixels (145 tokens), and four are changed
here to be what the files say. Its AlexNet is the first one, in two groups, here torchvision's, with 1% less arithmetic.
Its detectors, ShuffleNet v1, ProxylessNAS and BlazeFace are in neither torchvision nor timm, and left out; so is every
name that isn't found here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from deploy_prune.errors import ModelError
from deploy_prune.latency.ops import Op, list_ops
from deploy_prune.networks import build
from deploy_prune.networks.libraries import import_timm, import_torchvision
from deploy_prune.recipe.parts import ModelPart
from deploy_prune.surgery.trace import trace

NCNN: dict[str, tuple[str, int]] = {
    "mobilenet": ("timm:mobilenetv1_100", 224),
    "mobilenet_v2": ("ncnn:mobilenet_v2", 224),
    "mobilenet_v3": ("ncnn:mobilenet_v3", 224),
    "squeezenet": ("ncnn:squeezenet", 227),
    "shufflenet_v2": ("torchvision:shufflenet_v2_x1_0", 224),
    "mnasnet": ("torchvision:mnasnet1_0", 224),
    "efficientnet_b0": ("torchvision:efficientnet_b0", 224),
    "efficientnetv2_b0": ("timm:tf_efficientnetv2_b0", 224),
    "regnety_400m": ("torchvision:regnet_y_400mf", 224),
    "googlenet": ("torchvision:googlenet", 224),
    "resnet18": ("torchvision:resnet18", 224),
    "resnet50": ("ncnn:resnet50", 224),
    "alexnet": ("torchvision:alexnet", 227),
    "vgg16": ("torchvision:vgg16", 224),
    "vision_transformer": ("timm:vit_base_patch32_384", 384),
}
OTHER: dict[str, tuple[str, int]] = {
    "resnet50-v1.5": ("torchvision:resnet50", 224),
    "mnasnet05": ("torchvision:mnasnet0_5", 224),
    "vit": ("torchvision:vit_b_16", 224),
    "swin_tiny": ("torchvision:swin_t", 224),
    "swin_small": ("torchvision:swin_s", 224),
    "swin_base": ("torchvision:swin_b", 224),
    "shufflenet_v2": ("torchvision:shufflenet_v2_x0_5", 224),
    "regnet": ("torchvision:regnet_x_3_2gf", 224),
    "resnext50": ("torchvision:resnext50_32x4d", 224),
    "resnext101": ("torchvision:resnext101_32x8d", 224),
    "wideresnet50": ("torchvision:wide_resnet50_2", 224),
    "inception_v3": ("torchvision:inception_v3", 224),
    "efficientnet_b4": ("torchvision:efficientnet_b4", 224),
    "mobilenet_v2_1.4": ("torchvision:mobilenet_v2", 224),
    "mobilenet_v3_large_1.0": ("timm:tf_mobilenetv3_large_100", 224),
    "mobilenet_v3_large_0.75": ("timm:tf_mobilenetv3_large_075", 224),
    "mobilenet_v3_large_minimalistic": ("timm:tf_mobilenetv3_large_minimal_100", 224),
    "mobilenet_v3_small_1.0": ("timm:tf_mobilenetv3_small_100", 224),
    "mobilenet_v3_small_0.75": ("timm:tf_mobilenetv3_small_075", 224),
    "mobilenet_v3_small_minimalistic": ("timm:tf_mobilenetv3_small_minimal_100", 224),
}
ARGUMENTS: dict[str, dict[str, float]] = {"mobilenet_v2_1.4": {"width_mult": 1.4}}
SIZES = {"fastvit": 256}
CLASSES = 1000


def meaning(name: str, runtime: str) -> tuple[str, int] | None:
    """(model.source, input's side in pixels) of a published name; None if there is no such network here."""
    table = NCNN if runtime.startswith("ncnn") else OTHER
    if name in table:
        return table[name]
    if runtime.startswith("ncnn"):
        return None
    if name in import_torchvision().models.list_models():
        return f"torchvision:{name}", 224
    if import_timm().is_model(name):
        return f"timm:{name}", SIZES.get(name.partition("_")[0], 224)
    return None


def operators(source: str, size: int, name: str) -> tuple[Op, ...]:
    """The operators of a network as it is deployed: branches that only training has are merged."""
    x_BCHW: Tensor = torch.zeros(1, 3, size, size, device="meta")
    return list_ops(trace(_network(ModelPart(source=source, args=ARGUMENTS.get(name, {}))), [x_BCHW], 300))


def _network(part: ModelPart) -> nn.Module:
    """Without memory where the builder allows it (some compute with their tensors), and branches merge without it."""
    try:
        with torch.device("meta"):
            network = _build(part)
    except ModelError:
        return _build(part).to("meta")
    if not any(hasattr(module, "reparameterize") for module in network.modules()):
        return network
    from timm.utils.model import reparameterize_model

    merged: nn.Module = reparameterize_model(_build(part))  # type: ignore[no-untyped-call, unused-ignore]
    return merged.to("meta")


def _build(part: ModelPart) -> nn.Module:
    own = OWN.get(part.source)
    return (build.build_network(part, CLASSES) if own is None else own()).eval()


def _mobilenet_v2() -> nn.Module:
    """With a 1x1 convolution of 32 channels before the first depthwise one, too (ncnn: mobilenet_v2.param)."""
    network = import_torchvision().models.mobilenet_v2(num_classes=CLASSES)
    widen = nn.Sequential(nn.Conv2d(32, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())
    network.features[1].conv.insert(0, widen)
    return network


def _mobilenet_v3() -> nn.Module:
    """The large one, one layer of stride 2 a block later, where it has 672 channels (ncnn: mobilenet_v3.param)."""
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    block = partial(InvertedResidualConfig, dilation=1, width_mult=1.0)
    rows = [
        (16, 3, 16, 16, False, "RE", 1), (16, 3, 64, 24, False, "RE", 2), (24, 3, 72, 24, False, "RE", 1),
        (24, 5, 72, 40, True, "RE", 2), (40, 5, 120, 40, True, "RE", 1), (40, 5, 120, 40, True, "RE", 1),
        (40, 3, 240, 80, False, "HS", 2), (80, 3, 200, 80, False, "HS", 1), (80, 3, 184, 80, False, "HS", 1),
        (80, 3, 184, 80, False, "HS", 1), (80, 3, 480, 112, True, "HS", 1), (112, 3, 672, 112, True, "HS", 1),
        (112, 5, 672, 160, True, "HS", 1), (160, 5, 672, 160, True, "HS", 2), (160, 5, 960, 160, True, "HS", 1),
    ]  # fmt: skip
    return MobileNetV3([block(*row) for row in rows], last_channel=1280, num_classes=CLASSES)


def _resnet50() -> nn.Module:
    """The first version: a block's stride is in its 1x1 convolution (ncnn: resnet50.param)."""
    network = import_torchvision().models.resnet50(num_classes=CLASSES)
    for block in network.modules():
        if hasattr(block, "conv3"):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    return network


def _squeezenet() -> nn.Module:
    """Version 1.1, whose last 1x1 convolution is padded by a pixel (ncnn: squeezenet.param)."""
    network = import_torchvision().models.squeezenet1_1(num_classes=CLASSES)
    network.classifier[1].padding = (1, 1)
    return network


OWN: dict[str, Callable[[], nn.Module]] = {
    "ncnn:mobilenet_v2": _mobilenet_v2,
    "ncnn:mobilenet_v3": _mobilenet_v3,
    "ncnn:resnet50": _resnet50,
    "ncnn:squeezenet": _squeezenet,
}
"""The networks that are built here."""
