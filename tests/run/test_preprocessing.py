"""What goes into the network: its size and normalisation, where they come from, and what speaks against them."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import network as tiny_network
from tiny_run import tiny_recipe

from deploy_prune.data import splits
from deploy_prune.data.examples import all_of
from deploy_prune.errors import DataError
from deploy_prune.networks import build
from deploy_prune.networks.build import OwnInput, own_input
from deploy_prune.recipe.file import dump, load_recipe
from deploy_prune.recipe.parts import DataPart, ModelPart
from deploy_prune.run import preprocessing
from deploy_prune.run.folder import save_tensors
from deploy_prune.tasks.classification import CLASSIFIER
from deploy_prune.training.loop import Session, make_accelerator, train_network

CPU = torch.device("cpu")
CLASSES = {"channels": 1, "source_classes": [0, 1, 2], "target_classes": [0, 1, 2], "augment": "none"}


def recipe(network, weights=None, **changes):
    return tiny_recipe(model={"source": network, "weights": weights}, data=changes)


def sentences(found):
    return " ".join(found.summary)


# --- size -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "args", "size"),
    [
        ("resnet20", {}, 32),
        ("torchvision:resnet18", {}, 224),
        ("torchvision:vit_b_16", {"image_size": 64}, 64),
        ("torchvision:mobilenet_v2", {"width_mult": 0.25}, 224),
        ("torchvision:ssdlite320_mobilenet_v3_large", {}, 320),
        ("torchvision:retinanet_resnet50_fpn", {}, None),  # which takes any
        ("small_models:Configured", {}, 48),
        ("small_models:Sized", {}, 40),
        ("small_models:Sized", {"side": [40, 40]}, 40),
        ("small_models:Sized", {"side": [40, 60]}, None),  # which is no square
        ("tiny_run:network", {}, None),
    ],
)
def test_a_network_says_what_size_it_was_made_for(source, args, size):
    before = torch.get_rng_state()
    assert own_input(ModelPart(source=source, args=args), 3).size == size
    assert torch.equal(before, torch.get_rng_state())


def test_a_detector_says_how_its_images_are_normalised():
    own = own_input(ModelPart(source="torchvision:ssdlite320_mobilenet_v3_large"), 3)
    assert (own.mean, own.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert own.source == "torchvision's configuration of ssdlite320_mobilenet_v3_large"
    own = own_input(ModelPart(source="torchvision:fcos_resnet50_fpn"), 3)
    assert (own.mean, own.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("source", "args", "size"), [("timm:resnet18", {}, 224), ("timm:vit_tiny_patch16_224", {"img_size": 64}, 64)]
)
def test_a_network_of_timm_says_so_too(source, args, size):
    pytest.importorskip("timm", reason="timm is not installed")
    assert own_input(ModelPart(source=source, args=args), 3).size == size


@pytest.mark.parametrize(
    ("source", "given", "size", "origin"),
    [
        ("small_models:Configured", {"image_size": 24}, 24, "size: the recipe"),
        ("small_models:Configured", {}, 48, "size: the network's own configuration of Configured"),
        ("tiny_run:network", {}, 8, "size: the images' own"),
    ],
)
def test_the_recipe_comes_first_then_the_network_then_the_images(source, given, size, origin):
    found = preprocessing.resolve(recipe(source, **given))
    assert found.recipe.data.image_size == size == found.data.source_train.take(torch.tensor([0])).inputs[0].shape[-1]
    assert build.example_input(found.recipe.data).shape == (1, 3, size, size)
    assert origin in sentences(found)
    assert f"3 x {size} x {size} pixels" in sentences(found)


def folder(root, *sizes):
    for number, (wide, high) in enumerate(sizes * 4):
        path = root / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (wide, high), (number, number, number)).save(path)
    return {"source": "folder", "root": str(root)}


def array(path, wide, high):
    images, labels = np.zeros((8, high, wide, 3), np.uint8), np.arange(8) % 2
    images[::2] = 9
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return {"source": "npz", "root": str(path)}


@pytest.mark.parametrize("sizes", [[(40, 40), (48, 48)], [(4, 4)]])
def test_where_nothing_says_the_size_it_must_be_given(tmp_path, sizes):
    shown = ", ".join(f"{wide}x{high}" for wide, high in sizes)
    stored = [folder(tmp_path / "photos", *sizes)]
    stored += [array(tmp_path / "arrays.npz", *sizes[0])] if len(sizes) == 1 else []
    for part in stored:
        with pytest.raises(DataError, match=rf"^data\.image_size: .*\({shown}\).* 8 to 4096"):
            preprocessing.resolve(recipe("tiny_run:network", **part))
        found = preprocessing.resolve(recipe("tiny_run:network", **part, image_size=24))
        assert found.data.source_train.take(torch.tensor([0])).inputs[0].shape == (1, 3, 24, 24)


def test_images_of_one_square_size_keep_it(tmp_path):
    for part in (folder(tmp_path / "photos", (40, 40)), array(tmp_path / "arrays.npz", 40, 40)):
        assert preprocessing.resolve(recipe("tiny_run:network", **part)).recipe.data.image_size == 40


def test_an_input_of_unknown_size_is_no_input():
    with pytest.raises(DataError, match=r"data\.image_size"):
        build.example_input(DataPart())


# --- normalisation ----------------------------------------------------------------------------------------------------


def test_normalisation_is_the_networks_own_only_for_weights():
    trained_here = preprocessing.resolve(recipe("small_models:Configured"))
    assert "the source data's own" in sentences(trained_here)
    weights = preprocessing.resolve(recipe("small_models:Configured", "mine.safetensors"))
    assert weights.recipe.data.mean == [0.1, 0.2, 0.3]
    assert "mean 0.1 0.2 0.3 (the network's own configuration of Configured)" in sentences(weights)
    grey = preprocessing.resolve(recipe("small_models:Configured", "mine.safetensors", channels=1))
    assert "nothing says what the weights were trained with" in sentences(grey)
    given = preprocessing.resolve(recipe("small_models:Configured", "mine.safetensors", mean=[0.5, 0.5, 0.5]))
    assert given.recipe.data.mean == [0.5, 0.5, 0.5]
    assert "mean 0.5 0.5 0.5 (the recipe)" in sentences(given)


def test_what_was_resolved_is_the_same_when_it_is_read_again(tmp_path):
    found = preprocessing.resolve(
        recipe("tiny_run:network", channels=1, target_classes=[3, 4], source_classes=[1, 2], shots=10)
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(found.recipe))
    again = preprocessing.resolve(load_recipe(str(path)))
    assert again.recipe == found.recipe
    assert (again.recipe.data.shots, again.recipe.data.image_size) == (10, 8)
    assert torch.equal(all_of(again.data.source_train).inputs[0], all_of(found.data.source_train).inputs[0])


# --- doubts -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of a network that was trained on values as they are, from 0 to 1."""
    path = tmp_path_factory.mktemp("weights") / "mine.safetensors"
    part = tiny_recipe().train.model_copy(update={"steps": 60, "lr": 0.1})
    examples = splits.load(DataPart(image_size=16, mean=[0.0], std=[1.0], **CLASSES), 0)
    torch.manual_seed(0)
    trained = tiny_network(3)
    train_network(
        trained,
        examples.source_train,
        CLASSIFIER,
        part,
        session=Session(accelerator=make_accelerator("cpu"), seed=0),
        work="train",
    )
    save_tensors(path, trained.state_dict())
    return str(path)


