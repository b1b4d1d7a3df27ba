"""Learning from a teacher as well as from labels: Hinton, Vinyals, Dean, arXiv 1503.02531."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy_prune.data.examples import Batch
from deploy_prune.retrain.features import Match, Watch, feature_loss
from deploy_prune.training.loop import classification
from deploy_prune.types import Forward, Loss


def distillation(student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, share: float, temperature: float) -> Tensor:
    """(1 - share) CE(student, labels) + share T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over B.

    Logits float [B, C], labels int64 [B], or shares of classes float [B, C]. T^2 keeps the gradients' size apart from T
    (section 2 of the paper).
    """
    # L = (1 - d) H(y, s) + d T^2 KL(t_T || s_T)
    hard = F.cross_entropy(student_BC, labels_B)
    soft = F.kl_div(
        F.log_softmax(student_BC / temperature, dim=1),
        F.log_softmax(teacher_BC / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - share) * hard + share * temperature**2 * soft


def taught(
    teacher: nn.Module | None, share: float, temperature: float, *, features: float = 0.0, match: Match | None = None
) -> Loss:
    """Classification with a teacher, which must be on the batches' device and is called as it is: a `types.Loss`.

    With a weight for ``features`` and a ``match``, the forward is the slim network itself, and the loss has their
    distance, too: see `feature_loss`. Without a teacher, or with no share of it at all, it is `classification`.
    """
    compared = match if features > 0 else None
    if teacher is None or (share == 0 and compared is None):
        return classification

    def loss(forward: Forward, batch: Batch) -> Tensor:
        x, y = batch
        if compared is None:
            with torch.no_grad():
                target = teacher(x)
            return distillation(forward(x), target, y, share, temperature)
        assert isinstance(forward, nn.Module)
        with torch.no_grad(), Watch(teacher, compared.kept) as told:
            target = teacher(x)
        with Watch(forward, compared.kept) as found:
            logits = forward(x)
        close = feature_loss(found.read, told.read, compared)
        return distillation(logits, target, y, share, temperature) + features * close

    return loss
