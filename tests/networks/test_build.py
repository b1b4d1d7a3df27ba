import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deploy_prune.errors import MissingDependencyError, ModelError, WeightsError
from deploy_prune.networks.build import BUILT_IN, build_network, example_input, head_tensors
from deploy_prune.networks.cifar_resnet import ZeroPadShortcut
from deploy_prune.networks.weights import load_weights
from deploy_prune.recipe.parts import BUILT_IN_NETWORKS, DataPart, ModelPart


def make_linear(num_classes, width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(width, 6), nn.Linear(6, num_classes))


def make_with_real_tensors(num_classes):
    """Reads a tensor's value, which can't be done without memory."""
    return nn.Linear(int(torch.tensor([3.0]).item()), num_classes)


def make_without_classes(width=4):
    return nn.Linear(width, 2)


def make_no_network(num_classes):
    return num_classes


@pytest.fixture
def here(tmp_path, monkeypatch):
    """This file's builders, importable as `mine:...` from the current directory only."""
    (tmp_path / "mine_models.py").write_text(Path(__file__).read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine_models", raising=False)
    return tmp_path


def part(source, **args):
    return ModelPart.model_construct(source=source, args=args, weights=None)


# --- networks ---


@pytest.mark.parametrize(("depth", "thousands"), [(20, 270), (32, 460), (44, 660), (56, 850), (110, 1730)])
def test_cifar_resnets_have_the_published_size(depth, thousands):
    """Table 6 of arXiv 1512.03385: 0.27M, 0.46M, 0.66M, 0.85M, 1.7M."""
    with torch.device("meta"):
        network = build_network(part(f"resnet{depth}"), 10)
    params = sum(p.numel() for p in network.parameters()) / 1000
    assert params == pytest.approx(thousands, rel=0.02)
    weights = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weights) == depth


def test_cifar_resnet_has_the_usual_names_and_shapes():
    network = build_network(part("resnet20"), 7)
    shapes = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    assert shapes["conv1.weight"] == (16, 3, 3, 3)
    assert shapes["layer2.0.conv1.weight"] == (32, 16, 3, 3)
    assert shapes["layer3.2.bn2.running_var"] == (64,)
    assert shapes["linear.weight"] == (7, 64)
    assert not any("shortcut" in name for name in shapes)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(("source", "thousands", "outputs"), [("grid_detector", 204, 10), ("unet", 387, 5)])
def test_small_networks_of_maps_have_something_to_prune(source, thousands, outputs):
    network = build_network(part(source), 5)
    assert sum(p.numel() for p in network.parameters()) / 1000 == pytest.approx(thousands, abs=1)
    assert network(torch.rand(2, 3, 40, 72)).shape[:2] == (2, outputs)
    assert build_network(part(source, in_channels=1), 5)(torch.rand(2, 1, 40, 72)).shape[:2] == (2, outputs)


def test_box_layers_of_the_grid_detector_do_not_depend_on_the_classes():
    assert head_tensors(part("grid_detector"), 5) == {"classes.weight", "classes.bias"}
    assert head_tensors(part("unet"), 5) == {"classes.weight", "classes.bias"}


@pytest.mark.parametrize("size", [(64, 96), (33, 47)])
def test_unets_logits_are_of_the_inputs_size(size):
    network = build_network(part("unet"), 4).eval()
    assert network(torch.rand(2, 3, *size)).shape == (2, 4, *size)


def test_zero_pad_shortcut_takes_every_second_pixel_between_zeros():
    x = torch.randn(1, 2, 4, 4)
    y = ZeroPadShortcut(new_channels=2, stride=2)(x)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, [0, 3]].any()


def test_every_built_in_name_of_the_recipe_can_be_built():
    assert set(BUILT_IN) == set(BUILT_IN_NETWORKS)


# --- build ---


def test_same_generator_same_network():
    torch.manual_seed(3)
    first = build_network(part("resnet20"), 4).state_dict()
    torch.manual_seed(3)
    second = build_network(part("resnet20"), 4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "source", ["torchvision:mobilenet_v2", "torchvision:deeplabv3_mobilenet_v3_large", "timm:mobilenetv3_small_100"]
)
def test_builds_from_libraries_without_a_download(source, monkeypatch):
    def refuse(*_args, **_kwargs):
        message = "something was to be downloaded"
        raise AssertionError(message)

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    with torch.device("meta"):
        assert isinstance(build_network(part(source), 5), nn.Module)


def test_a_detector_of_torchvision_has_a_class_more_for_what_is_none():
    source = part("torchvision:ssdlite320_mobilenet_v3_large")
    assert build_network(source, 5).head.classification_head.num_columns == 6
    heads = head_tensors(source, 5)
    assert "head.classification_head.module_list.0.1.weight" in heads
    assert all(name.startswith("head.classification_head.") for name in heads)


