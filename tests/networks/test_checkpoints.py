"""Weights as people save them: what is taken, what is refused, and that nothing in a file is run."""

import argparse
import io
import logging
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from deploy_prune.errors import WeightsError
from deploy_prune.networks.checkpoints import read_all
from deploy_prune.networks.cifar_resnet import CifarResNet
from deploy_prune.networks.weights import load_given, load_weights
from deploy_prune.recipe.parts import ModelPart


def fresh(seed=0, outputs=2):
    torch.manual_seed(seed)
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), fc=nn.Linear(4, outputs)))


STATE = fresh(1).state_dict()
OTHER = fresh(2).state_dict()


def under(prefix, state=STATE):
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


def holds(network, state):
    return all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def loaded(tmp_path, saved, **options):
    network = fresh()
    torch.save(saved, tmp_path / "w.pt")
    return network, load_weights(network, tmp_path / "w.pt", **options)


AVERAGE = {"n_averaged": torch.tensor(5), **under("module.", OTHER)}
ARGS = argparse.Namespace(lr=0.1, out=Path("x"))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("saved", "key"),
    [
        (STATE, ""),
        (under("module."), "module"),
        (under("_orig_mod."), ""),
        (under("module._orig_mod."), "module"),
        (under("_orig_mod.module."), "module"),
        (under("backbone.encoder."), "backbone.encoder"),
        ({"conv._orig_mod.weight" if n == "conv.weight" else n: t for n, t in STATE.items()}, ""),
        ({"state_dict": under("model."), "epoch": 3, "hyper_parameters": ARGS, "loops": {}}, "state_dict.model"),
        ({"state_dict": {**under("net."), "criterion.weight": torch.ones(2)}}, "state_dict.net"),
        ({"state_dict": {**STATE, "criterion.weight": torch.ones(2)}}, "state_dict"),
        ({**STATE, "total_ops": torch.ones(1), "conv.total_params": torch.ones(1)}, ""),
        ({"model": STATE, "args": ARGS, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, "model"),
        ({"state_dict_ema": under("module."), "arch": "x"}, "state_dict_ema.module"),
        *(
            ({name: STATE, "acc": 1.5}, name)
            for name in ("model_state_dict", "model_state", "net", "weights", "params")
        ),
        ({"generator": STATE, "discriminator": {"a.weight": torch.ones(2)}}, "generator"),
        ({"checkpoint": {"model": STATE}}, "checkpoint.model"),
        ({n: nn.Parameter(t, requires_grad=False) for n, t in STATE.items()}, ""),
        ({n: t.numpy() for n, t in STATE.items()}, ""),
        ({n: t for n, t in STATE.items() if "num_batches" not in n}, ""),
        (OrderedDict(STATE, __version__=2), ""),
    ],
)
def test_the_networks_tensors_are_found(tmp_path, saved, key, legacy):
    network = fresh()
    torch.save(saved, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    taken = load_weights(network, tmp_path / "w.pt")
    assert holds(network, STATE | {n: t for n, t in network.state_dict().items() if "num_batches" in n})
    assert taken.key == key


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_widths_are_cast(tmp_path, dtype):
    network, _ = loaded(tmp_path, {n: t.to(dtype) if t.is_floating_point() else t for n, t in STATE.items()})
    assert torch.equal(network.fc.weight, STATE["fc.weight"].to(dtype).float())


def test_views_and_shared_storages(tmp_path):
    whole = torch.randn(20)
    state = STATE | {"bn.weight": whole[3:11:2], "bn.bias": whole[:1].expand(4), "conv.bias": whole.flip(0)[:4]}
    state["fc.weight"] = torch.randn(4, 2).T
    network, _ = loaded(tmp_path, state)
    assert holds(network, state)


def test_safetensors_have_prefixes_too(tmp_path):
    network = fresh()
    save_file(under("model._orig_mod."), tmp_path / "w.safetensors")
    assert load_weights(network, tmp_path / "w.safetensors").key == "model"
    assert holds(network, STATE)
    assert read_all(tmp_path / "w.safetensors").keys() == STATE.keys()


# --- several that fit ---


@pytest.mark.parametrize(
    ("saved", "average", "plain"),
    [
        ({"state_dict": STATE, "state_dict_ema": OTHER, "args": ARGS}, "state_dict_ema", "state_dict"),
        ({"model": STATE, "model_ema": AVERAGE, "args": ARGS}, "model_ema.module", "model"),
        ({"params": STATE, "params_ema": OTHER}, "params_ema", "params"),
        ({"state_dict": {**under("model."), **under("ema_model.", OTHER)}}, "state_dict.ema_model", "state_dict.model"),
    ],
)
def test_an_average_is_taken_unless_the_key_says_otherwise(tmp_path, caplog, saved, average, plain):
    network, taken = loaded(tmp_path, saved)
    assert (taken.key, taken.others, holds(network, OTHER)) == (average, (plain,), True)
    assert f"{average} is taken, the average of the weights" in caplog.text
    assert f"(model.weights_key takes another: {plain})" in caplog.text
    network, taken = loaded(tmp_path, saved, key=plain)
    assert (taken.key, holds(network, STATE)) == (plain, True)


def test_where_nothing_says_which_the_user_does(tmp_path):
    saved = {"student": STATE, "teacher": OTHER}
    with pytest.raises(WeightsError, match=r"weights_key: .* several state dicts that fit .*, student, teacher; write"):
        loaded(tmp_path, saved)
    assert holds(loaded(tmp_path, saved, key="teacher")[0], OTHER)
    with pytest.raises(WeightsError, match=r"has no state dict 'pupil'; it has student, teacher\."):
        loaded(tmp_path, saved, key="pupil")
    assert loaded(tmp_path, {"a": STATE, "b": STATE})[1].key == "a"  # the same tensors


def test_what_is_taken_and_left_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    _, taken = loaded(tmp_path, {"state_dict": {**under("model."), "criterion.weight": torch.ones(2)}})
    assert taken.left == ("criterion.weight",)
    assert (
        "state_dict.model is taken, the only one that fits; not the network's, and left out: criterion" in caplog.text
    )


# --- other classes ---


def test_a_head_of_other_classes_is_offered_and_left_out(tmp_path):
    saved = CifarResNet(20, num_classes=100).state_dict()
    torch.save({"state_dict": under("model.", saved)}, tmp_path / "w.pt")
    part = ModelPart(source="resnet20", weights=str(tmp_path / "w.pt"))
    network = CifarResNet(20, num_classes=10)
    before = network.linear.weight.clone()
    with pytest.raises(WeightsError) as caught:
        load_given(network, part, 10)
    assert "linear.weight is [100, 64] in the file and [10, 64] in the network; if these are 100" in str(caught.value)
    assert "model.head: new leaves linear.weight, linear.bias out" in str(caught.value)
    load_given(network, part.model_copy(update={"head": "new"}), 10)
    assert torch.equal(network.linear.weight, before)
    assert torch.equal(network.conv1.weight, saved["conv1.weight"])


def test_a_file_without_a_head_is_a_case_for_a_new_one(tmp_path):
    saved = {name: tensor for name, tensor in STATE.items() if not name.startswith("fc")}
    with pytest.raises(
        WeightsError, match=r"lacks fc\.weight, fc\.bias; if these are the class layers, model\.head: new"
    ):
        loaded(tmp_path, saved)
    assert torch.equal(loaded(tmp_path, saved, fresh={"fc.weight", "fc.bias"})[0].conv.weight, STATE["conv.weight"])


def test_a_pickle_of_too_many_steps_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("deploy_prune.system.pickles.MAX_OPCODES", 1000)
    (tmp_path / "w.pt").write_bytes(b"\x80\x02" + b"]" * 2000 + b".")
    with pytest.raises(WeightsError, match="more than 1000 steps"):
        load_weights(fresh(), tmp_path / "w.pt")


def test_another_network_is_not_taken_for_other_classes(tmp_path):
    wide = OrderedDict(STATE, **{"conv.weight": torch.zeros(8, 3, 3, 3), "fc.weight": torch.zeros(5, 4)})
    with pytest.raises(WeightsError) as caught:
        loaded(tmp_path, wide)
    assert "model.head" not in str(caught.value)


# --- what is refused ---


class Planted:
    def __reduce__(self):
        return Path.touch, (Path("planted"),)


class Whatever:
    """Some class of the user's."""


def test_unknown_objects_beside_are_neither_run_nor_in_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(Whatever, "__setstate__", lambda *_: pytest.fail("it was built"), raising=False)
    thing = Whatever()
    thing.some = [1]
    network, _ = loaded(tmp_path, {"state_dict": STATE, "callbacks": thing, "where": Path("a"), "kind": torch.float16})
    assert holds(network, STATE)


@pytest.mark.parametrize("saved", [{"state_dict": STATE, "x": Planted()}, Planted(), [Planted()]])
def test_files_that_would_run_code_are_refused_and_run_none(tmp_path, monkeypatch, saved):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="pickled Python objects that would run code"):
        loaded(tmp_path, saved)
    assert not Path("planted").exists()


