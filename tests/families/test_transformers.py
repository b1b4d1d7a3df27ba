"""The raw form of the transformers library's networks: their results as tensors, their own loss, their own boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectors import targets
from hf_networks import detr, rtdetr, segformer

from deploy_prune.families import raw_form
from deploy_prune.families.transformers import as_shares

pytestmark = pytest.mark.transformers
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
SIZE = (96, 128)
DETECTORS = pytest.mark.parametrize(("build", "outputs"), [(detr, 2), (rtdetr, 6)])


@DETECTORS
def test_the_loss_is_the_detectors_own(build, outputs):
    torch.manual_seed(0)
    model, images, wanted = build().eval(), torch.randn(3, 3, *SIZE), targets(3, SIZE)
    raw = raw_form(model, [images])
    made = raw.network(images)
    assert len(made) == outputs
    labels = [{"class_labels": t["labels"], "boxes": as_shares(t["boxes"], SIZE)} for t in wanted]
    found = raw.loss(made, wanted)
    assert found.item() == pytest.approx(model(images, labels=labels).loss.item(), rel=1e-5)
    found.backward()
    unused = {name for name, p in raw.network.named_parameters() if p.requires_grad and p.grad is None}
    assert not {name for name in unused if "denoising" not in name}


@DETECTORS
def test_the_loss_of_pictures_without_boxes_is_finite(build, outputs):
    torch.manual_seed(0)
    raw = raw_form(build(), [torch.randn(2, 3, *SIZE)])
    empty = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}] * 2
    loss = raw.loss(raw.network.train()(torch.randn(2, 3, *SIZE)), empty)
    loss.backward()
    assert torch.isfinite(loss)
    assert loss.requires_grad


@pytest.mark.parametrize(
    ("build", "processor"), [(detr, "DetrImageProcessor"), (rtdetr, "RTDetrImageProcessor")], ids=["softmax", "sigmoid"]
)
def test_boxes_are_the_detectors_own(build, processor):
    torch.manual_seed(0)
    model, images = build().eval(), torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        made = model(images)
        made.logits = made.logits + torch.randn(made.logits.shape)
        decode = raw_form(model, [images]).decode
    own = getattr(transformers, processor)().post_process_object_detection(made, 0.0, target_sizes=[SIZE] * 2)
    for ours, theirs in zip(decode((made.logits, made.pred_boxes)), own, strict=True):
        order = theirs["scores"].argsort(descending=True)
        assert len(order) == len(ours["scores"]) >= 10
        np.testing.assert_allclose(ours["boxes"], theirs["boxes"][order], atol=1e-3)
        np.testing.assert_allclose(ours["scores"], theirs["scores"][order], atol=1e-5)
        np.testing.assert_array_equal(ours["labels"], theirs["labels"][order])


def test_a_loss_that_would_judge_what_is_not_there_judges_the_results():
    torch.manual_seed(0)
    images, wanted = torch.randn(2, 3, *SIZE), targets(2, SIZE)
    model = detr(auxiliary_loss=True)
    raw = raw_form(model, [images])
    assert len(raw.network.eval()(images)) == 2
    assert torch.isfinite(raw.loss(raw.network(images), wanted))
    assert model.config.auxiliary_loss


def test_a_segmenters_raw_form_is_its_logits():
    model, images = segformer().eval(), torch.randn(2, 3, *SIZE)
    raw = raw_form(model, [images])
    assert torch.equal(raw.network(images), model(images).logits)
    assert (raw.loss, raw.decode) == (None, None)


def test_a_network_without_named_results_gives_its_first_tensor():
    config = transformers.SegformerConfig(depths=[1, 1, 1, 1], hidden_sizes=[16, 16, 32, 32])
    model, images = transformers.SegformerModel(config).eval(), torch.randn(2, 3, *SIZE)
    assert torch.equal(raw_form(model, [images]).network(images), model(images).last_hidden_state)


def test_boxes_as_shares():
    boxes = torch.tensor([[10.0, 20.0, 50.0, 60.0]])
    torch.testing.assert_close(as_shares(boxes, (100, 200)), torch.tensor([[0.15, 0.4, 0.2, 0.4]]))
