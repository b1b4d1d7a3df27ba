"""An ARM processor in emulation: artifacts that were written here are run there by the payload's own programs.

The device is a real ssh server on this machine whose python3 is Debian's for aarch64, run by QEMU. What it computes is
what that processor's kernels compute; what time it takes says nothing.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from boards import need, on_arm, ssh_board
from bundles import artifact, images, inputs, made, network, replace_artifact
from torch import nn

from deploy_prune import device
from deploy_prune.device import ABOUT, reach
from deploy_prune.device.address import parse
from deploy_prune.device.new_target import new_target
from deploy_prune.device.remote import push_path, workspace
from deploy_prune.device.ssh import Ssh
from deploy_prune.device.targets import load_target
from deploy_prune.errors import CommandError, ParityError
from deploy_prune.export import FORMATS, parity
from deploy_prune.export.parity import check_parity
from deploy_prune.latency.measure import measure
from deploy_prune.types import Artifact

pytestmark = pytest.mark.arm
CPUS = ("cortex-a72", "cortex-a76")
"""A Raspberry Pi 4's, and a Raspberry Pi 5's, which also computes in half precision and has dot products in int8."""
NOT_THERE = {
    "coreml": "it runs on Apple's systems only",
    "executorch": "its Python package takes all of torch along",
    "tensorrt": "it takes an Nvidia GPU",
}
"""Formats that aren't run here, and why."""
KINDS = [(name, precision) for name in FORMATS if name not in NOT_THERE for precision in FORMATS[name].precisions]


@pytest.fixture(scope="module", params=CPUS)
def arm(request, tmp_path_factory) -> Iterator[str]:
    """The device's name."""
    need("sshd", "ssh", "ssh-keygen")
    with ssh_board(tmp_path_factory.mktemp("arm")) as board:
        on_arm(board, request.param)
        yield board.name


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def kind(request) -> tuple[str, str]:
    extra = FORMATS[request.param[0]].extra
    for module in extra.modules if extra else ():
        pytest.importorskip(module)
    return request.param


@pytest.fixture(scope="module")
def written(kind, tmp_path_factory) -> Artifact:
    """Not to be changed."""
    return artifact(tmp_path_factory.mktemp("written"), kind)


@pytest.fixture(scope="module")
def other() -> nn.Module:
    """The network with its head's first two outputs in each other's place."""
    net = network()
    for tensor in (net.head.weight.data, net.head.bias.data):
        tensor[[0, 1]] = tensor[[1, 0]]
    return net


def verified(device_name: str, bundle: Path) -> list[str]:
    """What the bundle's own program says there, line by line."""
    address = parse(device_name)
    assert address is not None
    with workspace(Ssh(address=address), 300) as there:
        place = shlex.quote(push_path(there, bundle))
        return there.shell(f"python3 -I -B {place}/python/verify.py").splitlines()


def test_it_is_an_arm_processor(arm, tmp_path):
    told = reach(arm)(ABOUT, {}, 60)
    assert told["about"]["system"] == "Linux aarch64"
    assert told["device"].startswith("ARMv8 Processor")
    target = load_target(str(new_target("board", arm, tmp_path / "board.yaml")))
    assert (target.runner, target.format) == (arm, "onnx")


def test_its_outputs_are_the_networks(arm, written, other, monkeypatch):
    """Within the limits that hold on this machine; those of another network are beyond them."""
    monkeypatch.setattr(parity.device, "run", partial(device.run, runner=arm))
    x = inputs(images(16))
    assert check_parity(network(), written, x).num_inputs == len(x)
    with pytest.raises(ParityError, match="differs from the network"):
        check_parity(other, written, x)


def test_a_bundle_proves_itself_there(arm, kind, other, tmp_path):
    """And one with another network's artifact and sums that fit doesn't."""
    bundle = made(tmp_path, kind).folder
    assert [line.split(":")[0] for line in verified(arm, bundle)] == ["files", "preprocessing", "parity"]
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").mkdir()
    replace_artifact(bundle, artifact(tmp_path / "run", kind, other).path)
    with pytest.raises(CommandError, match="differs from the network"):
        verified(arm, bundle)


def test_it_is_timed_there(arm, kind, written):
    target = replace(load_target("host"), runner=arm, runtime=FORMATS[kind[0]].runtime)
    (latency,) = measure(target, [written], runs=5, warmup=3, min_s=0)
    assert len(latency.samples_ms) == 5
    assert latency.measured_on == arm
    assert latency.device.startswith("ARMv8 Processor")
