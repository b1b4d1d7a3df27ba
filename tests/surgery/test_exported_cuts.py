"""exported == torch for cut networks, in the artifact's own runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
from surgery_networks import build, groups_of, half

from deploy_prune.export import FORMATS
from deploy_prune.export.parity import TOLERANCE, check_parity
from deploy_prune.recipe.parts import ExportPart, PrunePart
from deploy_prune.search.gated_network import gates_of
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.try_groups import keep_cuttable

NETWORKS = {
    "resnet20": 32,
    "torchvision:resnet18": 64,
    "torchvision:mobilenet_v2": 64,
    "torchvision:mobilenet_v3_small": 64,
    "torchvision:vgg11_bn": 64,
    "torchvision:shufflenet_v2_x1_0": 64,
}


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["static", "dynamic"])
@pytest.mark.parametrize("source", NETWORKS)
def test_the_artifact_of_a_cut_network_computes_the_same(source: str, batch: str, tmp_path: Path) -> None:
    network, x = build(source, NETWORKS[source])
    structure = keep_cuttable(network, groups_of(network, x), (x[:2],), gates_of, PrunePart())
    slim = cut(network, structure, half(structure))
    part = ExportPart(dynamic_batch=batch == "dynamic")
    artifact = FORMATS["onnx"].write(slim, x[:1], tmp_path / "slim.onnx", "fp32", part)
    parity = check_parity(slim, artifact, x[:6])
    assert parity.max_rel <= TOLERANCE == 1e-4
    assert parity.num_inputs == 6
