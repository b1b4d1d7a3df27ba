"""Where what is left whole is used: the file and line of the class around it."""

import inspect
from pathlib import Path

from torch import nn

from deploy_prune.commands.left_whole import places
from deploy_prune.types import Whole


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
        self.scale = nn.Parameter(nn.Conv2d(3, 4, 1).weight)


def found(network: nn.Module, *names: str):
    return places(network, [Whole(name=name, channels=4, reason="it is one") for name in names])


def test_it_is_the_nearest_class_of_the_users_own_code():
    here = Path(__file__)
    for place in found(nn.Sequential(Block()), "0.layers.0", "0.layers.0#2", "0.scale", "0"):
        assert (place.kind, Path(place.file).name) == ("Block", here.name)
        assert place.line == inspect.getsourcelines(Block)[1]
        assert here.read_text(encoding="utf-8").splitlines()[place.line - 1] == "class Block(nn.Module):"


def test_torchs_own_classes_have_no_place_in_the_users_code():
    assert found(nn.Sequential(nn.Linear(2, 2)), "0") == (None,)


def test_code_without_a_file_has_none():
    made = type("Made", (nn.Module,), {"__module__": "typed_in"})
    assert found(made(), "weight") == (None,)
