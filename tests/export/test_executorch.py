"""ExecuTorch files: what is ExecuTorch's own. test_mobile_files.py has what it shares with other formats."""

import warnings

import pytest
import torch
from export_networks import payload
from three_outputs import EXAMPLE, calibration, found_in, images, least_db, network, noise_db
from torch import nn

from deploy_prune.export import executorch
from deploy_prune.recipe import ExportPart

pytestmark = pytest.mark.executorch


@pytest.fixture(scope="module")
def runtime():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("executorch.runtime")
        pytest.importorskip("torchao")
        return payload("executorch")


def numbered() -> nn.Module:
    """Top-level modules whose names are numbers, one of them a batch norm after a convolution."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()


@pytest.mark.parametrize("precision", executorch.precisions)
def test_modules_named_by_numbers(runtime, tmp_path, precision):
    net, x = numbered(), images(8)
    artifact = executorch.write(net, EXAMPLE, tmp_path / "n.pte", precision, ExportPart(), calibration())
    (found,) = found_in("executorch", artifact, x)
    assert noise_db(net(x).detach().numpy(), found) > least_db("executorch", precision)
    assert next(net.parameters()).dtype == torch.float32


def test_threads_are_set(runtime, tmp_path):
    from executorch.extension.pybindings import portable_lib

    artifact = executorch.write(network(), EXAMPLE, tmp_path / "a.pte", "fp32", ExportPart())
    for threads in (2, 1):
        runtime.Model(str(artifact.path), threads, "NCHW")
        assert portable_lib._threadpool_get_thread_count() == threads
