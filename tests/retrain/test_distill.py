import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deploy_prune.data.examples import Batch
from deploy_prune.retrain.distill import taught
from deploy_prune.tasks.classification import CLASSIFIER

STUDENT = torch.tensor([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]])
TEACHER = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
LABELS = torch.tensor([0, 1])


def distillation(student, teacher, labels, share, temperature):
    told = lambda x: teacher  # noqa: E731
    return taught(CLASSIFIER, told, share, temperature)(lambda x: student, Batch((torch.zeros(1),), labels))


def literal(share, temperature):
    """The paper's formula with plain sums."""
    total = 0.0
    for s, t, y in zip(STUDENT.tolist(), TEACHER.tolist(), LABELS.tolist(), strict=True):
        total -= (1 - share) * (s[y] - math.log(sum(map(math.exp, s))))
        p, q = ([math.exp(z / temperature) for z in logits] for logits in (t, s))
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        total += share * temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(LABELS)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_it_is_the_formula(share, temperature):
    found = distillation(STUDENT, TEACHER, LABELS, share, temperature)
    assert found.item() == pytest.approx(literal(share, temperature), rel=1e-5)


def test_without_a_share_it_is_cross_entropy():
    assert torch.equal(distillation(STUDENT, TEACHER, LABELS, 0.0, 2.0), F.cross_entropy(STUDENT, LABELS))


def test_a_student_like_its_teacher_has_nothing_to_learn():
    assert distillation(TEACHER, TEACHER, LABELS, 1.0, 3.0).abs() < 1e-6


def test_gradients_keep_their_size_whatever_the_temperature():
    """At high temperature d/ds of T^2 KL is (s - t) / C for centred logits, free of T."""
    sizes = []
    for temperature in (50.0, 100.0):
        student = STUDENT.clone().requires_grad_()
        distillation(student, TEACHER, LABELS, 1.0, temperature).backward()
        sizes.append(student.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_a_taught_task_asks_the_teacher_about_the_same_inputs():
    teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    loss = taught(CLASSIFIER, teacher, 0.9, 2.0)(student, Batch((x,), LABELS))
    assert torch.equal(loss, distillation(student(x), teacher(x), LABELS, 0.9, 2.0))
    loss.backward()
    assert student.weight.grad is not None
    assert teacher.weight.grad is None


def test_a_task_without_a_teacher_is_classification():
    assert taught(CLASSIFIER, None, 0.9, 2.0) == CLASSIFIER.batch_loss
    assert taught(CLASSIFIER, nn.Linear(4, 3), 0.0, 2.0) == CLASSIFIER.batch_loss
