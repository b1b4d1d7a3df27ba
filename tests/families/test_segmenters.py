"""The raw form of torchvision's segmenters gives what they call "out", and nothing else."""

from __future__ import annotations

import pytest
import torch
from detectors import with_statistics
from torchvision.models import get_model

from deploy_prune.families import raw_form

ARGS = {"weights": None, "weights_backbone": None, "num_classes": 5}


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("lraspp_mobilenet_v3_large", {}),
        ("deeplabv3_mobilenet_v3_large", {"aux_loss": True}),
    ],
)
def test_the_raw_form_is_out(name, args):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 96)
    segmenter = with_statistics(get_model(name, **ARGS, **args), images)
    raw = raw_form(segmenter, [images])
    assert raw.loss is None
    assert raw.decode is None
    with torch.no_grad():
        torch.testing.assert_close(raw.network.eval()(images), segmenter(images)["out"])
    assert raw.network.train()(images).shape == (2, 5, 64, 96)
    raw.network(images).sum().backward()
    assert all(p.grad is not None for p in raw.network.parameters())
    names = {name for name in segmenter.state_dict() if not name.startswith("aux_classifier.")}
    assert set(raw.network.state_dict()) == names
