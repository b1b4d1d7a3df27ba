"""What the names in published tables of latencies mean: the network, and the size of its input.

ncnn's table is of benchncnn, whose source has the input sizes; its ResNet-50 is the first version (stride in the 1x1
convolution), here torchvision's, with 6% more arithmetic. Its detectors, ShuffleNet v1, ProxylessNAS and BlazeFace are
in neither torchvision nor timm, and left out; so is every name that isn't found here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deploy_prune import models
from deploy_prune.errors import ModelError
from deploy_prune.latency.ops import Op, list_ops
from deploy_prune.recipe import ModelPart
from deploy_prune.surgery.trace import trace
from deploy_prune.vision import import_timm, import_torchvision

NCNN: dict[str, tuple[str, int]] = {
    "mobilenet": ("timm:mobilenetv1_100", 224),
    "mobilenet_v2": ("torchvision:mobilenet_v2", 224),
    "mobilenet_v3": ("torchvision:mobilenet_v3_large", 224),
    "squeezenet": ("torchvision:squeezenet1_1", 227),
    "shufflenet_v2": ("torchvision:shufflenet_v2_x1_0", 224),
    "mnasnet": ("torchvision:mnasnet1_0", 224),
    "efficientnet_b0": ("torchvision:efficientnet_b0", 224),
    "efficientnetv2_b0": ("timm:tf_efficientnetv2_b0", 224),
    "regnety_400m": ("torchvision:regnet_y_400mf", 224),
    "googlenet": ("torchvision:googlenet", 224),
    "resnet18": ("torchvision:resnet18", 224),
    "resnet50": ("torchvision:resnet50", 224),
    "alexnet": ("torchvision:alexnet", 227),
    "vgg16": ("torchvision:vgg16", 224),
    "vision_transformer": ("timm:vit_base_patch16_384", 384),
}
OTHER: dict[str, tuple[str, int]] = {
    "resnet50-v1.5": ("torchvision:resnet50", 224),
    "mnasnet05": ("torchvision:mnasnet0_5", 224),
    "vit": ("torchvision:vit_b_16", 224),
    "swin_tiny": ("torchvision:swin_t", 224),
    "swin_small": ("torchvision:swin_s", 224),
    "swin_base": ("torchvision:swin_b", 224),
    "shufflenet_v2": ("torchvision:shufflenet_v2_x0_5", 224),
    "regnet": ("torchvision:regnet_y_800mf", 224),
    "resnext50": ("torchvision:resnext50_32x4d", 224),
    "resnext101": ("torchvision:resnext101_32x8d", 224),
    "wideresnet50": ("torchvision:wide_resnet50_2", 224),
    "inception_v3": ("torchvision:inception_v3", 224),
    "efficientnet_b4": ("torchvision:efficientnet_b4", 380),
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
            network = models.build(part, CLASSES).eval()
    except ModelError:
        return models.build(part, CLASSES).eval().to("meta")
    if not any(hasattr(module, "reparameterize") for module in network.modules()):
        return network
    from timm.utils.model import reparameterize_model

    merged: nn.Module = reparameterize_model(models.build(part, CLASSES).eval())  # type: ignore[no-untyped-call, unused-ignore]
    return merged.to("meta")
