"""Batches that are read ahead by other processes, and those that several processes share out."""

from typing import get_args

import picture_sets
import pytest
import torch

from deploy_prune.data.boxes import BoxExamples
from deploy_prune.data.dataset_examples import task_data
from deploy_prune.data.examples import ClassExamples
from deploy_prune.data.loaders import batches
from deploy_prune.data.masks import load_masks
from deploy_prune.data.splits import load
from deploy_prune.errors import DataError
from deploy_prune.recipe.data import Augment, DataPart, MasksPart


def first(examples, num=4):
    stream = batches(examples, 4, seed=3)
    return [next(stream) for _ in range(num)]


def test_batches_are_the_same_whoever_reads_them(tmp_path):
    examples = picture_sets.load(picture_sets.voc(tmp_path), augment="mosaic").source_train
    state = torch.get_rng_state()
    alone, ahead = first(examples), first(examples.framed(examples.frame, "mosaic", workers=2))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(alone, ahead, strict=True):
        assert torch.equal(a.inputs[0], b.inputs[0])
        assert all(torch.equal(x["boxes"], y["boxes"]) for x, y in zip(a.targets, b.targets, strict=True))
    assert not torch.equal(alone[0].inputs[0], alone[1].inputs[0])


def test_masks_too(tmp_path):
    root = str(picture_sets.masks(tmp_path))
    alone, ahead = (
        first(load_masks(MasksPart(source="folders", root=root, augment="flip_crop", workers=n), 0).source_train)
        for n in (0, 1)
    )
    assert all(torch.equal(a.targets, b.targets) for a, b in zip(alone, ahead, strict=True))


def test_what_is_broken_is_the_same_whoever_reads_it(tmp_path):
    root = picture_sets.voc(tmp_path, train=40)
    (root / "JPEGImages/p0.png").write_bytes(b"GIF89a")
    (root / "JPEGImages/p20.png").unlink()
    (root / "Annotations/p30.xml").write_text(picture_sets.xml((640, 480), []))
    alone, ahead = (picture_sets.load(root, broken="skip", workers=n) for n in (0, 2))
    assert len(alone.skipped) == 3
    assert alone.skipped == ahead.skipped
    assert alone.source_train.digest == ahead.source_train.digest


def test_processes_read_them(tmp_path, monkeypatch):
    examples = picture_sets.load(picture_sets.voc(tmp_path)).source_train
    monkeypatch.setattr(BoxExamples, "varied", lambda *_: pytest.fail("read here"))
    first(examples.framed(examples.frame, "none", workers=1))