def tried(weights, score=None, **changes):
    model = {"source": "tiny_run:network", "weights": weights, "score": score}
    found = preprocessing.resolve(tiny_recipe(model=model, data={"image_size": 16, **CLASSES, **changes}))
    return found, preprocessing.try_weights(found, CPU)


def test_a_normalisation_that_fits_far_better_is_told_and_not_taken(weights, caplog):
    with caplog.at_level(logging.WARNING):
        found, (told,) = tried(weights, mean=[0.9], std=[0.05])
    assert "with the values 0 to 1 as they are" in told
    assert "write data.mean: [0] and data.std: [1]" in told
    assert told in caplog.text
    assert found.recipe.data.mean == [0.9]
    assert found.data.source_train.mean.tolist() == pytest.approx([0.9])


def test_weights_in_their_own_normalisation_raise_no_doubt(weights):
    assert tried(weights, mean=[0.0], std=[1.0], score=0.9)[1] == ()


def test_a_score_far_below_what_was_said_is_told(weights):
    _, told = tried(weights, score=1.0, mean=[0.9], std=[0.05])
    assert "model.score: the weights are said to score 100.0%" in told[-1]
    assert not preprocessing.is_short(0.708, 0.69, 256)
    assert preprocessing.is_short(0.708, 0.611, 256)  # nearly ten points


def test_what_the_library_says_is_tried_too():
    part = recipe("tiny_run:network", channels=1, image_size=16)
    examples = preprocessing.resolve(part).data.source_train
    own = OwnInput(mean=(0.3,), std=(0.7,), source="somewhere")
    assert preprocessing._candidates(examples, examples.pixels(torch.arange(4)), own)["somewhere"] == ((0.3,), (0.7,))
