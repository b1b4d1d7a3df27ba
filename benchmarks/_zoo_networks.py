"""The zoo's networks by name, with random weights and an output that moves with the input.

Prefixes: tv torchvision.models, tvseg and tvdet its segmentation and detection networks, tvideo its video networks,
timm, hf transformers (tiny configurations), own the networks of _zoo_own.py, _zoo_sequences.py and _zoo_scenes.py.
Detection networks are the backbone and the dense heads: what comes after them (boxes, suppression) depends on the data,
and no channel passes it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final

import _zoo_own
import torch
from _zoo_scenes import SCENES
from _zoo_sequences import SEQUENCES, Inputs
from torch import Tensor, nn

from deploy_prune.networks import build
from deploy_prune.networks.libraries import import_timm, import_torchvision
from deploy_prune.recipe.parts import ModelPart

NUM_CLASSES: Final = 10

LISTED: Final = (
    "tv:resnet18 tv:resnet50 tv:resnext50_32x4d tv:regnet_y_400mf tv:shufflenet_v2_x1_0 tv:densenet121 "
    "tv:efficientnet_b0 tv:efficientnet_v2_s tv:squeezenet1_1 tv:mobilenet_v2 tv:mobilenet_v3_small tv:convnext_tiny "
    "tv:swin_t tv:swin_v2_t tv:alexnet tv:vgg11_bn tv:googlenet tv:inception_v3 tv:vit_b_16 tvseg:fcn_resnet50 "
    "tvseg:deeplabv3_mobilenet_v3_large tvseg:deeplabv3_resnet50 tvdet:ssd300_vgg16 "
    "tvdet:ssdlite320_mobilenet_v3_large "
    "tvdet:retinanet_resnet50_fpn tvdet:fasterrcnn_mobilenet_v3_large_320_fpn tv:maxvit_t tvdet:maskrcnn_resnet50_fpn "
    "timm:resnet18 timm:res2net50_26w_4s timm:skresnet18 timm:resnest14d timm:hrnet_w18_small timm:ghostnetv2_100 "
    "timm:mobilenetv3_small_100 timm:efficientnet_lite0 timm:fbnetc_100 timm:tinynet_e timm:mixnet_s timm:mobileone_s0 "
    "timm:repvgg_a0 timm:dla34 timm:cspresnet50 timm:cspdarknet53 timm:nf_regnet_b0 timm:xception41 timm:nf_resnet26 "
    "timm:selecsls42b timm:regnetz_b16 timm:repvit_m0_9 timm:poolformer_s12 timm:convnext_atto timm:convnextv2_atto "
    "timm:rexnet_100 timm:gcresnet33ts timm:inception_resnet_v2 timm:nasnetalarge timm:resnetv2_50 timm:densenet121 "
    "timm:bat_resnext26ts timm:gernet_s timm:vit_tiny_patch16_224 timm:deit_tiny_patch16_224 timm:cait_xxs24_224 "
    "timm:swinv2_cr_tiny_ns_224 timm:levit_128s timm:mobilevit_xxs timm:edgenext_xx_small timm:efficientformer_l1 "
    "timm:mobilevitv2_050 timm:fastvit_t8 timm:tiny_vit_5m_224 timm:efficientformerv2_s0 timm:pvt_v2_b0 "
    "timm:coat_lite_tiny timm:xcit_nano_12_p16_224 timm:pit_ti_224 timm:tnt_s_legacy_patch16_224 timm:botnet26t_256 "
    "timm:halonet26t timm:convmixer_768_32 timm:volo_d1_224 timm:beit_base_patch16_224 timm:sequencer2d_s "
    "timm:mvitv2_tiny hf:vit hf:dinov2 hf:segformer hf:convnext hf:mobilevit hf:bert hf:llama_gqa own:transformer "
    "own:lstm own:gru own:yolo_c2f own:unet own:style_transfer own:optical_flow own:resnet20_option_a "
    "own:super_resolution"
)

OTHERS: Final = " ".join(
    ["tvdet:fcos_resnet50_fpn tvdet:keypointrcnn_resnet50_fpn tvseg:lraspp_mobilenet_v3_large tvideo:r3d_18",
     "hf:gpt2 hf:distilbert hf:t5 hf:wav2vec2 hf:whisper hf:detr hf:rt_detr hf:segformer_masks",
     *(f"own:{name}" for name in (*SEQUENCES, *SCENES))]
)  # fmt: skip
"""Networks that classify no pictures: boxes, masks, poses, sound, speech, text, series, tables, volumes, points."""

SMALL: Final = {
    "tv": "resnet18 resnet50 resnext50_32x4d regnet_y_400mf shufflenet_v2_x1_0 densenet121 efficientnet_b0 "
    "efficientnet_v2_s squeezenet1_1 mobilenet_v2 mobilenet_v3_small convnext_tiny vgg11_bn googlenet",
    "tvseg": "fcn_resnet50 deeplabv3_mobilenet_v3_large deeplabv3_resnet50",
    "timm": "resnet18 res2net50_26w_4s skresnet18 resnest14d hrnet_w18_small mobilenetv3_small_100 efficientnet_lite0 "
    "fbnetc_100 tinynet_e mixnet_s mobileone_s0 repvgg_a0 dla34 cspresnet50 cspdarknet53 nf_regnet_b0 xception41 "
    "nf_resnet26 selecsls42b regnetz_b16 repvit_m0_9 poolformer_s12 convnext_atto convnextv2_atto rexnet_100 "
    "gcresnet33ts resnetv2_50 densenet121 gernet_s convmixer_768_32 ghostnetv2_100",
}
"""Networks that take 64 pixels as well as their own size, and are quicker so."""

SIZES: Final = {"tv:inception_v3": 299, "timm:inception_resnet_v2": 160, "timm:nasnetalarge": 128}
"""Other sizes than the default configuration's. Detection networks: see ``_detection_size``."""