def test_a_builder_is_not_told_of_classes_where_there_are_none(here):
    assert build_network(part("mine_models:make_without_classes", width=8), 0).in_features == 8
    assert build_network(part("torchvision:resnet18"), 0).fc.out_features == 1000
    assert build_network(part("torchvision:ssdlite320_mobilenet_v3_large"), 0).head.regression_head.num_columns == 4


def test_builds_the_users_network_from_the_current_directory(here):
    network = build_network(part("mine_models:make_linear", width=8), 3)
    assert network[1].in_features == 8
    assert network[2].out_features == 3


@pytest.mark.parametrize(
    ("source", "args", "says"),
    [
        ("resnet21", {}, "Perhaps you meant 'resnet"),
        ("mobilenet_v2", {}, "Write 'torchvision:mobilenet_v2'."),
        ("torchvision:mobilnet_v2", {}, "Perhaps you meant 'mobilenet_v2'?"),
        ("timm:mobilenetv3_smal_100", {}, "Perhaps you meant 'mobilenetv3_small_100'?"),
        ("timm:hf-hub:someone/something", {}, "timm has no network"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "would fetch weights: write model.weights: default"),
        ("timm:resnet18", {"pretrained": True}, "would fetch weights: write model.weights: default"),
        ("resnet20", {"num_classes": 4}, "num_classes follows from the classes"),
        ("resnet20", {"depht": 4}, "depht"),
        ("no_such_module:make", {}, "No module named 'no_such_module'"),
        ("json:no_such_name", {}, "no_such_name"),
        ("string:digits", {}, "is not callable"),
        ("mine_models:make_without_classes", {}, "takes no argument num_classes"),
        ("mine_models:make_no_network", {}, "returned int, not a torch.nn.Module"),
        ("torchvision:raft_small", {}, "can't be built with num_classes=5"),
    ],
)
def test_what_cannot_be_built_is_named(here, source, args, says):
    with pytest.raises(ModelError, match="model.") as caught:
        build_network(part(source, **args), 5)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_timm_that_is_not_installed_is_named_with_its_pip_command(monkeypatch):
    from deploy_prune.networks import libraries

    monkeypatch.setattr(libraries, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'deploy-prune\[timm\]'"):
        build_network(part("timm:resnet18"), 5)


def test_ultralytics_that_is_not_installed_is_named_with_its_pip_command(monkeypatch):
    from deploy_prune.networks import ultralytics

    monkeypatch.setattr(ultralytics, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'deploy-prune\[ultralytics\]'"):
        build_network(part("ultralytics:yolov8n"), 5)


# --- heads ---


@pytest.mark.parametrize(
    ("source", "head"),
    [
        ("resnet20", {"linear.weight", "linear.bias"}),
        ("torchvision:mobilenet_v2", {"classifier.1.weight", "classifier.1.bias"}),
        ("mine_models:make_with_real_tensors", {"weight", "bias"}),
        ("mine_models:make_linear", {"2.weight", "2.bias"}),
    ],
)
def test_head_is_what_changes_with_the_classes(here, source, head):
    before = torch.get_rng_state()
    assert head_tensors(part(source), 5) == head
    assert torch.equal(torch.get_rng_state(), before)


def test_example_input_has_the_data_shape():
    x = example_input(DataPart(image_size=24, channels=1), batch=3)
    assert (x.shape, x.dtype) == ((3, 1, 24, 24), torch.float32)


# --- weights ---


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def other_state():
    torch.manual_seed(1)
    fresh = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    return fresh.state_dict()


def nested(key):
    return lambda state, path: torch.save({key: state, "epoch": 3, "best": 0.9}, path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("w.safetensors", save_file),
        ("w.pt", torch.save),
        ("w.pth", nested("state_dict")),
        ("w.bin", nested("model")),
        ("w.pt", lambda state, path: torch.save({f"module.{n}": t for n, t in state.items()}, path)),
        ("w.pt", lambda state, path: torch.save({n: t for n, t in state.items() if "num_batches" not in n}, path)),
    ],
)
def test_weights_are_loaded(network, tmp_path, name, write):
    state = other_state()
    write(state, tmp_path / name)
    load_weights(network, tmp_path / name)
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())


def test_half_precision_is_cast(network, tmp_path):
    state = {n: t.half() if t.is_floating_point() else t for n, t in other_state().items()}
    save_file(state, tmp_path / "w.safetensors")
    load_weights(network, tmp_path / "w.safetensors")
    assert network[0].weight.dtype == torch.float32
    assert torch.equal(network[0].weight, state["0.weight"].float())


