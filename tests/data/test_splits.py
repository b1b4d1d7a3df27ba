from itertools import islice
from typing import get_args

import numpy as np
import pytest
import torch

from deploy_prune.data import splits as data_module
from deploy_prune.data.collected import Collection, Labelled
from deploy_prune.data.examples import ClassExamples, all_of, spread
from deploy_prune.data.loaders import batches
from deploy_prune.data.splits import load
from deploy_prune.errors import DataError
from deploy_prune.recipe.parts import Augment, DataPart

HALVES = {"source_classes": [0, 1, 2, 3, 4], "target_classes": [5, 6, 7, 8, 9]}


def labelled(counts, offset=0):
    """One-pixel-valued 4x4 images, each with its own value, ``counts[c]`` of class c."""
    labels = torch.tensor([c for c, count in counts.items() for _ in range(count)], dtype=torch.int64)
    values = (torch.arange(len(labels)) + offset).to(torch.uint8)
    return Labelled(images=values.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone(), labels=labels)


@pytest.fixture
def stored(monkeypatch):
    """Replace what is read."""

    def store(train, test=None):
        monkeypatch.setattr(data_module, "read", lambda part: Collection(train=train, test=test))

    return store


def part(**changes):
    return DataPart.model_construct(**{**DataPart(image_size=8, channels=1, shots=2).model_dump(), **changes})


def values(examples):
    return set(examples.images.flatten(1)[:, 0].tolist())


# --- digits ---


def test_digits_halves_have_the_expected_sizes():
    data = load(DataPart(shots=10, **HALVES), seed=0)
    assert (len(data.source_train), len(data.source_test)) == (721, 180)  # 901 images of 0-4
    assert (len(data.target_train), len(data.target_test)) == (50, 846)  # 896 images of 5-9
    assert (data.num_source, data.num_target) == (5, 5)
    assert data.target_train.labels.bincount().tolist() == [10] * 5
    (x,), y = data.target_test.take(torch.tensor([0, 3]))
    assert (x.shape, x.dtype, y.dtype) == ((2, 3, 8, 8), torch.float32, torch.int64)


def test_source_training_examples_are_normalised():
    (x,), _ = all_of(load(DataPart(image_size=8, **HALVES), seed=0).source_train)
    assert x.mean().abs() < 1e-4
    assert x.std(correction=0) == pytest.approx(1, abs=1e-4)


