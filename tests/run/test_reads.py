"""How many images of a folder each command decodes: few, if the recipe gives mean and deviation."""

import numpy
import pytest
from PIL import Image
from tiny_run import tiny_recipe

from deploy_prune.commands.check import check
from deploy_prune.commands.export import bundles
from deploy_prune.commands.transfer import transfer
from deploy_prune.data import pictures
from deploy_prune.run import pipeline

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
    return tiny_recipe(data=data)


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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_each_command_decodes(recipe, decoded, tmp_path):
    run = lambda: pipeline.run(recipe, tmp_path / "runs")  # noqa: E731
    first = decoded(run)
    again = decoded(run)
    folder = tmp_path / "runs" / recipe.name
    exported = decoded(lambda: bundles(folder, "pixel-8", "50% macs", tmp_path / "again", trust=True))
    place = folder / "pixel-8/50% macs"
    moved = decoded(lambda: transfer(place, ["data.shots=3"], out=tmp_path / "moved", episodes=3, trust=True))
    print(f"of {6 * (TRAIN + TEST)}: recipe {first}, again {again}, export {exported}, transfer of 3 episodes {moved}")
    assert first > 3 * TRAIN, "the source classes are trained on"
    assert again < 20
    assert exported < 100
    assert moved < 60, "three draws of 9, and what is scored"
