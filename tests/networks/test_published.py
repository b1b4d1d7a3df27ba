"""Published weights: which file is asked for, which one it was, and what is said where it can't be had."""

from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from pydantic import ValidationError
from tiny_run import tiny_recipe

from deploy_prune.errors import WeightsError
from deploy_prune.networks import build, published
from deploy_prune.networks.published import fetch
from deploy_prune.recipe.model import WITH_DEFAULTS
from deploy_prune.recipe.parts import ModelPart
from deploy_prune.run import preprocessing, stored_recipe
from deploy_prune.run.folder import save_tensors

NET = "torchvision:squeezenet1_1"
DATA = {"image_size": 32, "source_classes": [0, 1, 2], "target_classes": [0, 1, 2], "channels": 3}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Stands in for the hub: its file has weights of tiny_run's network for three classes."""
    asked, snapshot = [], tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    (snapshot / "deep").mkdir(parents=True)

    def download(repository, file, revision=None, **options):
        asked.append((repository, file, revision))
        return str(snapshot / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return SimpleNamespace(asked=asked, folder=snapshot)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Stands in for torchvision's site; its files are of 1000 classes."""
    asked, here = [], tmp_path / "hub"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(here))

    def download(url, path, hash_prefix=None, **options):
        asked.append((url, hash_prefix))
        torch.save(build.build_network(ModelPart(source=NET), 1000).state_dict(), path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return asked


def part(source=NET, weights="default"):
    return ModelPart(source=source, weights=weights)


@pytest.mark.parametrize(
    ("weights", "asked"),
    [
        ("hf://a/b/w.safetensors", ("a/b", "w.safetensors", None)),
        ("hf://a/b/deep/w-1.0.safetensors@v1.2", ("a/b", "deep/w-1.0.safetensors", "v1.2")),
    ],
)
def test_a_file_on_the_hub_is_told_with_its_commit(hub, weights, asked):
    found = fetch(part("tiny_run:network", weights))
    assert hub.asked == [asked]
    assert found.path == hub.folder / asked[1]
    assert found.told == f"hf://a/b/{asked[1]}@c0ffee"


def test_default_weights_of_torchvision_are_fetched_once_and_checked(site):
    first, again = fetch(part()), fetch(part())
    assert first == again
    assert len(site) == 1
    ((url, digits),) = site
    assert url.endswith(f"squeezenet1_1-{digits}.pth")
    assert len(digits) == 8
    assert first.told == f"torchvision's IMAGENET1K_V1, {url}"


def test_default_weights_of_timm_are_their_tags(hub, monkeypatch):
    configured = {"resnet18.a1_in1k": SimpleNamespace(hf_hub_id="timm/resnet18.a1_in1k", url=None)}
    monkeypatch.setattr(published, "import_timm", lambda: SimpleNamespace(get_pretrained_cfg=configured.get))
    assert fetch(part("timm:resnet18.a1_in1k")).path.name == "model.safetensors"
    assert hub.asked == [("timm/resnet18.a1_in1k", "model.safetensors", None)]
    with pytest.raises(WeightsError, match="timm has no weights for resnet18.nothing"):
        fetch(part("timm:resnet18.nothing"))


def test_a_network_without_weights_is_named(site):
    with pytest.raises(WeightsError, match="torchvision has no weights for mnasnet0_75_; leave model.weights out"):
        fetch(part("torchvision:mnasnet0_75_"))


@pytest.mark.parametrize("weights", ["default", "hf://a/b/w.safetensors"])
def test_without_a_network_a_sentence_says_what_to_do(weights, site, hub, monkeypatch):
    def offline(*given, **told):
        message = "[Errno -2] Name or service not known.\nmore"
        raise OSError(message)

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    told = r"can't be fetched: \[Errno -2\] Name or service not known\. Where there is no network, fetch the file"
    with pytest.raises(WeightsError, match=told):
        fetch(part(weights=weights))


def test_recipes_know_which_libraries_publish_weights():
    assert tuple(published._DEFAULTS) == WITH_DEFAULTS


@pytest.mark.parametrize("weights", [None, "my.safetensors", "hf-of-mine.pt"])
def test_files_of_ones_own_are_not_looked_for(weights):
    assert fetch(part(weights=weights)) is None


@pytest.mark.parametrize(
    ("source", "weights", "words"),
    [
        ("resnet20", "default", "only networks of torchvision and timm have default weights"),
        (NET, "hf://a/b/w.pth", r"hf://OWNER/NAME/FILE\.safetensors, .*may hold programs"),
        (NET, "hf://w.safetensors", "OWNER"),
        (NET, "hf://a/../../w.safetensors@", "OWNER"),
    ],
)
def test_names_that_can_be_no_weights_are_refused_when_the_recipe_is_read(source, weights, words):
    with pytest.raises(ValidationError, match=words):
        part(source, weights)


def recipe(source, weights, **model):
    return tiny_recipe(model={"source": source, "weights": weights, **model}, data=DATA)


def test_new_class_layers_are_trained_where_the_weights_are_of_other_classes(site):
    found = preprocessing.resolve(recipe(NET, "default"))
    assert found.recipe.model.head == "new"
    assert found.recipe.model.weights.endswith(".pth")
    assert found.recipe.data.mean == pytest.approx([0.485, 0.456, 0.406]), "normalised as the weights were trained"
    assert found.summary[-1].startswith("Weights: torchvision's IMAGENET1K_V1, https://")
    assert found.summary[-1].endswith("Its class layers are of other classes; new ones are trained.")
    assert preprocessing.resolve(found.recipe).recipe == found.recipe


def test_weights_of_these_classes_keep_their_class_layers(hub):
    network = build.build_network(ModelPart(source="resnet20"), 3)
    save_tensors(hub.folder / "w.safetensors", network.state_dict())
    found = preprocessing.resolve(recipe("resnet20", "hf://a/b/w.safetensors"))
    assert found.recipe.model.head == "keep"
    assert found.summary[-1] == "Weights: hf://a/b/w.safetensors@c0ffee."


def test_weights_of_another_network_are_refused(hub):
    save_tensors(hub.folder / "w.safetensors", {"other.weight": torch.zeros(3)})
    with pytest.raises(WeightsError, match="does not fit the network"):
        preprocessing.resolve(recipe("resnet20", "hf://a/b/w.safetensors"))


def test_a_run_keeps_their_name(tmp_path):
    asked = recipe(NET, "hf://a/b/w.safetensors@c0ffee")
    stored_recipe.write(asked, tmp_path)
    assert stored_recipe.load(tmp_path).model.weights == "hf://a/b/w.safetensors@c0ffee"