def make(name: str, seed: int = 0) -> tuple[nn.Module, Inputs]:
    """A network by its name and a batch of its inputs; batch norm calibrated, nothing zero. In eval mode."""
    network, size = fresh(name, seed)
    inputs = _inputs(name, size)
    return lively(network, inputs), inputs


def _inputs(name: str, size: int) -> Inputs:
    """Images [B, 3, size, size], videos [B, 3, 8, size, size], for size 0 tokens int64[B, 12], or the network's own."""
    prefix, _, rest = name.partition(":")
    if prefix == "own" and rest in _OWN:
        return _OWN[rest][1](4)
    if prefix == "hf" and rest in SOUND:
        return (torch.randn(4, *SOUND[rest]),)
    size = SIZES.get(name, 64 if rest in SMALL.get(prefix, "").split() else size)
    if not size:
        return (torch.randint(0, 90, (4, 12)),)
    frames = (8,) if prefix == "tvideo" else ()
    return (torch.randn(4 if size < 128 else 2, 3, *frames, size, size),)


def fresh(name: str, seed: int) -> tuple[nn.Module, int]:
    """A network as its library makes it, with random weights, and its usual input size."""
    torch.manual_seed(seed)
    prefix, _, rest = name.partition(":")
    return _BUILDERS[prefix](rest)


def part_of(name: str) -> ModelPart:
    """What architecture.json says about where the network comes from."""
    prefix, _, rest = name.partition(":")
    return ModelPart(source=f"{ {'tv': 'torchvision'}.get(prefix, prefix) }:{rest}".replace(" ", ""))


