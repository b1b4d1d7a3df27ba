"""Which of several classes an image, a sound or a text is of.

B batch, C classes. Outputs are logits [B, C]; targets are classes int64 [B] or, where examples are mixed, shares of
classes float [B, C].
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch.nn.functional as F
from torch import Tensor, nn

from deploy_prune.data import splits
from deploy_prune.families import RawForm
from deploy_prune.tasks.distance import divergence
from deploy_prune.tasks.task import Objective, Score, Task


def accuracy(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The share of examples (0 to 1) whose highest logit is their class."""
    right, num = 0, 0
    for logits_BC, labels_B in pairs:
        right += int((logits_BC.argmax(1) == labels_B).sum())
        num += len(labels_B)
    return right / num


CLASSIFICATION: Final = Task(
    score=Score(name="accuracy"), load=splits.load, loss=F.cross_entropy, judge=accuracy, distance=divergence
)
CLASSIFIER: Final = Objective(task=CLASSIFICATION, form=RawForm(network=nn.Identity()))
"""What a classifier of no particular family is trained for, whatever its layers are."""
