from typing import get_args

import numpy as np
import pytest
import torch

from deploy_prune.data import transforms as augment_module
from deploy_prune.data.transforms import AUGMENTS, augmented, mixed
from deploy_prune.networks.libraries import import_torchvision
from deploy_prune.recipe.parts import Augment


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(num=6, channels=3, side=12):
    return torch.rand(num, channels, side, side, generator=seeded(9))


def ramps(num, side=64):
    """Each pixel holds its own place: [:, 0] from left to right, [:, 1] from top to bottom."""
    place = (torch.arange(side) + 0.5) / side
    return torch.stack([place.expand(side, side), place[:, None].expand(side, side)]).expand(num, -1, -1, -1)


# --- every kind ---


def test_every_augment_of_the_recipe_is_there():
    assert set(AUGMENTS) == set(get_args(Augment))


@pytest.mark.parametrize("kind", AUGMENTS)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_stay_images_and_the_given_ones_as_they_were(kind, channels):
    x = noise(channels=channels)
    before = x.clone()
    varied = augmented(x, kind, seeded())
    assert (varied.shape, varied.dtype) == (x.shape, torch.float32)
    assert -1e-6 <= varied.min() < varied.max() <= 1 + 1e-6
    assert torch.equal(x, before)


@pytest.mark.parametrize("kind", sorted({*AUGMENTS} - {"none"}))
def test_all_that_is_random_comes_from_the_generator(kind):
    x, state = noise(), torch.get_rng_state()
    first, again, other = (augmented(x, kind, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", sorted({*AUGMENTS} - {"none"}))
def test_each_image_is_varied_on_its_own(kind):
    same = noise(1).expand(20, -1, -1, -1)
    assert len(torch.unique(augmented(same, kind, seeded()), dim=0)) > 5  # of 9 places, where images are only moved


# --- shift and affine ---


def test_shift_moves_each_image_on_black_by_an_eighth_at_most():
    images = torch.zeros(40, 1, 16, 16)
    images[:, :, 8, 8] = 1
    x = augmented(images, "shift", seeded())
    where = (x == 1).nonzero()[:, 2:]
    assert len(where) == 40
    assert (where - 8).abs().max() == 2
    assert len({tuple(place) for place in where.tolist()}) > 10
    assert ((x == 1) | (x == 0)).all()  # what comes in is black, not grey


def test_shift_flip_also_mirrors_about_half():
    images = torch.zeros(200, 1, 16, 16)
    images[:, :, :, 12:] = 1
    x = augmented(images, "shift_flip", seeded())
    mirrored = (x[:, 0, :, :8].sum((1, 2)) > x[:, 0, :, 8:].sum((1, 2))).sum()
    assert 60 < mirrored < 140


def test_affine_distorts_each_image_on_its_own_and_keeps_its_place_on_average():
    images = torch.zeros(200, 1, 32, 32)
    images[:, :, 12:20, 12:20] = 1
    x = augmented(images, "affine", seeded())
    place = torch.arange(32) + 0.5
    mass = x.sum((1, 2, 3))
    centre = torch.stack([(x[:, 0].sum(2) * place).sum(1) / mass, (x[:, 0].sum(1) * place).sum(1) / mass])
    assert (centre.mean(1) - 16).abs().max() < 0.5
    assert 1 < (centre - 16).abs().max() < 5
    assert 0.55 < (mass / 64).min() < (mass / 64).max() < 1.7  # 1 / 1.2^2 to 1 / 0.8^2


def test_affine_without_distortion_is_the_image(monkeypatch):
    for name in ("MAX_TURN", "MAX_SCALE", "MAX_SLANT", "MAX_MOVE"):
        monkeypatch.setattr(augment_module, name, 0.0)
    assert torch.allclose(augmented(noise(), "affine", seeded()), noise(), atol=1e-5)


# --- crops ---


def test_crops_keep_most_of_each_image_and_about_its_aspect():
    x = augmented(ramps(400), "crop_flip", seeded())
    across, down = x[:, 0, 0], x[:, 1, :, 0]
    wide, high = ((line[:, -2] - line[:, 1]) * 64 / 61 for line in (across, down))  # shares of the image's sides
    area, aspect = wide.abs() * high, wide.abs() / high
    assert 0.57 < area.min() < 0.64
    assert 0.96 < area.max() < 1.01
    assert area.mean() == pytest.approx(0.8, abs=0.02)
    assert 0.73 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 1.37
    assert aspect.log().mean().abs() < 0.02
    assert (high > 0).all()
    assert 150 < (wide < 0).sum() < 250  # mirrored


def test_crops_lie_anywhere_within_the_image():
    x = augmented(ramps(400), "crop_flip", seeded())
    for middle in (x[:, 0].mean((1, 2)), x[:, 1].mean((1, 2))):
        assert middle.mean() == pytest.approx(0.5, abs=0.01)
        assert 0.35 < middle.min() < 0.45
        assert 0.55 < middle.max() < 0.65
    assert augmented(torch.ones(50, 1, 8, 8), "crop_flip", seeded()).min() > 1 - 1e-6  # nothing black comes in


def test_the_whole_image_is_itself_or_its_mirror_image(monkeypatch):
    monkeypatch.setattr(augment_module, "MIN_AREA", 1.0)
    x = noise(20)
    varied = augmented(x, "crop_flip", seeded())
    as_it_was, mirrored = ((varied - y).abs().amax((1, 2, 3)) < 1e-5 for y in (x, x.flip(-1)))
    assert (as_it_was ^ mirrored).all()
    assert as_it_was.any()
    assert mirrored.any()


# --- colours ---


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_are_jittered_as_torchvision_does(channels):
    import_torchvision()
    from torchvision.transforms.v2 import functional

    adjust = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    x, generator = noise(30, channels), seeded()
    expected = augmented(x, "crop_flip", generator)
    factors = 0.6 + 0.8 * torch.rand(3, 30, generator=generator)
    orders = torch.rand(3, 30, generator=generator).argsort(0)
    assert len(torch.unique(orders, dim=1).T) == 6
    for i in range(30):
        for kind in orders[:, i].tolist():
            expected[i] = adjust[kind](expected[i], factors[kind, i].item())
    # torchvision's weights of red, green and blue have four digits
    assert torch.allclose(augmented(x, "crop_flip_colour", seeded()), expected, atol=1e-3)


def test_saturation_leaves_grey_as_it_is(monkeypatch):
    monkeypatch.setattr(augment_module, "MIN_AREA", 1.0)
    grey = noise(20, 1)
    one, three = (augmented(x, "crop_flip_colour", seeded()) for x in (grey, grey.expand(-1, 3, -1, -1)))
    assert torch.allclose(one.expand(-1, 3, -1, -1), three, atol=1e-5)


# --- mixed examples ---

MIXES = ("mixup", "cutmix")


def numbered(num=8, side=10):
    """Image i has the value 2^i everywhere, and class i."""
    values = 2.0 ** torch.arange(num)
    return values.view(-1, 1, 1, 1).expand(-1, 3, side, side).clone(), torch.arange(num)


def partner(soft, own):
    """The other class of a row of soft labels, and the share of its own."""
    share = soft[own].item()
    others = [c for c in soft.nonzero().flatten().tolist() if c != own]
    return (others[0] if others else own), share


@pytest.mark.parametrize("kind", MIXES)
def test_soft_labels_are_shares(kind):
    x, labels = noise(16), torch.arange(16) % 5
    for seed in range(30):
        mixture, soft = mixed(x, labels, 7, kind, seeded(seed))
        assert (mixture.shape, soft.shape, soft.dtype) == (x.shape, (16, 7), torch.float32)
        assert torch.allclose(soft.sum(1), torch.ones(16))
        assert soft.min() >= 0
        assert not soft[:, 5:].any()  # classes of no example


@pytest.mark.parametrize("kind", MIXES)
def test_mixing_is_repeatable_and_leaves_the_batch_and_other_generators_alone(kind):
    x, labels = noise(16), torch.arange(16)
    before, state, numpy_state = x.clone(), torch.get_rng_state(), np.random.get_state()[1].tolist()
    first, again, other = (mixed(x, labels, 16, kind, seeded(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == numpy_state
    generator = seeded(1)
    mixed(x, labels, 16, kind, generator)
    assert not torch.equal(mixed(x, labels, 16, kind, generator)[1], first[1])  # the next batch is mixed otherwise


def test_mixup_mixes_pixels_as_labels():
    x, labels = numbered()
    for seed in range(10):
        mixture, soft = mixed(x, labels, 8, "mixup", seeded(seed))
        assert torch.allclose(mixture, (soft @ x[:, 0, 0, 0]).view(-1, 1, 1, 1).expand_as(x), rtol=1e-5)


def test_cutmix_takes_each_pixel_from_one_of_two_and_labels_by_area():
    x, labels = numbered()
    for seed in range(30):
        mixture, soft = mixed(x, labels, 8, "cutmix", seeded(seed))
        boxes = []
        for i in range(8):
            other, share = partner(soft[i], i)
            from_self = mixture[i] == x[i]
            assert (from_self | (mixture[i] == x[other])).all()
            if other != i:
                assert from_self.float().mean().item() == pytest.approx(share, abs=1e-6)
                boxes.append(~from_self)
        if not boxes or not boxes[0].any():
            continue
        assert all(torch.equal(box, boxes[0]) for box in boxes)  # of one batch
        _, rows, columns = (found.unique() for found in boxes[0].nonzero(as_tuple=True))
        assert boxes[0].sum() == 3 * len(rows) * len(columns)  # one whole box, in every channel
        for line in (rows, columns):
            assert line.tolist() == list(range(line[0], line[-1] + 1))


def shares(kind, num=600):
    x, labels = numbered(side=32)
    softs = (mixed(x, labels, 8, kind, seeded(seed))[1] for seed in range(num))
    return torch.tensor([min(soft[i, i].item() for i in range(8)) for soft in softs])


def test_mixups_shares_are_mostly_near_0_or_1_and_cutmixs_keep_more_of_the_first():
    found = shares("mixup")
    assert found.mean() == pytest.approx(0.5, abs=0.06)
    assert found.var() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.02)  # of Beta(0.2, 0.2)
    cut = shares("cutmix")
    assert cut.mean() == pytest.approx(0.679, abs=0.03)  # of a box of side s, s - s^2 / 4 is left in each direction
    assert cut.min() < 0.15
    assert cut.max() > 0.98


def test_a_batch_of_one_is_mixed_with_itself():
    x = noise(1)
    for kind in MIXES:
        mixture, soft = mixed(x, torch.tensor([2]), 4, kind, seeded())
        assert torch.allclose(mixture, x)
        assert torch.allclose(soft, torch.tensor([[0.0, 0, 1, 0]]))