@pytest.mark.filterwarnings("ignore")
def test_sparse_and_quantised_and_scripted(tmp_path):
    with pytest.raises(WeightsError, match=r"fc\.weight is sparse; save it as tensor\.to_dense"):
        loaded(tmp_path, STATE | {"fc.weight": STATE["fc.weight"].to_sparse()})
    quantised = torch.quantize_per_tensor(STATE["fc.weight"], 0.1, 0, torch.qint8)
    with pytest.raises(WeightsError, match=r"fc\.weight is quantised"):
        loaded(tmp_path, STATE | {"fc.weight": quantised})
    with pytest.raises(WeightsError, match="it is a quantised network's; give the weights of the float one"):
        loaded(tmp_path, {"fc.scale": torch.ones(1), "fc.zero_point": torch.zeros(1, dtype=torch.int64)})
    torch.jit.save(torch.jit.script(fresh()), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="TorchScript archive"):
        load_weights(fresh(), tmp_path / "w.pt")


def rezipped(whole, change):
    """The zip with every entry's content changed."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(made, "w") as new:
        for member in old.infolist():
            new.writestr(member.filename, change(member.filename, old.read(member)))
    return made.getvalue()


def whole(saved=STATE, **options):
    file = io.BytesIO()
    torch.save(saved, file, **options)
    return file.getvalue()


def huge(name, content):
    """A tensor that says it has 2**40 values."""
    return content.replace(b"K\x04K\x04\x86", b"\x8a\x06" + struct.pack("<q", 2**40)[:6] + b"K\x01\x86")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda: rezipped(whole(), lambda n, c: c[:-1] if "/data/" in n else c), "larger than what the file has of it"),
        (lambda: rezipped(whole({"x": torch.zeros(4, 4)}), huge), "can't be read|does not fit"),
        (lambda: rezipped(whole(), lambda n, c: b"big" if "byteorder" in n else c), "big-endian"),
        (lambda: rezipped(whole(), lambda n, c: b"junk" if n.endswith("pkl") else c), "no whole pickle"),
        (lambda: whole(_use_new_zipfile_serialization=False)[:-5], "cut off"),
        (lambda: b"PK\x03\x04" + bytes(40), "damaged"),
        (lambda: b"<html>", "no whole pickle"),
        (lambda: pickle.dumps({"a": 1}), "not a state dict"),
    ],
)
def test_damaged_files_are_one_sentence(tmp_path, content, says):
    (tmp_path / "w.pt").write_bytes(content())
    with pytest.raises(WeightsError, match=says) as caught:
        load_weights(fresh(), tmp_path / "w.pt")
    assert "\n" not in str(caught.value)


def test_compressed_parts_are_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_BZIP2) as packed:
        packed.writestr("w/data.pkl", bytes(1 << 24))
    with pytest.raises(WeightsError, match="compressed"):
        load_weights(fresh(), tmp_path / "w.pt")


NEW, OLD = whole({"state_dict": STATE}), whole({"state_dict": STATE}, _use_new_zipfile_serialization=False)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.sampled_from([NEW, OLD, rezipped(NEW, lambda n, c: c)]),
    cuts=st.lists(st.tuples(st.integers(0, len(OLD)), st.integers(0, 40), st.binary(max_size=12)), max_size=3),
)
def test_no_damaged_file_ends_in_anything_but_an_error(tmp_path, start, cuts):
    for at, length, new in cuts:
        start = start[:at] + new + start[at + length :]
    (tmp_path / "w.pt").write_bytes(start)
    network = fresh()
    try:
        load_weights(network, tmp_path / "w.pt")
    except WeightsError:
        return
    assert all(np.isfinite(tensor.numpy()).all() for tensor in network.state_dict().values())
