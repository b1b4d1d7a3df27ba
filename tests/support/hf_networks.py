"""Small networks of the transformers library, with random weights that tell inputs apart."""

from __future__ import annotations

from types import ModuleType

import pytest
from torch import nn

from deploy_prune.networks.libraries import import_torchvision


def transformers() -> ModuleType:
    import_torchvision()
    return pytest.importorskip("transformers", reason="transformers is not installed")


RESNET = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64], "embedding_size": 16, "layer_type": "basic"}
DECODER = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "num_labels": 3}
ENCODER = {"encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 64}


def detr(**others) -> nn.Module:
    body = transformers().ResNetConfig(**RESNET, out_features=["stage4"])
    config = transformers().DetrConfig(backbone_config=body, num_queries=10, **DECODER, **ENCODER, **others)
    return transformers().DetrForObjectDetection(config)


def rtdetr(**others) -> nn.Module:
    body = transformers().RTDetrResNetConfig(**RESNET, out_features=["stage2", "stage3", "stage4"])
    config = transformers().RTDetrConfig(
        backbone_config=body, encoder_in_channels=[32, 48, 64], encoder_hidden_dim=32, num_queries=12,
        decoder_in_channels=[32, 32, 32], initializer_range=0.2,
        freeze_backbone_batch_norms=False, **DECODER, **ENCODER, **others,
    )  # fmt: skip
    return transformers().RTDetrForObjectDetection(config)


def segformer(**others) -> nn.Module:
    config = transformers().SegformerConfig(
        num_labels=5, depths=[1, 1, 1, 1], hidden_sizes=[16, 16, 32, 32], decoder_hidden_size=32, **others
    )
    return transformers().SegformerForSemanticSegmentation(config)