def test_seed_draws_the_shots_and_nothing_else():
    first, again, other = (load(DataPart(shots=10, **HALVES), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.target_train.images, again.target_train.images)
    assert not torch.equal(first.target_train.images, other.target_train.images)
    assert torch.equal(first.source_train.images, other.source_train.images)


# --- ways and shots ---


def test_ways_are_drawn_with_the_seed_and_nothing_else(stored):
    stored(labelled(dict.fromkeys(range(12), 10)))
    drawn = {seed: load(part(source_classes=[0, 1], ways=3), seed=seed).target_classes for seed in range(20)}
    assert all(len(set(ways)) == 3 and list(ways) == sorted(ways) for ways in drawn.values())
    assert set().union(*drawn.values()) == set(range(12))
    torch.manual_seed(5)
    again = load(part(source_classes=[5, 6], ways=3, augment="none", image_size=16, shots=None), seed=7)
    assert again.target_classes == drawn[7]


def test_ways_are_drawn_of_the_target_classes_in_their_order(stored):
    stored(labelled(dict.fromkeys(range(12), 10)))
    asked = [9, 2, 7, 4]
    for seed in range(5):
        data = load(part(source_classes=[0, 1], target_classes=asked, ways=2), seed=seed)
        assert [c for c in asked if c in data.target_classes] == list(data.target_classes)
        assert data.num_target == 2
        assert set(data.target_test.labels.tolist()) == {0, 1}
    assert load(part(source_classes=[0, 1], target_classes=asked, ways=4), seed=0).target_classes == tuple(asked)


@pytest.mark.parametrize("ways", [1, 5])
def test_ways_that_there_are_not(stored, ways):
    stored(labelled(dict.fromkeys(range(4), 10)))
    with pytest.raises(DataError, match=rf"data\.ways: {ways} classes are to be drawn of .* 4; write 2 to 4\."):
        load(part(source_classes=[0, 1], ways=ways), seed=0)


@pytest.mark.parametrize("own_test", [True, False])
def test_a_split_can_be_made_again_from_its_shots(stored, own_test):
    everything = labelled(dict.fromkeys(range(6), 10))
    stored(everything, labelled(dict.fromkeys(range(6), 2), offset=100) if own_test else None)
    data = load(part(source_classes=[0, 1], target_classes=[5, 3, 4], ways=2, shots=3), seed=1)
    train = everything if own_test else data_module._split(everything)[0]
    again = train.labels[list(data.shots)].tolist()
    assert again == [c for c in data.target_classes for _ in range(3)]
    assert set(train.images[list(data.shots)][:, 0, 0, 0].tolist()) == values(data.target_train)
    assert load(part(source_classes=[0, 1], shots=None), seed=1).shots == ()


def test_digest_is_of_the_drawn_examples(stored):
    stored(labelled(dict.fromkeys(range(6), 10)))

    def digest(seed=0, **changes):
        return load(part(source_classes=[0, 1], **changes), seed=seed).digest

    assert digest() == digest(augment="none", image_size=16)
    assert len(digest()) == 16
    assert len({digest(), digest(seed=1), digest(shots=3), digest(shots=None), digest(ways=3)}) == 5


def test_a_short_class_is_named_or_gives_what_it_has(stored, monkeypatch):
    train, test = (labelled({0: 9, 1: 9, 2: 2, 3: 1, 4: 5}, offset=offset) for offset in (0, 100))
    collection = Collection(train=train, test=test, names=("ant", "bee", "cat", "3", "dog"))
    monkeypatch.setattr(data_module, "read", lambda part: collection)
    asked = {"source_classes": [0, 1], "shots": 4}
    with pytest.raises(DataError, match=r"data\.shots: 4 are asked for, but class 2 \(cat\) has 2 training"):
        load(part(target_classes=[4, 2, 3], **asked), seed=0)
    with pytest.raises(DataError, match=r"class 3 has 1 training examples \(data\.short_classes: use_all takes"):
        load(part(target_classes=[4, 3], **asked), seed=0)
    data = load(part(target_classes=[4, 2, 3], short_classes="use_all", **asked), seed=0)
    assert data.target_train.labels.bincount().tolist() == [4, 2, 1]
    assert train.labels[list(data.shots)].tolist() == [4, 4, 4, 4, 2, 2, 3]
    load(part(target_classes=[4, 0], **asked), seed=0)  # counts that differ are no fault


def test_use_all_changes_nothing_where_no_class_is_short(stored):
    stored(labelled(dict.fromkeys(range(4), 10)))
    one, other = (load(part(source_classes=[0, 1], short_classes=way), seed=3) for way in ("fail", "use_all"))
    assert one.shots == other.shots


def test_skipped_files_are_recorded_and_named_in_one_line(monkeypatch, caplog):
    for skipped in ((), ("train/a/1.png",), tuple(f"train/a/{i}.png" for i in range(13))):
        caplog.clear()
        collection = Collection(train=labelled({0: 9, 1: 9}), test=None, skipped=skipped)
        monkeypatch.setattr(data_module, "read", lambda part, collection=collection: collection)
        assert load(part(), seed=0).skipped == skipped
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == bool(skipped)
        assert all("data.unreadable" in line and "train/a/1.png" in line for line in lines)
        assert all(line.endswith(": train/a/1.png") for line in lines if len(skipped) == 1)
        assert all(line.endswith("train/a/9.png and 3 more") for line in lines if len(skipped) > 10)


def test_files_that_are_not_read_are_recorded_and_told(monkeypatch, caplog):
    collection = Collection(train=labelled({0: 9, 1: 9}), test=None, ignored={".txt": 3})
    monkeypatch.setattr(data_module, "read", lambda part: collection)
    assert load(part(), seed=0).ignored == {".txt": 3}
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("data.root: files that are not read: ")
    assert "3" in line


def test_a_class_of_just_so_many_examples_as_are_asked_for_is_enough(stored):
    stored(labelled(dict.fromkeys(range(4), 5)), labelled(dict.fromkeys(range(4), 1), offset=100))
    data = load(part(source_classes=[0, 1], target_classes=[2, 3], shots=5), seed=0)
    assert data.target_train.labels.bincount().tolist() == [5, 5]


# --- splits ---


def test_shots_and_all_the_rest_are_a_partition(stored):
    stored(labelled(dict.fromkeys(range(4), 10)))
    data = load(part(source_classes=[0, 1], target_classes=[2, 3]), seed=0)
    assert values(data.target_train) | values(data.target_test) == set(range(20, 40))
    assert len(data.target_train) + len(data.target_test) == 20
    assert values(data.source_train) | values(data.source_test) == set(range(20))
    assert len(data.source_test) == 4


@pytest.mark.parametrize("shots", [2, None])
@pytest.mark.parametrize("target", [[0, 1], [1, 2], None])
@pytest.mark.parametrize("own_test", [True, False])
def test_nothing_is_trained_on_and_scored_on(stored, shots, target, own_test):
    counts = dict.fromkeys(range(4), 10)
    stored(labelled(counts), labelled(counts, offset=100) if own_test else None)
    data = load(part(source_classes=[0, 1], target_classes=target, shots=shots), seed=0)
    trained = values(data.source_train) | values(data.target_train)
    assert not trained & (values(data.source_test) | values(data.target_test))


def test_own_test_set_is_what_is_scored(stored):
    stored(labelled({0: 5, 1: 5, 2: 5, 3: 5}), labelled({0: 3, 1: 3, 2: 3, 3: 3}, offset=100))
    data = load(part(source_classes=[0, 1], target_classes=[2, 3]), seed=0)
    assert values(data.source_test) == set(range(100, 106))
    assert values(data.target_test) == set(range(106, 112))


def test_labels_follow_the_order_of_the_lists(stored):
    stored(labelled({3: 4, 5: 4, 9: 4}), labelled({3: 1, 5: 1, 9: 1}, offset=100))
    data = load(part(source_classes=None, target_classes=[9, 3]), seed=0)
    assert data.source_classes == (3, 5, 9)
    assert data.target_classes == (9, 3)
    assert dict(zip(data.target_test.images[:, 0, 0, 0].tolist(), data.target_test.labels.tolist(), strict=True)) == {
        100: 1,
        102: 0,
    }


@pytest.mark.parametrize(
    ("counts", "changes", "says"),
    [
        ({}, {}, "data.source_classes: the data set is empty."),
        ({0: 9}, {}, "a task needs at least 2 classes, and this is 1."),
        ({0: 9, 1: 9}, {"target_classes": [1]}, "data.target_classes: a task needs at least 2 classes"),
        ({0: 9, 1: 9}, {"source_classes": [0, 7]}, "data.source_classes: the data set has no class 7, only 0 to 1."),
        ({0: 9, 4: 9}, {"source_classes": [0, 7]}, "only 0, 4."),
        ({0: 9, 1: 9}, {"source_classes": [1, 1]}, "data.source_classes: a class is listed twice."),
        ({0: 9, 1: 4}, {"shots": 5}, "data.shots: 5 are asked for, but class 1 has 3 training examples (data"),
        ({0: 1, 1: 1}, {"shots": None}, "nothing is left for the source test examples"),
        ({0: 9, 1: 9}, {"mean": [0.1, 0.2]}, "data.mean: 2 values are given for 1 channels."),
        ({0: 9, 1: 9}, {"std": [0.1, 0.2]}, "data.std: 2 values are given for 1 channels."),
        ({0: 9, 1: 9}, {"std": [0.0]}, "data.std: must be above 0"),
    ],
)
def test_data_that_does_not_suffice_is_named(stored, counts, changes, says):
    stored(labelled(counts))
    with pytest.raises(DataError) as caught:
        load(part(**changes), seed=0)
    assert says in str(caught.value)


def test_images_that_are_all_the_same_are_refused(stored):
    same = labelled({0: 5, 1: 5})
    same.images.zero_()
    stored(same)
    with pytest.raises(DataError, match="same value"):
        load(part(), seed=0)


# --- channels, size, normalisation ---


def test_given_mean_and_std_are_used(stored):
    stored(labelled({0: 5, 1: 5}))
    data = load(part(mean=[0.5], std=[0.25]), seed=0)
    (x,), _ = data.source_train.take(torch.tensor([0]))
    value = data.source_train.images[0, 0, 0, 0].item()
    assert x == pytest.approx(torch.full((1, 1, 8, 8), (value / 255 - 0.5) / 0.25).numpy(), abs=1e-5)


def test_colour_becomes_grey_and_grey_becomes_colour(stored):
    colour = labelled({0: 5, 1: 5})
    rgb = torch.stack([colour.images[:, 0], torch.zeros(10, 4, 4), torch.full((10, 4, 4), 100.0)], 1).to(torch.uint8)
    stored(Labelled(images=rgb, labels=colour.labels))
    grey = load(part(channels=1, shots=None), seed=0).source_train
    assert grey.images.shape[1] == 1
    assert values(grey) <= {round(0.299 * v + 11.4) for v in range(10)}
    stored(colour)
    tinted = all_of(load(part(channels=3), seed=0).source_train).inputs[0]
    assert tinted.shape[1] == 3
    assert torch.equal(tinted[:, 0], tinted[:, 2])


def examples(num=6, side=4, size=None, augment="none"):
    torch.manual_seed(0)
    images = torch.randint(256, (num, 1, side, side)).to(torch.uint8)
    return ClassExamples(
        images=images, labels=torch.arange(num), mean=torch.zeros(1), std=torch.ones(1), augment=augment,
        size=size and (size, size),
    )  # fmt: skip


def test_resizing_is_bilinear_both_ways():
    x = all_of(examples(size=8)).inputs[0]
    expected = torch.nn.functional.interpolate(all_of(examples()).inputs[0], (8, 8), mode="bilinear")
    assert torch.allclose(x, expected, atol=1e-6)
    halved = all_of(examples(side=8, size=4)).inputs[0]
    assert halved.mean() == pytest.approx(all_of(examples(side=8)).inputs[0].mean().item(), abs=0.02)


def test_float_images_are_taken_as_they_are():
    images = torch.rand(2, 1, 4, 4)
    exact = ClassExamples(images=images, labels=torch.arange(2), mean=torch.zeros(1), std=torch.ones(1))
    assert torch.equal(all_of(exact).inputs[0], images)


# --- batches ---


@pytest.mark.parametrize("augment", get_args(Augment))
def test_same_seed_same_batches(augment):
    def first(seed):
        return [x for (x,), _ in islice(batches(examples(augment=augment), 4, seed), 5)]

    assert all(torch.equal(a, b) for a, b in zip(first(7), first(7), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first(7), first(8), strict=True))


@pytest.mark.parametrize(("asked", "given"), [(2, 2), (4, 4), (6, 6), (50, 6)])
def test_batches_are_full_and_epochs_complete(asked, given):
    labels = [y for _, y in islice(batches(examples(), asked, 0), 12)]
    assert {len(y) for y in labels} == {given}
    stream = torch.cat(labels)
    for epoch in stream[: len(stream) // 6 * 6].split(6):
        assert sorted(epoch.tolist()) == list(range(6))


def test_epochs_are_shuffled_anew():
    orders = [tuple(y.tolist()) for _, y in islice(batches(examples(), 6, 0), 10)]
    assert len(set(orders)) > 5


def test_numpy_generator_is_left_alone():
    np.random.seed(0)
    before = torch.get_rng_state()
    next(batches(examples(augment="shift_flip"), 4, 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_target_classes_have_their_names_if_all_of_them_do():
    recipe = DataPart(source_classes=[0, 1], target_classes=[7, 3])
    assert load(recipe, 0).target_names == ("7", "3")
    assert data_module._names(("a", "b"), (0, 2)) is None
    assert data_module._names(None, (0,)) is None


@pytest.mark.parametrize(
    ("classes", "shots", "used"),
    [
        ({"source_classes": [0, 1], "target_classes": [2, 3]}, None, 288),
        ({"source_classes": [0, 1], "target_classes": [2, 3], "shots": 10}, 10, 20),
        ({"source_classes": [0, 1], "target_classes": [0, 1]}, None, 288),
        ({"target_classes": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]}, None, 1438),  # all of them, by name
        ({}, None, 1438),
    ],
)
def test_all_training_examples_are_taken_unless_the_recipe_says_how_many(classes, shots, used):
    data = load(DataPart(image_size=8, **classes), seed=0)
    assert (data.shots_a_class, len(data.target_train)) == (shots, used)
    assert data.num_available == (1438 if used == 1438 else 288)


@pytest.mark.parametrize("num", [0, 1, 3, 8, 64, 210, 500])
def test_a_spread_draw_has_every_class_as_often_as_it_can(num):
    labels = torch.cat([torch.full((n,), label) for label, n in ((0, 140), (1, 60), (7, 9), (8, 1))])
    chosen = spread(labels, num)
    assert len(chosen) == min(num, len(labels))
    assert torch.equal(chosen, chosen.unique())
    assert torch.equal(chosen, spread(labels, num))
    counts = [int((labels[chosen] == label).sum()) for label in (0, 1, 7, 8)]
    assert sum(count > 0 for count in counts) == min(num, 4)
    if num == 64:
        assert counts == [27, 27, 9, 1]
        assert int(labels[chosen].eq(0).nonzero().max()) < 64
        assert int(chosen[labels[chosen] == 0].max()) > 70, "not the first ones of a class"
