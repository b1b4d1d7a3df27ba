"""Every format with every kind of input: exported and checked, or refused by the sentence of the table."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from input_kinds import KINDS, first
from torch import Tensor, nn

import deploy_prune
from deploy_prune.api.export import ConvertedWarning
from deploy_prune.device.targets import load_target
from deploy_prune.errors import ExportError, ParityError
from deploy_prune.export import FORMATS, isolated
from deploy_prune.export.inputs import TAKES, Takes, as_given, called_in_order, in_words, several
from deploy_prune.latency.measure import measure
from deploy_prune.recipe.parts import ExportPart

ROOT = Path(__file__).parents[2]
EXTRAS = {"litert": "litert_torch", "executorch": "executorch", "ncnn": "ncnn", "openvino": "openvino",
          "coreml": "coremltools", "mnn": "MNN"}  # fmt: skip
PAIRS = [(name, kind) for name in FORMATS if name not in ("tensorrt", "ort") for kind in KINDS] + [("ort", "named")]
LACKING = {
    ("mnn", "series"): "MNN can't convert the network",
    ("coreml", "series"): "operator lstm can't be computed here",
    ("coreml", "volume"): "'adaptive_avg_pool3d' not implemented",
}
"""Not the input, but an operator after it."""


def allows(takes: Takes, given: object) -> bool:
    inputs = several(given)
    types = {"float32" if x.is_floating_point() else str(x.dtype).removeprefix("torch.") for x in inputs}
    return types <= set(takes.types) and all(x.dim() in takes.ranks for x in inputs)


def marked(name: str, kind: str):
    return pytest.param(name, kind, marks=[getattr(pytest.mark, name)] if name in EXTRAS else [])


def require_extra(name: str) -> None:
    """Skip where the format's packages aren't installed."""
    if name in EXTRAS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip(EXTRAS[name])


@pytest.mark.parametrize(("name", "kind"), [marked(*pair) for pair in PAIRS])
def test_every_kind_of_input_is_exported_and_checked_or_refused(name, kind, tmp_path):
    require_extra(name)
    torch.manual_seed(0)
    make, inputs = KINDS[kind]
    network, x = make().eval(), inputs()
    path = tmp_path / f"a{FORMATS[name].suffix}"

    def export():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return deploy_prune.export_network(network, first(x), name, path=path, calibration=x)

    if not allows(TAKES[name], first(x)):
        with pytest.raises(ExportError, match=f"The format {name} can't take an input of .*It takes "):
            export()
    elif (name, kind) in LACKING:
        with pytest.raises(ExportError, match=LACKING[name, kind]):
            export()
    else:
        artifact = export()
        assert list(artifact.shapes) == [tuple(one.shape) for one in several(first(x))]
        assert path.exists()
        return
    assert not path.exists()


def test_the_table_is_of_every_format_and_in_the_documentation():
    assert set(TAKES) == set(FORMATS)
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8").replace("int64 (as int32)", "int64")
    for name, takes in TAKES.items():
        assert f"| `{name}` | {in_words(takes)}" in text


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (torch.zeros(1, 3).to(torch.complex64), "can't take an input of complex64"),
        (torch.zeros(1, 3, dtype=torch.uint8), "can't take an input of uint8"),
        (torch.tensor(1.0), "can't take an input of 0 dimensions"),
        ((torch.zeros(1, 3), 2.0), "can't take inputs that are no tensors"),
        ((), "can't take inputs that are no tensors"),
        (torch.zeros(0, 3), "can't take an input without values"),
    ],
)
def test_what_no_file_can_take_is_refused_before_the_network_is_run(given, told, tmp_path):
    class Never(nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            pytest.fail("it was run")

    with pytest.raises(ExportError, match=told):
        deploy_prune.export_network(Never(), given, path=tmp_path / "a.onnx")


def test_several_inputs_are_refused_where_a_format_takes_one(tmp_path):
    make, inputs = KINDS["two"]
    with pytest.raises(ExportError, match="The format tensorrt can't take 2 inputs. It takes one input of"):
        deploy_prune.export_network(make(), first(inputs()), "tensorrt", path=tmp_path / "a.tensorrt")


def test_calibration_inputs_must_be_given_as_the_example_is(tmp_path):
    make, inputs = KINDS["two"]
    x = inputs()
    for wrong in (x[0], (x[1], x[0]), (x[0], x[1].long()), {"a": x[0], "b": x[1]}):
        with pytest.raises(ExportError, match="must be given as the example is"):
            deploy_prune.export_network(make(), first(x), path=tmp_path / "a.onnx", calibration=wrong)


def test_named_inputs_may_come_in_any_order(tmp_path):
    make, inputs = KINDS["named"]
    x, network = inputs(), make().eval()
    turned = {"mask": x["mask"], "tokens": x["tokens"]}
    artifact = deploy_prune.export_network(network, first(x), path=tmp_path / "a.onnx", calibration=turned)
    assert [one.type for one in artifact.inputs] == ["int64", "bool"]


def test_a_fault_shows_with_several_inputs(tmp_path):
    """The second input's layer is another one's."""
    make, inputs = KINDS["two"]
    x, network = inputs(), make().eval()
    artifact = isolated.write("onnx", network, first(x), tmp_path / "a.onnx", "fp32", ExportPart())
    network.b.weight.data[0, 0] += 1
    with pytest.raises(ParityError, match="differs from the network"):
        deploy_prune.export.parity.check_parity(network, artifact, x)


def test_half_precision_weights_are_turned_into_float32_and_it_is_said(tmp_path):
    make, inputs = KINDS["half"]
    x, network = inputs(), make().eval()
    with pytest.warns(ConvertedWarning, match="weights in bfloat16 were turned into float32 first"):
        deploy_prune.export_network(network, first(x), path=tmp_path / "a.onnx", calibration=x)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["two", "tokens"])
def test_int8_is_calibrated_on_every_input(kind, tmp_path):
    make, inputs = KINDS[kind]
    torch.manual_seed(0)
    x = inputs()
    deploy_prune.export_network(make().eval(), first(x), "onnx", "int8", path=tmp_path / "a.onnx", calibration=x)


MEASURED = [("onnx", "two"), ("onnx", "named"), ("onnx", "volume"), ("litert", "two"), ("executorch", "tokens"),
            ("ncnn", "two"), ("openvino", "named"),
            ("mnn", "named")]  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), [marked(*pair) for pair in MEASURED])
def test_files_of_any_inputs_are_measured(name, kind, tmp_path):
    require_extra(name)
    make, inputs = KINDS[kind]
    example, path = first(inputs()), tmp_path / f"a{FORMATS[name].suffix}"
    network = called_in_order(make().eval(), example)
    artifact = isolated.write(name, network, as_given(several(example)), path, "fp32", ExportPart())
    target = replace(load_target("host"), format=name, runtime=FORMATS[name].runtime)
    (latency,) = measure(target, [artifact], 10, 2, min_s=0.01)
    assert latency.p50_ms > 0


def test_an_open_batch_is_every_inputs(tmp_path):
    make, inputs = KINDS["two"]
    part, x = ExportPart(dynamic_batch=True), inputs()
    deploy_prune.export_network(make().eval(), first(x), path=tmp_path / "a.onnx", calibration=x, part=part)
