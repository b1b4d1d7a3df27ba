"""How many images of a folder are decoded by a check: few, if the recipe gives mean and deviation."""

import numpy
import pytest
from PIL import Image
from tiny_run import tiny_recipe

from deploy_prune.commands.check import check
from deploy_prune.data import pictures

TRAIN, TEST = 80, 2  # of each class


@pytest.fixture
def recipe(tmp_path):
    """One of six classes of stripes in a folder, in files of 8 x 8 pixels."""
    rng = numpy.random.default_rng(0)
    for part, num in (("train", TRAIN), ("test", TEST)):
        for label in range(6):
            folder = tmp_path / "images" / part / str(label)
            folder.mkdir(parents=True)
            for i in range(num):
                pixels = rng.integers(0, 60, (8, 8), dtype=numpy.uint8)
                pixels[label] = 250
                Image.fromarray(pixels).save(folder / f"{i}.png")
    data = {
        "source": "folder", "root": str(tmp_path / "images"), "image_size": 16, "channels": 1, "mean": [0.2],
        "std": [0.2], "source_classes": [0, 1, 2], "target_classes": [3, 4, 5], "shots": 5,
    }  # fmt: skip
    return tiny_recipe(data=data, export={"calibration_examples": 16})


@pytest.fixture
def decoded(monkeypatch):
    """How many files what is called decodes in this process, where nothing is kept in memory before."""
    files, plain = [], pictures.picture.decoded
    monkeypatch.setattr(pictures.picture, "decoded", lambda path, channels: files.append(path) or plain(path, channels))

    def count(work):
        pictures._KEPT.arrays.clear()
        files.clear()
        work()
        return len(files)

    return count


def test_a_check_decodes_few(recipe, decoded):
    assert 0 < decoded(lambda: check(recipe)) < 60, "of 492"
