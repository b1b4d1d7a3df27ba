"""What int8 is calibrated on, and what is said of an artifact."""

from types import SimpleNamespace

import pytest
import torch

from deploy_prune import checked, road
from deploy_prune.data import Examples
from deploy_prune.errors import ParityError
from deploy_prune.recipe import ExportPart
from deploy_prune.runfolder import RunFolder


def examples(count, value):
    images = torch.full((count, 1, 4, 4), value)
    return Examples(images=images, labels=torch.zeros(count).long(), mean=torch.zeros(1), std=torch.ones(1))


@pytest.mark.parametrize(("wanted", "target", "source"), [(3, 3, 0), (10, 6, 4), (100, 6, 20)])
def test_calibration_takes_the_target_tasks_examples_first(wanted, target, source):
    data = SimpleNamespace(target_train=examples(6, 0.25), source_train=examples(20, 0.75))
    x = checked.calibration_inputs(data, ExportPart(calibration_examples=wanted))
    assert x.shape == (target + source, 1, 4, 4)
    assert x[:, 0, 0, 0].tolist() == [0.25] * target + [0.75] * source


def way(tmp_path, told):
    folder = RunFolder(path=tmp_path)
    folder.write_json("host/50%/parity.json", told)
    return SimpleNamespace(folder=folder, recipe=SimpleNamespace(export=ExportPart(max_accuracy_drop=0.02)))


def test_an_artifact_that_loses_too_much_is_refused(tmp_path):
    assert road.require_accuracy(way(tmp_path, {"max_abs": 0.1}), "host/50%") is None
    assert road.require_accuracy(way(tmp_path, {"accuracy": 0.9, "accuracy_artifact": 0.885}), "host/50%") == 0.885
    with pytest.raises(ParityError, match=r"accuracy is 87.0%, the network's 90.0%; at most 2.0% less .*fp16"):
        road.require_accuracy(way(tmp_path, {"accuracy": 0.9, "accuracy_artifact": 0.87}), "host/50%")
