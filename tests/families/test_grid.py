"""The built-in grid detector: what it is trained to say is what its decoding reads, on the device too."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectors import batched_nms, targets

import deploy_prune
from deploy_prune.data.boxes import load_boxes
from deploy_prune.device import PAYLOAD
from deploy_prune.families import raw_form
from deploy_prune.families.grid import _boxes, _centres, loss
from deploy_prune.networks.grid_detector import STRIDE, GridDetector
from deploy_prune.recipe.data import BoxesPart
from deploy_prune.tasks.detection import DETECTION, detection

SIZE = (64, 96)
CLASSES = 3
BOXES = torch.tensor([[10.0, 12, 22, 26], [61, 33, 63, 35], [40, 0, 96, 64], [-6, 50, 9, 70]])
"""One of digits' size, one smaller than a place of the map, a large one, and one that leaves the picture."""
TARGET = {"boxes": BOXES, "labels": torch.tensor([0, 2, 1, 1])}
EMPTY = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def detector(seed=0, classes=CLASSES):
    torch.manual_seed(seed)
    network = GridDetector(classes)
    return network, raw_form(network, [torch.zeros(1, 3, *SIZE)])


def inside(boxes):
    """Cut off at the picture's edges."""
    return boxes.clamp(torch.zeros(4), torch.tensor([96.0, 64, 96, 64]))


