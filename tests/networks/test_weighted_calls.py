"""What convolutions and linear layers multiply: rows times matrix is what they give, however they are called."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deploy_prune.networks.weighted_calls import WeightedCalls

IMAGES, SOUNDS, WORDS = torch.randn(3, 4, 9, 7), torch.randn(3, 4, 11), torch.randn(3, 5, 4)
LAYERS = {
    "linear of a vector": (nn.Linear(4, 6), WORDS[:, 0]),
    "linear of a sequence": (nn.Linear(4, 6, bias=False), WORDS),
    "3 x 3": (nn.Conv2d(4, 6, 3, padding=1), IMAGES),
    "stride, padding and dilation of two sizes": (
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(2, 1)), IMAGES,
    ),
    "groups": (nn.Conv2d(4, 6, 3, groups=2), IMAGES),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, bias=False), IMAGES),
    "same": (nn.Conv2d(4, 6, (3, 5), padding="same", dilation=(2, 1)), IMAGES),
    "valid": (nn.Conv2d(4, 6, 3, padding="valid"), IMAGES),
    "circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), IMAGES),
    "one dimension": (nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2), SOUNDS),
    "one dimension, groups": (nn.Conv1d(4, 6, 2, groups=2), SOUNDS),
    "channels last": (nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last), IMAGES),
}  # fmt: skip


class ByHand(nn.Module):
    """Calls of torch's functions, with names for their arguments."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 4, 3, 3)), nn.Parameter(torch.randn(6))

    def forward(self, x):
        return F.conv2d(x, weight=self.weight, bias=self.bias, stride=2, padding=1)


LAYERS["by hand"] = ByHand(), IMAGES


def seen(network, x):
    """(each call's name, its output by rows and matrix, what it gave)."""
    found = []

    def after(call, output):
        by_hand = torch.einsum("bsgk,gko->bsgo", call.rows(), call.matrix()).flatten(2)
        found.append((call.name, by_hand + (0 if call.bias is None else call.bias), call.made(output)))

    with torch.no_grad(), WeightedCalls(network, after=after):
        network(x)
    return found


@pytest.mark.parametrize("exported", [False, True], ids=["module", "exported"])
@pytest.mark.parametrize("kind", LAYERS)
def test_rows_times_the_matrix_is_what_a_layer_gives(kind, exported):
    layer, x = LAYERS[kind]
    network = torch.export.export(layer, (x,)).module() if exported else layer
    ((name, by_hand, given),) = seen(network, x)
    assert name == "weight"
    assert torch.allclose(by_hand, given, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_takes_a_new_matrix(kind):
    layer, x = LAYERS[kind]
    before, calls = layer(x).detach(), []
    shape = layer.weight.shape
    with torch.no_grad(), WeightedCalls(layer, before=calls.append):
        layer(x)
    (call,) = calls
    bias = 0 if call.bias is None else call.bias.detach()[:, *[None] * (before.dim() - 2)]
    bias = bias if call.weight.dim() > 2 or call.bias is None else call.bias.detach()
    with torch.no_grad():
        call.set_matrix(2 * call.matrix())
    assert layer.weight.shape == shape
    assert torch.allclose(layer(x).detach(), 2 * (before - bias) + bias, atol=1e-5)
    with torch.no_grad():
        call.set_matrix(call.matrix() / 2)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_what_has_no_rows_or_is_no_parameters_is_passed_over():
    network = nn.Sequential(
        nn.ConvTranspose2d(4, 4, 2), nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), nn.Conv2d(4, 4, (2, 1),
        padding="same"),
    )  # fmt: skip
    assert seen(network, IMAGES) == []
    assert seen(nn.Conv3d(4, 4, 1), torch.randn(2, 4, 3, 3, 3)) == []


def test_weights_that_two_layers_share_are_passed_over():
    one, two = nn.Linear(4, 4), nn.Linear(4, 4)
    two.weight = one.weight
    assert [name for name, *_ in seen(nn.Sequential(one, two, nn.Linear(4, 4)), WORDS)] == ["2.weight"]


@pytest.mark.parametrize("exported", [False, True], ids=["module", "exported"])
def test_it_tells_what_a_batch_norm_reads_first(exported):
    network = nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
    ).eval()
    graph = torch.export.export(network, (IMAGES,)).module() if exported else network
    with torch.no_grad(), WeightedCalls(graph) as calls:
        graph(IMAGES)
    assert calls.normed == {"0.weight"}
