"""Batches that are read ahead by other processes."""

import picture_sets
import pytest
import torch

from deploy_prune.data.boxes import BoxExamples
from deploy_prune.data.loaders import batches
from deploy_prune.data.masks import load_masks
from deploy_prune.errors import DataError
from deploy_prune.recipe.data import MasksPart


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
