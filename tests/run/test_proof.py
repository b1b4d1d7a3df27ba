"""What int8 is calibrated on, and what is said of an artifact."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from deploy_prune.api import export
from deploy_prune.commands.outcome import write_artifact
from deploy_prune.data.examples import ClassExamples
from deploy_prune.errors import ParityError
from deploy_prune.export import onnx
from deploy_prune.export.parity import Parity
from deploy_prune.recipe.parts import ExportPart
from deploy_prune.run import proof, stages
from deploy_prune.run.folder import RunFolder
from deploy_prune.tasks import Score
from deploy_prune.tasks.classification import CLASSIFICATION, CLASSIFIER
from deploy_prune.types import Artifact


def examples(count, value):
    images = torch.full((count, 1, 4, 4), value)
    return ClassExamples(images=images, labels=torch.zeros(count).long(), mean=torch.zeros(1), std=torch.ones(1))


@pytest.mark.parametrize(("wanted", "target", "source"), [(3, 3, 0), (10, 6, 4), (100, 6, 20)])
def test_calibration_takes_the_target_tasks_examples_first(wanted, target, source):
    data = SimpleNamespace(target_train=examples(6, 0.25), source_train=examples(20, 0.75))
    (x,) = proof.calibration_inputs(data, wanted)
    assert x.shape == (target + source, 1, 4, 4)
    assert x[:, 0, 0, 0].tolist() == [0.25] * target + [0.75] * source


@pytest.mark.parametrize("wanted", [2, 3, 7, 19, 20])
def test_calibration_examples_are_spread_evenly(wanted):
    """Images lie class by class: the first ones are all of one class."""
    images = torch.arange(20.0).view(-1, 1, 1, 1).expand(-1, 1, 4, 4) / 20
    ordered = ClassExamples(images=images, labels=torch.zeros(20).long(), mean=torch.zeros(1), std=torch.ones(1))
    data = SimpleNamespace(target_train=ordered, source_train=examples(20, 0.75))
    (taken,) = proof.calibration_inputs(data, wanted)
    taken = (taken[:, 0, 0, 0] * 20).round()
    gaps = taken.diff().tolist()
    assert (len(taken), taken[0], taken[-1]) == (wanted, 0, 19)
    assert max(gaps) - min(gaps) <= 1


def context(tmp_path, told, drop=0.02, score=CLASSIFICATION.score):
    folder = RunFolder(path=tmp_path)
    folder.write_json("host/50%/parity.json", told)
    recipe = SimpleNamespace(export=ExportPart(max_score_drop=drop))
    return SimpleNamespace(folder=folder, recipe=recipe, task=SimpleNamespace(score=score))


def test_an_artifact_that_loses_too_much_is_refused(tmp_path):
    assert stages.require_score(context(tmp_path, {"max_abs": 0.1}), "host/50%") is None
    assert stages.require_score(context(tmp_path, {"score": 0.9, "score_artifact": 0.885}), "host/50%") == 0.885
    with pytest.raises(ParityError, match=r"accuracy is 87.0%, the network's 90.0%; it may be worse by 2.0%.*fp16"):
        stages.require_score(context(tmp_path, {"score": 0.9, "score_artifact": 0.87}), "host/50%")


def test_a_drop_may_be_a_share_of_the_score_and_less_may_be_better(tmp_path):
    error = Score(name="end-point error", unit="px", higher=False)
    told = {"score": 4.0, "score_artifact": 4.3}
    assert stages.require_score(context(tmp_path, told, "10%", error), "host/50%") == 4.3
    assert stages.require_score(context(tmp_path, {**told, "score_artifact": 1.0}, 0.0, error), "host/50%") == 1.0
    with pytest.raises(ParityError, match=r"end-point error is 4.30 px, the network's 4.00 px; .* worse by 0.200 px"):
        stages.require_score(context(tmp_path, told, "5%", error), "host/50%")


class Brightest(nn.Module):
    """Logits are the pixels themselves: the brightest pixel is the class."""

    def forward(self, x):
        return x.flatten(1)


def pictures(labels):
    """A picture each, whose brightest pixel is the first label's."""
    images = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = 255
    return ClassExamples(images=images, labels=torch.tensor(labels), mean=torch.zeros(1), std=torch.ones(1))


@pytest.mark.parametrize(
    ("labels", "batch", "share"),
    [([0, 0, 1, 0], 1, 3 / 4), ([1, 1, 1], 1, 0.0), ([0, 1, 0, 0, 1], 2, 3 / 4)],
    ids=["three of four", "none", "the last one fills no batch"],
)
def test_an_artifacts_score_is_of_the_examples_that_fill_batches(tmp_path, monkeypatch, labels, batch, share):
    monkeypatch.setattr(proof, "CHUNK", 3)  # several turns
    network, example = Brightest(), torch.zeros(batch, 1, 2, 2)
    artifact = onnx.write(network, example, tmp_path / "net.onnx", "fp32", ExportPart())
    assert CLASSIFIER.judge(proof._outputs_and_targets(network, artifact, pictures(labels))) == share


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("runs_here", [True, False])
def test_artifacts_are_judged_on_examples_of_every_class(precision, runs_here, monkeypatch, tmp_path):
    """Images lie class by class: the first ones are all of one class."""
    labels = torch.arange(4).repeat_interleave(100)
    images = labels.div(4).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    test = ClassExamples(images=images, labels=labels, mean=torch.zeros(1), std=torch.ones(1))
    seen = []

    def compared(network, artifact, inputs):
        (inputs,) = inputs
        seen.append(set((inputs[:, 0, 0, 0] * 4).round().int().tolist()))
        return Parity(max_abs=0.0, max_rel=0.0, tolerance=1e-4, num_inputs=len(inputs))

    monkeypatch.setattr(proof, "can_run", lambda artifact: runs_here)
    monkeypatch.setattr(proof, "check_parity", compared)
    monkeypatch.setattr(proof, "compare_contents", compared)
    monkeypatch.setattr(proof, "network_score", lambda *args: 1.0)
    monkeypatch.setattr(proof, "_outputs_and_targets", lambda *args: [(torch.eye(4), torch.arange(4))])
    artifact = Artifact(
        path=tmp_path / "a.onnx", format="onnx", precision=precision, sha256="", input_shape=(4, 1, 4, 4), versions={}
    )
    told = proof.prove_artifact(SimpleNamespace(target_test=test), nn.Identity(), artifact, CLASSIFIER)
    assert seen == [{0, 1, 2, 3}]
    assert ("unchecked" in told) == (not runs_here)


def test_the_export_command_says_what_is_unchecked(monkeypatch, capsys, tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"x")
    artifact = Artifact(
        path=path, format="onnx", precision="fp32", sha256="s", input_shape=(1, 1, 4, 4), versions={}, unchecked="why"
    )
    monkeypatch.setattr(export, "export_saved", lambda *args: artifact)
    write_artifact(tmp_path, "host", path, False)
    assert capsys.readouterr().err == "not compared with the network: why\n"
