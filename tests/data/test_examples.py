"""Images with a class each."""

import pytest
import torch

from deploy_prune.data import examples as module
from deploy_prune.data.examples import ClassExamples
from deploy_prune.data.transforms import AUGMENTS


@pytest.mark.parametrize("augment", AUGMENTS)
def test_a_batch_is_the_same_however_many_images_are_varied_at_a_time(augment, monkeypatch):
    images = torch.rand(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    third = torch.full((3,), 1 / 3)
    examples = ClassExamples(
        images=images, labels=torch.arange(10), mean=third, std=third, augment=augment, size=(16, 12)
    )  # fmt: skip
    found = []
    for numbers in (1, 3 * 16 * 12 * 4, 2**20):
        monkeypatch.setattr(module, "_AT_ONCE", numbers)
        found.append(examples.varied(torch.arange(9), torch.Generator().manual_seed(1)).inputs[0])
    assert found[0].shape == (9, 3, 16, 12)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-5)  # a mean grey is summed up in another order