def fitted(target, steps=120):
    """A map whose loss is nearly as low as it gets: what a very good detector would say."""
    grid = torch.zeros(1, 5 + CLASSES, SIZE[0] // STRIDE, SIZE[1] // STRIDE, requires_grad=True)
    optimizer = torch.optim.Adam([grid], lr=0.3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(grid, [target]).backward()
        optimizer.step()
    return grid.detach()


@pytest.fixture(scope="module")
def learned():
    return fitted(TARGET)


def test_what_the_loss_asks_for_is_what_decoding_reads(learned):
    _, raw = detector()
    found = raw.decode(learned)
    pairs = [(found, [TARGET | {"boxes": inside(BOXES)}])]
    assert DETECTION.judge(pairs) > 0.7
    assert detection("mAP50").judge(pairs) == pytest.approx(1)
    best = found[0]["scores"] > 0.5
    assert sorted(found[0]["labels"][best].tolist()) == [0, 1, 1, 2]
    assert raw.decode(fitted(EMPTY, 30))[0]["boxes"].shape == (0, 4)


def test_decoding_in_numpy_is_the_losses_own_in_torch():
    _, raw = detector()
    grid = torch.randn(2, 5 + CLASSES, 16, 24, generator=torch.Generator().manual_seed(0))
    for picture, found in zip(grid, raw.decode(grid), strict=True):
        codes = picture.flatten(1).T
        boxes = inside(_boxes(codes, _centres(grid)))
        scores = codes[:, :1].sigmoid() * codes[:, 5:].softmax(1)
        score, place = scores.flatten().sort(descending=True, stable=True)
        place = place[score > 0.02][:400]
        row, label = place // CLASSES, place % CLASSES
        stay = batched_nms(boxes[row], scores[row, label], label, 0.5)[:100]
        np.testing.assert_allclose(found["boxes"], boxes[row][stay], atol=1e-4)
        np.testing.assert_allclose(found["scores"], scores[row, label][stay], atol=1e-6)
        assert found["labels"].tolist() == label[stay].tolist()


def test_decoding_runs_on_a_device_with_numpy_alone(tmp_path):
    for name in ("boxes", "decode_grid"):
        (tmp_path / f"{name}.py").write_bytes((PAYLOAD / f"{name}.py").read_bytes())
    _, raw = detector()
    grid = torch.randn(2, 5 + CLASSES, 16, 24)
    np.save(tmp_path / "grid.npy", grid.numpy())
    (tmp_path / "settings.json").write_text(json.dumps(raw.decode.settings))
    code = """import json, numpy, sys; from runpy import run_path
found = run_path("decode_grid.py")["decode"]([numpy.load("grid.npy")], json.load(open("settings.json")))
assert not {"torch", "deploy_prune"} & set(sys.modules)
print(json.dumps([{key: value.tolist() for key, value in one.items()} for one in found]))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    for here, there in zip(raw.decode(grid), json.loads(done.stdout), strict=True):
        assert {key: value.tolist() for key, value in here.items()} == there


def test_a_picture_without_boxes_has_a_finite_loss_that_says_so():
    network, raw = detector()
    value = raw.loss(network(torch.rand(2, 3, *SIZE)), [EMPTY, EMPTY])
    value.backward()
    assert value > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert network.place.bias.grad[0] > 0
    assert not network.classes.bias.grad.any()


def test_each_term_of_the_loss_rises_with_its_own_fault(learned):
    grid, least = learned, loss(learned, [TARGET])
    assert least < 0.6
    assert loss(grid, [TARGET | {"labels": TARGET["labels"].roll(1)}]) > least + 1
    assert loss(grid, [TARGET | {"boxes": BOXES + 3}]) > least + 0.2
    assert loss(grid, [TARGET | {"boxes": BOXES[:, [1, 0, 3, 2]]}]) > least + 0.5
    assert loss(grid, [{key: x[:3] for key, x in TARGET.items()}]) > least + 0.2
    assert loss(grid.flip(3), [TARGET]) > least + 1


def test_a_teacher_counts_where_it_sees_something(learned):
    _, raw = detector()
    generator = torch.Generator().manual_seed(0)
    teacher = learned.clone()
    teacher[:, 5:] = torch.randn(teacher[:, 5:].shape, generator=generator)  # not sure of any class
    assert raw.distance(teacher, teacher, 2.0) == pytest.approx(0, abs=1e-6)
    teacher.requires_grad_()
    sure = learned[:, 0].sigmoid()
    for channels in (slice(1, 5), slice(5, None)):
        moved = []
        for where in (sure > 0.5, sure < 0.01):
            student = teacher.detach().clone()
            noise = torch.randn(student[:, channels].shape, generator=generator)
            student[:, channels] += 0.5 * where.unsqueeze(1) * noise
            student.requires_grad_()
            moved.append(raw.distance(student, teacher, 1.0))
            moved[-1].backward()
            assert student.grad.isfinite().all()
        assert moved[0] > 5 * moved[1] > 0  # though places without an object are 35 times as many
    invented = teacher.detach().clone()
    invented[:, 0] += 9 * (sure < 0.01)
    assert raw.distance(invented, teacher, 1.0) > 1
    assert teacher.grad is None


@pytest.mark.parametrize("size", [(64, 96), (60, 90), (33, 47)])
def test_the_map_is_the_same_in_both_modes_and_of_any_size(size):
    network, _ = detector()
    expected = (2, 5 + CLASSES, -(-size[0] // STRIDE), -(-size[1] // STRIDE))
    assert [m(torch.rand(2, 3, *size)).shape for m in (network.train(), network.eval())] == [expected] * 2


def test_the_slim_network_is_trained_by_the_same_loss_and_decoded_alike():
    network, raw = detector()
    inputs = torch.rand(4, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    wanted = targets(4, SIZE, CLASSES)
    (slim,) = deploy_prune.prune(
        raw.network, inputs, lambda forward, batch: raw.loss(forward(batch), wanted), [inputs], steps=2
    )
    assert slim.macs < 0.55 * slim.dense_macs
    assert {whole.name for whole in slim.structure.whole} == {"place", "classes"}
    value = raw.loss(slim.network.train()(inputs), wanted)
    value.backward()
    assert value.isfinite()
    assert len(raw.decode(slim.network.eval()(inputs))) == 4


@pytest.mark.slow
def test_it_learns_scenes_of_digits_in_seconds():
    """Of five digits, with 300 steps in 25 s of one core: mAP 0.55, and 0.95 at an overlap of 0.5."""
    data = load_boxes(BoxesPart(augment="none", source_classes=[0, 1, 4], target_classes=[0, 1, 4]), 0)
    network, raw = detector(classes=3)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=100)
    for _ in range(100):
        batch = data.source_train.take(torch.randint(len(data.source_train), (16,), generator=generator))
        optimizer.zero_grad()
        raw.loss(network(*batch.inputs), batch.targets).backward()
        optimizer.step()
        schedule.step()
    known = data.source_test.take(torch.arange(len(data.source_test)))
    with torch.no_grad():
        found = raw.decode(network.eval()(*known.inputs))
    assert detection("mAP50").judge([(found, known.targets)]) > 0.5