def test_an_error_of_a_process_is_told_as_it_is(tmp_path):
    root = picture_sets.voc(tmp_path)
    examples = picture_sets.load(root).source_train
    (root / "JPEGImages/p0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"^data\.root: .*p0\.png can't be read as an image: its content is empty$"):
        first(examples.framed(examples.frame, "none", workers=1))


@pytest.mark.parametrize("workers", [0, 2])
def test_they_go_on_at_any_batch_and_read_none_before(tmp_path, workers):
    root = picture_sets.voc(tmp_path)
    examples = picture_sets.load(root, augment="mosaic").source_train
    examples = examples.framed(examples.frame, "mosaic", workers=workers)
    stream = batches(examples, 4, seed=3)
    for _ in range(7):
        next(stream)
    state = stream.state_dict()
    left = [next(stream) for _ in range(3)]
    again = batches(examples, 4, seed=5)
    next(again)
    again.load_state_dict(state)
    for a, b in zip(left, again, strict=False):
        assert torch.equal(a.inputs[0], b.inputs[0])
        assert all(torch.equal(x["boxes"], y["boxes"]) for x, y in zip(a.targets, b.targets, strict=True))


def test_what_lies_before_is_not_read(tmp_path, monkeypatch):
    examples = picture_sets.load(picture_sets.voc(tmp_path)).source_train
    stream = batches(examples, 4, seed=3)
    for _ in range(7):
        next(stream)
    state, read = stream.state_dict(), []
    varied = BoxExamples.varied
    monkeypatch.setattr(BoxExamples, "varied", lambda *given: read.append(given[1]) or varied(*given))
    again = batches(examples, 4, seed=3)
    again.load_state_dict(state)
    next(again)
    assert len(read) == 1


# --- processes that take turns ---


def in_turns(make, turns, num=14, size=5):
    """The batches that so many processes take between them, in their order, then two that all of them take."""
    streams = [batches(make(), size, seed=3) for _ in range(turns)]
    for turn, stream in enumerate(streams):
        stream.take_turns(turn, turns)
    taken = []
    for number in range(num):
        for turn, stream in enumerate(streams):
            taken += [next(stream)] if number % turns == turn else [stream.skip()] * 0
    states = [stream.state_dict() for stream in streams]
    for state in states:
        assert torch.equal(state["generator"], states[0]["generator"])
        assert torch.equal(state["queue"], states[0]["queue"])
    for stream in streams:
        stream.take_turns(0, 1)
        last = [next(stream) for _ in range(2)]
    return taken + last


def require_turns(make, turns=(2, 3)):
    alone = batches(make(), 5, seed=3)
    expected = [next(alone) for _ in range(16)]
    for num in turns:
        for mine, theirs in zip(in_turns(make, num), expected, strict=True):
            assert torch.equal(mine.inputs[0], theirs.inputs[0])
    assert not torch.equal(expected[0].inputs[0], expected[1].inputs[0])


@pytest.mark.parametrize("augment", get_args(Augment))
def test_all_draw_alike_for_images_in_memory(augment):
    images = torch.rand(13, 3, 9, 6, generator=torch.Generator().manual_seed(0))
    norm = {"mean": torch.zeros(3), "std": torch.ones(3)}
    require_turns(lambda: ClassExamples(images=images, labels=torch.arange(13), augment=augment, **norm))


@pytest.mark.parametrize("workers", [0, 1])
def test_and_for_images_in_files(tmp_path, workers):
    for name in ("train/ant", "train/bee", "test/ant", "test/bee"):
        for number in range(6):
            picture_sets.save(tmp_path / name / f"{number}.png", picture_sets.picture(number + 10 * len(name))[0])
    part = DataPart(source="folder", root=str(tmp_path), image_size=12, augment="shift_flip", workers=workers)
    require_turns(lambda: load(part, 0).source_train)  # 12 examples, 5 a batch: of some epochs a process reads none


@pytest.mark.parametrize("workers", [0, 1])
def test_and_for_pictures_with_boxes(tmp_path, workers):
    examples = picture_sets.load(picture_sets.voc(tmp_path), augment="mosaic").source_train
    require_turns(lambda: examples.framed(examples.frame, "mosaic", workers=workers), turns=(2,))


class Noisy:
    """Items that draw at random."""

    def __len__(self):
        return 13

    def __getitem__(self, index):
        return torch.rand(3) + index, index


def test_and_for_items_of_a_dataset(monkeypatch):
    examples = task_data(Noisy(), Noisy()).source_train
    require_turns(lambda: examples)
    stream, read = batches(examples, 5, seed=3), []
    item = type(examples)._item
    monkeypatch.setattr(type(examples), "_item", lambda *given: read.append(given[1]) or item(*given))
    stream.take_turns(0, 2)
    next(stream)
    stream.skip()
    assert len(read) == 5


def test_examples_that_know_no_way_to_be_skipped_are_read():
    class Plain:
        def __init__(self):
            self.examples = task_data(Noisy(), Noisy()).source_train
            self.varied = self.examples.varied

        def __len__(self):
            return len(self.examples)

    require_turns(Plain)


def test_a_batch_is_read_by_one_and_skipped_by_the_others():
    stream = batches(task_data(Noisy(), Noisy()).source_train, 5, seed=3)
    stream.take_turns(1, 2)
    with pytest.raises(AssertionError, match="another process's"):
        next(stream)
    with pytest.raises(AssertionError, match="ours"):
        stream.skip()