def misfit(**changes):
    return {**other_state(), **{name.replace("_", "."): tensor for name, tensor in changes.items()}}


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (misfit(**{"2_weight": torch.zeros(3, 4)}), "2.weight is [3, 4] in the file and [2, 4] in the network"),
        (misfit(**{"2_weight": torch.zeros(2, 4, dtype=torch.int8)}), "torch.int8 in the file"),
        (misfit(**{"2_bias": torch.tensor([0.0, torch.nan])}), "2.bias has values that are not finite"),
        (
            {n: t for n, t in other_state().items() if n != "2.bias"},
            "lacks 2.bias; if these are the class layers, model.head: new",
        ),
        (misfit(extra=torch.zeros(1)), "has extra that the network has not"),
        ({}, "lacks 0.weight, 0.bias, 1.weight and 5 more"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_change_nothing(network, tmp_path, state, says):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="model.weights") as caught:
        load_weights(network, tmp_path / "w.pt")
    assert says in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


class Planted:
    """Unpickling this would run code."""

    def __reduce__(self):
        return Path.touch, (Path("planted"),)


def write_truncated(suffix):
    def write(path):
        whole = path.with_name(f"whole{suffix}")
        (save_file if suffix == ".safetensors" else torch.save)(other_state(), whole)
        path.write_bytes(whole.read_bytes()[:300])

    return write


@pytest.mark.parametrize(
    ("name", "write", "says"),
    [
        ("w.pt", lambda path: torch.save(nn.Linear(2, 2), path), "pickled Python objects"),
        (
            "w.pt",
            lambda path: torch.save({"state_dict": other_state(), "x": Planted()}, path),
            "pickled Python objects",
        ),
        ("w.pkl", lambda path: path.write_bytes(pickle.dumps(Planted())), "pickled Python objects"),
        ("w.pt", lambda path: torch.save({"net": nn.Linear(2, 2)}, path), "pickled Python objects"),
        ("w.pt", lambda path: torch.save([1, 2], path), "is not a state dict"),
        ("w.pt", lambda path: torch.save({"epoch": 1}, path), "is not a state dict"),
        ("w.pt", lambda path: path.write_bytes(b""), "can't be read"),
        ("w.pt", lambda path: None, "there is no file"),
        ("w.safetensors", lambda path: None, "there is no file"),
        ("w.pt", write_truncated(".pt"), "w.pt"),
        ("w.safetensors", write_truncated(".safetensors"), "is not a whole .safetensors file"),
        ("w.safetensors", lambda path: torch.save(other_state(), path), "is not a whole .safetensors file"),
    ],
)
def test_unsafe_and_damaged_files_are_refused(network, tmp_path, monkeypatch, name, write, says):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name)
    with pytest.raises(WeightsError, match="model.weights") as caught:
        load_weights(network, tmp_path / name)
    assert says in str(caught.value)
    assert not Path("planted").exists()
    assert "\n" not in str(caught.value)


# --- torchvision beside any torch ---

PROBE = """
from deploy_prune.networks import libraries as vision
before = vision._operators_load()
torchvision = vision.import_torchvision()
print(vision._declare_missing_operators() is None, before, torchvision.extension._has_ops())
"""


def test_torchvision_imports_whether_or_not_its_operators_load():
    done = subprocess.run([sys.executable, "-W", "error", "-c", PROBE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    declared_nothing, loaded, has_operators = done.stdout.split()
    assert declared_nothing == loaded == has_operators


def test_nothing_is_declared_over_operators_that_are_there(monkeypatch):
    from deploy_prune.networks import libraries

    monkeypatch.setattr(libraries, "_operators_load", lambda: True)
    monkeypatch.setattr(libraries, "Library", None)
    assert libraries._declare_missing_operators.__wrapped__() is None


@pytest.mark.parametrize(("depth", "weights"), [(2, 4_300_992), (4, 2_425_024), (6, 2_261_184)])
def test_plain_convolutional_networks_have_the_published_size(depth, weights):
    """Weights without biases; arXiv 2202.12986."""
    network = build_network(part(f"conv{depth}"), 10)
    assert sum(p.numel() for p in network.parameters() if p.dim() > 1) == weights
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_tensors_without_versions_are_taken_for_todays(tmp_path):
    """MNASNet rebuilds its first layers for tensors that bear no version."""
    network, other = (build_network(part("torchvision:mnasnet1_0"), 5) for _ in range(2))
    path = tmp_path / "w.safetensors"
    save_file(network.state_dict(), path)
    load_weights(other, path)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert other.layers[0].weight.shape == network.layers[0].weight.shape
