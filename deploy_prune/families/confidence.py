"""How far a detector's outputs are from its teacher's, where the teacher sees something.

Most places of a picture have no object, and what a detector says of a box there means nothing. So places count by how
sure the teacher is. B batch, P places, C channels or classes; logits of the student and of its teacher, whose need no
gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST = 1e-6


def weighted(apart_BP: Tensor, sure_BP: Tensor) -> Tensor:
    """The mean of a distance over places, by how sure the teacher is there (0 to 1)."""
    return (apart_BP * sure_BP).sum() / sure_BP.sum().clamp(min=_LEAST)


def of_numbers(student_BPC: Tensor, teacher_BPC: Tensor, sure_BP: Tensor) -> Tensor:
    """Squared distance over the teacher's variance, both weighted: the mean over channels."""
    sure = sure_BP[..., None]
    total = sure.sum().clamp(min=_LEAST)
    mean_C = (teacher_BPC * sure).sum((0, 1)) / total
    variance_C = ((teacher_BPC - mean_C).square() * sure).sum((0, 1)) / total
    apart_BPC = (student_BPC - teacher_BPC).square() / variance_C.clamp(min=1e-3 * variance_C.mean() + _LEAST)
    return weighted(apart_BPC.mean(-1), sure_BP)


def of_shares(student_BPC: Tensor, teacher_BPC: Tensor, sure_BP: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), weighted."""
    own, told = (F.log_softmax(x / temperature, dim=-1) for x in (student_BPC, teacher_BPC))
    return temperature**2 * weighted(F.kl_div(own, told, reduction="none", log_target=True).sum(-1), sure_BP)


def of_yes_or_no(student_BPC: Tensor, teacher_BPC: Tensor, sure_BP: Tensor) -> Tensor:
    """KL(sigmoid(teacher) || sigmoid(student)), the sum over classes and over all places: here nothing counts, too.

    Divided by the sum of how sure the teacher is, as the losses of detectors are by the number of objects.
    """
    said = teacher_BPC.sigmoid()
    apart = F.binary_cross_entropy_with_logits(student_BPC, said, reduction="sum")
    least = F.binary_cross_entropy_with_logits(teacher_BPC, said, reduction="sum")
    return torch.relu(apart - least) / sure_BP.sum().clamp(min=_LEAST)
