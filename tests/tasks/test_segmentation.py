import pytest
import torch
import torch.nn.functional as F

from deploy_prune.errors import DataError, ModelError
from deploy_prune.networks.libraries import import_torchvision
from deploy_prune.tasks.segmentation import SEGMENTATION, VOID

CLASSES = 5


def masks(seed, num=3, absent=()):
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(0, CLASSES, (num, 6, 8), generator=generator).repeat_interleave(4, 1).repeat_interleave(4, 2)
    for label in absent:
        found[found == label] = 0
    found[:, :3, :5] = VOID
    return found


def logits_of(masks, noise=0.0, seed=0):
    known = masks.where(masks != VOID, torch.zeros_like(masks))
    noises = torch.randn(len(masks), CLASSES, *masks.shape[1:], generator=torch.Generator().manual_seed(seed))
    return F.one_hot(known, CLASSES).movedim(-1, 1).float() + noise * noises


@pytest.mark.parametrize("seed", range(3))
def test_the_score_is_torchmetrics_own(seed):
    import_torchvision()
    from torchmetrics.functional.classification import multiclass_jaccard_index

    targets = masks(seed, 4)
    outputs = logits_of(targets, 0.7, seed)
    theirs = float(multiclass_jaccard_index(outputs, targets, CLASSES, ignore_index=VOID))
    assert 0.1 < theirs < 0.9
    batches = [(outputs[:1], targets[:1]), ((outputs[1:],), targets[1:])]
    assert SEGMENTATION.judge(batches) == pytest.approx(theirs, abs=1e-6)


def test_all_right_is_one_and_all_wrong_is_zero():
    targets = masks(0)
    assert SEGMENTATION.judge([(logits_of(targets), targets)]) == 1
    assert SEGMENTATION.judge([(-logits_of(targets), targets)]) == 0


def test_void_is_not_counted():
    targets, outputs = masks(0), logits_of(masks(0))
    outputs[:, :, :3, :5] = outputs[:, :, :3, :5].flip(1)
    assert SEGMENTATION.judge([(outputs, targets)]) == 1


def test_a_class_that_occurs_nowhere_is_not_counted_and_one_that_is_invented_is():
    targets = masks(0, absent=(3, 4))
    outputs = logits_of(targets)
    assert SEGMENTATION.judge([(outputs, targets)]) == 1
    outputs[0, 3, 10, 10] = 9.0
    assert SEGMENTATION.judge([(outputs, targets)]) == pytest.approx(3 / 4, abs=0.01)


def test_labels_off_by_one_and_sides_changed_are_seen():
    targets = masks(0)
    assert SEGMENTATION.judge([(logits_of(targets).roll(1, 1), targets)]) < 0.1
    turned = logits_of(masks(0).transpose(1, 2).contiguous()).reshape(3, CLASSES, 24, 32)
    assert SEGMENTATION.judge([(turned, targets)]) < 0.3


def test_smaller_outputs_are_resized():
    targets = torch.zeros(1, 8, 8, dtype=torch.int64)
    targets[:, :, 4:] = 2
    small = logits_of(targets)[:, :, ::4, ::4]
    assert small.shape == (1, CLASSES, 2, 2)
    assert SEGMENTATION.judge([(small, targets)]) == 1
    assert torch.equal(
        SEGMENTATION.loss(small, targets),
        SEGMENTATION.loss(F.interpolate(small, (8, 8), mode="bilinear", align_corners=False), targets),
    )


def test_the_loss_is_cross_entropy_over_known_pixels():
    targets = masks(1)
    outputs = logits_of(targets, 0.5)
    known = targets != VOID
    assert torch.allclose(
        SEGMENTATION.loss(outputs, targets), F.cross_entropy(outputs.movedim(1, -1)[known], targets[known])
    )


def test_a_picture_of_void_alone_has_a_finite_loss_and_gradient_and_no_score():
    targets = torch.full((2, 8, 8), VOID)
    outputs = torch.randn(2, CLASSES, 4, 4, requires_grad=True)
    loss = SEGMENTATION.loss(outputs, targets)
    loss.backward()
    assert loss == 0
    assert torch.equal(outputs.grad, torch.zeros_like(outputs))
    with pytest.raises(DataError, match="no pixel whose class is known"):
        SEGMENTATION.judge([(outputs, targets)])
    with pytest.raises(DataError, match="no pixel whose class is known"):
        SEGMENTATION.judge([])


def test_a_class_that_the_network_does_not_have_is_refused():
    targets = masks(0)
    targets[0, 20, 20] = CLASSES
    with pytest.raises(DataError, match=r"the class 5, but the network has classes 0 to 4"):
        SEGMENTATION.judge([(logits_of(masks(0)), targets)])


@pytest.mark.parametrize("outputs", [torch.zeros(2, 3), (torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))])
def test_outputs_that_are_no_map_are_refused(outputs):
    for call in (SEGMENTATION.loss, lambda o, t: SEGMENTATION.judge([(o, t)])):
        with pytest.raises(ModelError, match="one map of logits"):
            call(outputs, torch.zeros(1, 4, 4, dtype=torch.int64))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_distance_is_the_divergence_of_each_pixel(temperature):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, CLASSES, 3, 4, generator=generator) for _ in range(2))
    assert SEGMENTATION.distance(teacher, teacher, temperature) == 0
    flat = [F.log_softmax(x.movedim(1, -1).reshape(-1, CLASSES) / temperature, 1) for x in (student, teacher)]
    expected = temperature**2 * F.kl_div(*flat, reduction="batchmean", log_target=True)
    assert torch.allclose(SEGMENTATION.distance(student, teacher, temperature), expected)
