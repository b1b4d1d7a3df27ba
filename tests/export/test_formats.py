"""Every format: the same contract."""

import json
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from deploy_prune import device
from deploy_prune.errors import ExportError, MeasurementError, MissingDependencyError, ParityError
from deploy_prune.export import FORMATS
from deploy_prune.export.artifact import Extra, describe, flatten, require
from deploy_prune.export.parity import TOLERANCE, check_parity
from deploy_prune.recipe.parts import ExportPart

EXAMPLE = torch.zeros(1, 3, 16, 16)
FORMAT_NAMES = sorted(name for name, form in FORMATS.items() if form.runtime == "onnxruntime")
"""Those that the core dependencies run; test_faults.py holds all to parity, and each has a file of its own."""


class Small(nn.Module):
    """Convolution, batch-norm, depthwise, dropout and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depth(self.norm(self.stem(x)).relu()).relu()
        return self.head(self.drop(x.mean((2, 3))))


class Two(nn.Module):
    """A dict of outputs, one of them nested."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Small()
        self.extra = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> dict[str, object]:
        y = self.body(x)
        return {"scores": y, "more": [self.extra(y), x.mean((2, 3))]}


def network(seed: int = 0, kind: type[nn.Module] = Small) -> nn.Module:
    torch.manual_seed(seed)
    made = kind()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_()
    return made


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=FORMAT_NAMES)
def written(request, tmp_path_factory):
    form = FORMATS[request.param]
    path = tmp_path_factory.mktemp("written") / f"a{form.suffix}"
    net = network()
    return form, net, form.write(net, EXAMPLE, path, "fp32", ExportPart())


def test_parity_in_its_own_runtime(written):
    _, net, artifact = written
    parity = check_parity(net, artifact, images())
    assert parity.num_inputs == 4
    assert 0 <= parity.max_rel <= TOLERANCE
    assert parity.max_abs <= 1e-4


def test_artifact_is_described(written):
    form, _, artifact = written
    assert artifact.format in FORMATS
    assert FORMATS[artifact.format] is form
    assert artifact.input_shape == (1, 3, 16, 16)
    assert artifact.size_bytes > 100
    again = describe(
        artifact.path, format=artifact.format, precision="fp32", input_shape=(1, 3, 16, 16), versions=artifact.versions
    )
    assert again == artifact


def test_mode_is_restored_and_dropout_is_off(written, tmp_path):
    form, _, _ = written
    net = network().train()
    net.norm.eval()
    artifact = form.write(net, EXAMPLE, tmp_path / f"m{form.suffix}", "fp32", ExportPart())
    assert net.training
    assert not net.norm.training
    assert net.drop.training
    check_parity(net, artifact, images())
    assert net.training


def test_same_weights_same_bytes(as_onnx, tmp_path):
    """Other formats' libraries don't all promise it."""
    form, net, artifact = as_onnx
    again = form.write(net, EXAMPLE, tmp_path / f"b{form.suffix}", "fp32", ExportPart())
    other = form.write(network(7), EXAMPLE, tmp_path / f"c{form.suffix}", "fp32", ExportPart())
    assert again.sha256 == artifact.sha256
    assert other.sha256 != artifact.sha256


def test_no_paths_in_the_file(written):
    _, _, artifact = written
    data = artifact.path.read_bytes()
    for secret in (str(Path.home()), str(Path(__file__).parents[2]), "site-packages", 'File \\"', __name__):
        assert secret.encode() not in data


