"""OpenVINO models: what is OpenVINO's own. test_model_folders.py has what it shares with other formats."""

import pytest
from export_networks import distance, images, network, outputs

from deploy_prune.recipe.parts import ExportPart

pytestmark = pytest.mark.openvino


@pytest.mark.parametrize("dynamic", [False, True])
def test_batches(dynamic, tmp_path):
    pytest.importorskip("openvino")
    from deploy_prune.export import openvino

    net = network()
    artifact = openvino.write(net, images(2), tmp_path / "b", "fp32", ExportPart(dynamic_batch=dynamic))
    assert distance(net, outputs("openvino", artifact, images())[0], images()) <= 1e-4
    assert artifact.input_shape == (2, 3, 16, 16)
