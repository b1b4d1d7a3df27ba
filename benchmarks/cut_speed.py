"""How long a cut takes, against torch-pruning removing the same channels.

    python benchmarks/cut_speed.py [NAME...] [--rounds N]

Half of every group. Timed: ours, from the dense network and the masks to the slim copy; theirs, a deep copy, then
``get_pruning_group`` and ``prune`` per group. Not timed: finding the groups, which both do once (given as ``find_s``).
Interleaved, the order alternates; medians in seconds of one core. Both must leave the same tensors. Channels
that torch's MultiheadAttention reads stay: torch-pruning cuts its heads with them, we don't.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from statistics import median
from typing import Any, Final

import _results
import torch
import torch_pruning as tp
from torch import Tensor, nn

from deploy_prune.networks import build
from deploy_prune.networks.coordinates import lost_coordinates
from deploy_prune.recipe.parts import ModelPart, PrunePart
from deploy_prune.search.gated_network import gates_of
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.groups import find_groups
from deploy_prune.surgery.try_groups import keep_cuttable
from deploy_prune.types import ChannelGroup, Keep, Structure

NAMES: Final = ("resnet50", "mobilenet_v2", "vit_b_16", "densenet121")
PRUNE_OUT: Final = {nn.Conv2d: tp.prune_conv_out_channels, nn.Linear: tp.prune_linear_out_channels}


def producer(network: nn.Module, group: ChannelGroup) -> str | None:
    """The first plain convolution or linear layer whose every output channel is one unit of the group."""
    owners = [network.get_submodule(member.tensor.rpartition(".")[0]) for member in group.members]
    if any(isinstance(owner, nn.MultiheadAttention) for owner in owners):
        return None
    for member in group.members:
        path, _, leaf = member.tensor.rpartition(".")
        layer = network.get_submodule(path)
        if type(layer) in PRUNE_OUT and leaf == "weight" and member.axis == 0 and getattr(layer, "groups", 1) == 1:
            whole = bool((member.unit_of >= 0).all()) and len(member.unit_of) == group.channels
            return path if whole else None
    return None


def masks(network: nn.Module, structure: Structure) -> tuple[Keep, dict[str, list[int]]]:
    """A random half of every group that a layer of its own makes; layer -> the channels that go."""
    generator = torch.Generator().manual_seed(0)
    made_by = {g.name: p for g in structure.groups if (p := producer(network, g)) is not None}
    keep = {
        g.name: torch.randperm(g.channels, generator=generator) < g.channels // 2
        for g in structure.groups
        if g.name in made_by
    }
    lost = lost_coordinates(structure, keep)
    return keep, {made_by[name]: lost[f"{made_by[name]}.weight", 0].tolist() for name in keep}


def theirs(network: nn.Module, x: Tensor, gone: dict[str, list[int]]) -> tuple[nn.Module, float, float]:
    """The slim network, seconds of the cut, seconds of building the dependency graph."""
    started = time.process_time()
    slim = copy.deepcopy(network)
    copied = time.process_time()
    graph = tp.DependencyGraph().build_dependency(slim, example_inputs=x)
    built = time.process_time()
    for path, indices in gone.items():
        layer = slim.get_submodule(path)
        graph.get_pruning_group(layer, PRUNE_OUT[type(layer)], indices).prune()
    return slim, time.process_time() - built + copied - started, built - copied


def ours(network: nn.Module, structure: Structure, keep: Keep) -> tuple[nn.Module, float]:
    started = time.process_time()
    slim = cut(network, structure, keep)
    return slim, time.process_time() - started


def same(a: nn.Module, b: nn.Module) -> None:
    """Both hold the same numbers under the same names."""
    others = b.state_dict()
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, others[name]), f"{name}: {list(tensor.shape)} and {list(others[name].shape)}"


def compare(name: str, rounds: int) -> dict[str, Any]:
    """Medians of one network."""
    torch.manual_seed(0)
    network = build.build_network(ModelPart(source=f"torchvision:{name}"), 1000).eval()
    x = torch.randn(2, 3, 224, 224)
    started = time.process_time()
    structure = find_groups(network, (x[:1],), PrunePart())
    found = time.process_time() - started
    structure = keep_cuttable(network, structure, (x,), gates_of, PrunePart())
    keep, gone = masks(network, structure)
    times: dict[str, list[float]] = {"ours": [], "theirs": [], "built": []}
    for i in range(rounds):
        runs = (lambda: ours(network, structure, keep), lambda: theirs(network, x[:1], gone))
        first, second = (run() for run in (runs if i % 2 == 0 else runs[::-1]))
        mine, other = (first, second) if i % 2 == 0 else (second, first)
        same(mine[0], other[0])
        for key, seconds in (("ours", mine[1]), ("theirs", other[1]), ("built", other[2])):
            times[key].append(seconds)
    return {
        "ours_s": round(median(times["ours"]), 4),
        "torch_pruning_s": round(median(times["theirs"]), 4),
        "ours_find_s": round(found, 3),
        "torch_pruning_find_s": round(median(times["built"]), 3),
        "groups": len(keep),
        "form": "module" if structure.blueprint is None else "graph",
        "rounds": rounds,
    }


def main() -> None:
    """Compare and write benchmarks/results/cut_speed.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = {}
    for name in arguments.names:
        rows[name] = compare(name, arguments.rounds)
        print(name, rows[name], flush=True)
    if tuple(arguments.names) == NAMES:
        _results.write("cut_speed", {"rows": rows})


if __name__ == "__main__":
    main()
