"""What an artifact is compared with."""

import pytest
import torch
from torch import nn

from deploy_prune.errors import ParityError
from deploy_prune.export import onnx, parity
from deploy_prune.recipe.parts import ExportPart


def written(network, tmp_path, precision="fp32", batch=1, **calibration):
    example = torch.zeros(batch, 1, 2, 2)
    return onnx.write(network, example, tmp_path / "net.onnx", precision, ExportPart(), **calibration)


class Two(nn.Module):
    """One output moves with the input, the other never does."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        y = self.layer(x.flatten(1))
        return y, torch.zeros_like(y) + self.layer.bias


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_reference_has_the_networks_outputs_and_the_checks_tolerance(tmp_path, precision):
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval(), torch.randn(6, 1, 2, 2)
    artifact = written(network, tmp_path, precision)
    held_to = parity.reference(network, artifact, x)
    torch.testing.assert_close(held_to.outputs[0], network(x))  # the last bit depends on how many are asked at a time
    assert held_to.tolerance == parity.check_parity(network, artifact, x).tolerance
    assert held_to.least_db is None


def test_an_output_that_never_changes_is_held_to_no_noise_even_with_two_examples(tmp_path):
    torch.manual_seed(0)
    network, x = Two().eval(), torch.randn(2, 1, 2, 2)
    held_to = parity.reference(network, written(network, tmp_path, "int8", calibration=x), x)
    assert held_to.tolerance is None
    moving, still = held_to.least_db
    assert moving >= parity.LEAST_DB - parity.MARGIN_DB
    assert still is None


@pytest.mark.parametrize("shape", [(6, 1, 2, 3), (6, 2, 2, 2), (6, 4)], ids=str)
def test_inputs_of_another_shape_are_refused(tmp_path, shape):
    network = nn.Flatten()
    with pytest.raises(ParityError, match="shape"):
        parity.reference(network, written(network, tmp_path), torch.zeros(shape))


def test_outputs_that_hardly_move_prove_nothing(tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    nn.init.zeros_(network[1].weight)
    with pytest.raises(ParityError, match="comparing proves nothing"):
        parity.reference(network, written(network, tmp_path), torch.randn(6, 1, 2, 2))