def test_batches_are_split_and_put_together(written):
    form, net, artifact = written
    found = device.run(artifact, images(3), form.runtime)
    assert [y.shape for y in found] == [torch.Size([3, 5])]
    torch.testing.assert_close(found[0], net.eval()(images(3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_dynamic_batch(name, tmp_path):
    form, net = FORMATS[name], network()
    artifact = form.write(net, EXAMPLE, tmp_path / f"d{form.suffix}", "fp32", ExportPart(dynamic_batch=True))
    check_parity(net, artifact, images(3))
    assert artifact.input_shape == (1, 3, 16, 16)


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_several_outputs_are_all_compared(name, tmp_path):
    form, net = FORMATS[name], network(kind=Two)
    artifact = form.write(net, EXAMPLE, tmp_path / f"t{form.suffix}", "fp32", ExportPart())
    assert [y.shape[1] for y in device.run(artifact, images(2), form.runtime)] == [5, 2, 3]
    check_parity(net, artifact, images())
    net.extra.weight.data[0, 0] += 1
    with pytest.raises(ParityError, match="differs from the network"):
        check_parity(net, artifact, images())


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_unknown_precision_is_refused(name, tmp_path):
    form = FORMATS[name]
    with pytest.raises(ExportError, match="fp7"):
        form.write(network(), EXAMPLE, tmp_path / "p", "fp7", ExportPart())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_a_network_that_cannot_be_exported(name, tmp_path):
    class Bad(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if float(x.sum()) > 0 else x

    with pytest.raises(ExportError) as caught:
        FORMATS[name].write(Bad(), EXAMPLE, tmp_path / "bad", "fp32", ExportPart())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert "must not depend on a tensor's values" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def damaged(artifact, path: Path):
    """The same ONNX file with one weight's sign turned."""
    model = onnx.load(artifact.path)
    entry = next(e for e in model.graph.initializer if e.name == "head.weight")
    value = numpy.array(numpy_helper.to_array(entry))
    value[0, 0] *= -1
    entry.CopyFrom(numpy_helper.from_array(value, entry.name))
    onnx.save(model, path)
    return describe(path, format="onnx", precision="fp32", input_shape=artifact.input_shape, versions={})


@pytest.fixture(scope="module")
def as_onnx(tmp_path_factory):
    net = network()
    path = tmp_path_factory.mktemp("as_onnx") / "a.onnx"
    return FORMATS["onnx"], net, FORMATS["onnx"].write(net, EXAMPLE, path, "fp32", ExportPart())


def test_planted_fault_is_caught(as_onnx, tmp_path):
    _, net, artifact = as_onnx
    with pytest.raises(ParityError, match="differs from the network by"):
        check_parity(net, damaged(artifact, tmp_path / "f.onnx"), images())


def test_vacuous_comparisons_are_refused(written):
    _, net, artifact = written
    with pytest.raises(ParityError, match="proves nothing"):
        check_parity(net, artifact, images(1))
    with pytest.raises(ParityError, match="proves nothing"):
        check_parity(net, artifact, images(1).expand(4, -1, -1, -1))


def test_not_finite_is_refused(written):
    _, _, artifact = written
    broken = network()
    broken.head.bias.data[0] = float("nan")
    with pytest.raises(ParityError, match="not finite"):
        check_parity(broken, artifact, images())


def test_other_outputs_are_refused(written):
    _, _, artifact = written
    with pytest.raises(ParityError, match="outputs"):
        check_parity(network(kind=Two), artifact, images())


def test_onnx_opset_is_the_one_asked_for(as_onnx, tmp_path, monkeypatch):
    _, net, artifact = as_onnx
    assert [(e.domain, e.version) for e in onnx.load(artifact.path).opset_import] == [("", 18)]
    real = torch.onnx.export

    def other_opset(*args, **kwargs):
        return real(*args, **{**kwargs, "opset_version": 20})

    monkeypatch.setattr(torch.onnx, "export", other_opset)
    with pytest.raises(ExportError, match="left opset 20 where export.opset asks for 18"):
        FORMATS["onnx"].write(net, EXAMPLE, tmp_path / "o.onnx", "fp32", ExportPart())


def test_a_truncated_file_is_refused(written):
    _, net, artifact = written
    path = artifact.path.with_name(f"cut{artifact.path.suffix}")
    path.write_bytes(artifact.path.read_bytes()[: artifact.size_bytes // 2])
    cut = describe(path, format=artifact.format, precision="fp32", input_shape=artifact.input_shape, versions={})
    with pytest.raises(MeasurementError, match="can't be run in onnxruntime"):
        check_parity(net, cut, images())


def test_an_edited_file_is_refused(written, tmp_path):
    _, net, artifact = written
    path = tmp_path / f"edited{artifact.path.suffix}"
    path.write_bytes(artifact.path.read_bytes() + b" ")
    with pytest.raises(MeasurementError, match="has changed since it was written"):
        check_parity(net, replace(artifact, path=path), images())


def test_missing_packages_and_precisions_are_named():
    kind = SimpleNamespace(precisions=("fp32", "fp16"), extra=Extra(name="abacus", modules=("numpy", "beads", "wires")))
    with pytest.raises(ExportError, match="format wood can't be written in int8; it has fp32, fp16"):
        require("wood", kind, "int8")
    with pytest.raises(MissingDependencyError) as caught:
        require("wood", kind, "fp16")
    told = "This needs beads and wires, which are not installed: pip install 'deploy-prune[abacus]'"
    assert str(caught.value) == told
    require("wood", SimpleNamespace(precisions=("fp32",), extra=None), "fp32")


def test_a_folder_is_described_by_all_its_files(tmp_path):
    def folder(name, param="a", size=3):
        place = tmp_path / name / "model"
        (place / "deep").mkdir(parents=True)
        (place / "model.param").write_text(param)
        (place / "deep" / "model.bin").write_bytes(b"x" * size)
        return describe(place, format="onnx", precision="fp32", input_shape=(1,), versions={})

    one, same = folder("one"), folder("same")
    assert one.sha256 == same.sha256
    assert one.size_bytes == 4
    assert len({one.sha256, folder("text", param="b").sha256, folder("size", size=2).sha256}) == 3
    (same.path / "deep" / "model.bin").rename(same.path / "model.bin")
    assert describe(same.path, format="onnx", precision="fp32", input_shape=(1,), versions={}).sha256 != one.sha256


def test_missing_file(tmp_path):
    with pytest.raises(ExportError, match="export it again"):
        describe(tmp_path / "no.onnx", format="onnx", precision="fp32", input_shape=(1,), versions={})


def test_flatten_keeps_order_and_refuses_others():
    a, b, c = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    assert [y.numel() for y in flatten(OrderedDict(z=a, m=[b, None], a=(c,)))] == [1, 2, 3]
    with pytest.raises(ExportError, match="str"):
        flatten({"a": "text"})


@pytest.mark.slow
def test_same_bytes_in_another_process(as_onnx):
    _, _, artifact = as_onnx
    code = (
        "import sys, json, torch; sys.path[:0] = [sys.argv[1]];"
        "import test_formats as t; from pathlib import Path;"
        "from deploy_prune.export import FORMATS; from deploy_prune.recipe.parts import ExportPart;"
        "artifact = FORMATS['onnx'].write(t.network(), t.EXAMPLE, Path(sys.argv[2]), 'fp32', ExportPart());"
        "print(json.dumps(artifact.sha256))"
    )
    args = [sys.executable, "-c", code, str(Path(__file__).parent), str(artifact.path.with_name("again.onnx"))]
    done = subprocess.run(args, capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout) == artifact.sha256
    assert "warn" not in done.stderr.lower()
    assert "torch.onnx" not in done.stdout


class BiasedAttention(nn.Module):
    """Attention with a learned table of biases, its heads joined by a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.table = nn.Linear(8, 24), nn.Parameter(torch.randn(81, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(x, 3).flatten(1).view(-1, 3, 9).transpose(1, 2)
        x = nn.functional.pad(x, (0, 5))
        q, k, v = self.qkv(x).view(-1, 9, 3, 2, 4).permute(2, 0, 3, 1, 4)
        bias = self.table[torch.arange(81)].view(9, 9, 2).permute(2, 0, 1).contiguous().unsqueeze(0)
        x = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return x.transpose(1, 2).reshape(-1, 9, 8).mean(1)


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_attention_with_a_learned_bias_is_written(name, tmp_path):
    kind, network = FORMATS[name], BiasedAttention().eval()
    artifact = kind.write(network, EXAMPLE, tmp_path / f"a{kind.suffix}", "fp32", ExportPart())
    assert check_parity(network, artifact, torch.randn(4, 3, 16, 16)).max_abs < TOLERANCE