def lively(network: nn.Module, inputs: Inputs) -> nn.Module:
    """Random affine parameters instead of zeros and tiny constants, and batch-norm statistics that are the data's."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        frozen = [(n, b) for n, b in network.named_buffers() if n.endswith((".weight", ".bias"))]  # of frozen norms
        for name, parameter in [*network.named_parameters(), *frozen]:
            if parameter.numel() and bool((parameter == parameter.flatten()[0]).all()) and parameter.abs().max() < 0.1:
                if parameter.dim() > 1:
                    parameter.normal_(0, max(parameter[0].numel(), 1) ** -0.5)
                elif name.endswith("bias"):
                    parameter.uniform_(-0.1, 0.1)
                else:
                    parameter.uniform_(0.2, 0.6)
        for module in norms:
            module.momentum = None
            if module.affine:
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
        network.train()(*inputs)
    return network.eval()


def _torchvision(name: str) -> tuple[nn.Module, int]:
    import_torchvision()
    extra = {"init_weights": True} if name in {"googlenet", "inception_v3"} else {}
    network = build.build_network(ModelPart(source=f"torchvision:{name}", args=extra), NUM_CLASSES)
    return (_First(network), 224) if name in {"googlenet", "inception_v3"} else (network, 224)


def _segmentation(name: str) -> tuple[nn.Module, int]:
    builders = importlib.import_module("torchvision.models.segmentation") if import_torchvision() else None
    network = getattr(builders, name)(weights=None, weights_backbone=None, num_classes=NUM_CLASSES)
    return _First(network), 224


def _detection(name: str) -> tuple[nn.Module, int]:
    builders = importlib.import_module("torchvision.models.detection") if import_torchvision() else None
    network = getattr(builders, name)(weights=None, weights_backbone=None, num_classes=NUM_CLASSES)
    return _Dense(network), _detection_size(name)


def _detection_size(name: str) -> int:
    return next((size for sign, size in (("ssdlite320", 320), ("ssd300", 300)) if sign in name), 160)


def _timm(name: str) -> tuple[nn.Module, int]:
    network = import_timm().create_model(name, pretrained=False, num_classes=NUM_CLASSES)
    return network, network.default_cfg["input_size"][-1]


def _video(name: str) -> tuple[nn.Module, int]:
    builders = importlib.import_module("torchvision.models.video") if import_torchvision() else None
    network: nn.Module = getattr(builders, name)(weights=None, num_classes=NUM_CLASSES)
    return network, 64


def _own(name: str) -> tuple[nn.Module, int]:
    if name in _OWN:
        return _OWN[name][0](), 0
    return _zoo_own.OWN[name](NUM_CLASSES), 0 if name in _zoo_own.TEXT else 64


_OWN: Final = {**SEQUENCES, **SCENES}

_SIZES: Final = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXT: Final = {**_SIZES, "vocab_size": 100, "intermediate_size": 64}
_VISION: Final = {**_SIZES, "image_size": 32, "patch_size": 8, "intermediate_size": 64}
_T5: Final = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
_STAGES: Final = {"hidden_sizes": [16, 32, 48, 64], "depths": [1] * 4}
_SWIN: Final = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
                "window_size": 4}  # fmt: skip
_WAVES: Final = {**_SIZES, "intermediate_size": 64, "conv_dim": [32] * 3, "conv_stride": [5, 4, 2],
                 "conv_kernel": [10, 8, 4], "num_feat_extract_layers": 3, "vocab_size": 32, "mask_time_prob": 0.0,
                 "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "layerdrop": 0.0}  # fmt: skip
_SPEECH: Final = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
                  "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 100,
                  "num_mel_bins": 16, "max_source_positions": 40, "max_target_positions": 20, "use_cache": False,
                  "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}  # fmt: skip
_BOXES: Final = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
                 "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_queries": 10,
                 "use_timm_backbone": True, "use_pretrained_backbone": False, "backbone": "resnet18",
                 "image_size": 96, "init_std": 0.2}  # fmt: skip
_REALTIME: Final = {"d_model": 64, "encoder_hidden_dim": 64, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
                    "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
                    "num_queries": 20, "num_denoising": 0, "decoder_in_channels": [64] * 3,
                    "image_size": 96}  # fmt: skip
SOUND: Final = {"wav2vec2": (1200,), "whisper": (16, 80)}
"""Shapes of an example of networks of transformers that hear: a wave [T] or a spectrum [F, T]."""
CONFIGS: Final[dict[str, tuple[str, str, dict[str, Any]]]] = {
    "vit": ("ViT", "ForImageClassification", _VISION),
    "dinov2": ("Dinov2", "ForImageClassification", {**_SIZES, "image_size": 32, "patch_size": 8}),
    "segformer": ("Segformer", "ForImageClassification", _STAGES),
    "convnext": ("ConvNext", "ForImageClassification", _STAGES),
    "mobilevit": ("MobileViT", "ForImageClassification", {"image_size": 64}),
    "deit": ("DeiT", "ForImageClassification", _VISION),
    "beit": ("Beit", "ForImageClassification", {**_VISION, "use_relative_position_bias": True}),
    "swin": ("Swin", "ForImageClassification", _SWIN),
    "bert": ("Bert", "ForSequenceClassification", _TEXT),
    "roberta": ("Roberta", "ForSequenceClassification", _TEXT),
    "mobilebert": ("MobileBert", "ForSequenceClassification",
                   {**_TEXT, "embedding_size": 16, "intra_bottleneck_size": 16}),
    "distilbert": ("DistilBert", "ForSequenceClassification",
                   {"vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}),
    "llama_gqa": ("Llama", "ForCausalLM", {**_TEXT, "num_key_value_heads": 2, "use_cache": False}),
    "gpt2": ("GPT2", "LMHeadModel", {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "use_cache": False}),
    "mixtral": ("Mixtral", "ForCausalLM", {**_TEXT, "num_key_value_heads": 2, "num_local_experts": 4,
                                           "use_cache": False}),
    "t5": ("T5", "ForConditionalGeneration", {**_T5, "use_cache": False}),
    "clip_vision": ("CLIPVision", "ModelWithProjection", _VISION),
    "segformer_masks": ("Segformer", "ForSemanticSegmentation", {**_STAGES, "decoder_hidden_size": 32}),
    "wav2vec2": ("Wav2Vec2", "ForCTC", _WAVES),
    "whisper": ("Whisper", "ForConditionalGeneration", _SPEECH),
    "detr": ("Detr", "ForObjectDetection", _BOXES),
    "rt_detr": ("RTDetr", "ForObjectDetection", _REALTIME),
}  # fmt: skip
"""Name -> the configuration's and the network's class (stem, ending) and sizes."""


def _transformers(name: str) -> tuple[nn.Module, int]:
    import_torchvision()
    library = importlib.import_module("transformers")
    stem, ending, values = CONFIGS[name]
    config = getattr(library, f"{stem}Config")(**values, **({"num_labels": NUM_CLASSES} if "For" in ending else {}))
    network = getattr(library, stem + ending)(config)
    if name in SOUND:
        return (_Heard if stem == "Whisper" else _Logits)(network), 0
    if stem in {"Detr", "RTDetr"}:
        return _Boxes(network), values["image_size"]
    if "vocab_size" in values:
        return (_Translated if stem == "T5" else _Logits)(network), 0
    return _Logits(network), values.get("image_size", 64)


_BUILDERS: Final[dict[str, Callable[[str], tuple[nn.Module, int]]]] = {
    "tv": _torchvision, "tvseg": _segmentation, "tvdet": _detection, "timm": _timm, "hf": _transformers,
    "tvideo": _video, "own": _own,
}  # fmt: skip


class _First(nn.Module):
    """A network whose training outputs are several: all of them in training, the first outside."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        made = self.network(x)
        values = list(made.values()) if isinstance(made, dict) else made
        return values if isinstance(values, Tensor) else values[0] if not self.training else tuple(values)


class _Dense(nn.Module):
    """A detection network's backbone and its dense heads."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.backbone = network.backbone
        self.head = network.rpn.head if hasattr(network, "rpn") else network.head

    def forward(self, x: Tensor) -> Any:
        features = list(self.backbone(x).values())
        made = self.head(features)
        return tuple(made.values()) if isinstance(made, dict) else tuple(t for part in made for t in part)


class _Logits(nn.Module):
    """A network of transformers: images [B, 3, H, W] or tokens int64[B, T] in, logits (or its first output) out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        made = self.network(x)
        return made.logits if hasattr(made, "logits") else made[0]


class _Boxes(_Logits):
    """A detector of transformers: logits [B, Q, C] and boxes [B, Q, 4] out."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        made = self.network(x)
        return made.logits, made.pred_boxes


class _Heard(_Logits):
    """Speech to text: a spectrum in, logits for a start of fixed tokens out."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x, decoder_input_ids=torch.ones(len(x), 3, dtype=torch.int64)).logits


class _Translated(_Logits):
    """An encoder-decoder: it is given its source as the target, too."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(input_ids=x, decoder_input_ids=x.roll(1, 1)).logits
