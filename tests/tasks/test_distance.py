import pytest
import torch

from deploy_prune.errors import ModelError
from deploy_prune.tasks.distance import relative


def outputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, 6, 4, 5), (3, 30, 4), (3, 4, 30), (8, 7), (5,)]
    return [torch.randn(shape, generator=generator) * 3 + 1 for shape in shapes]


def test_a_teacher_is_no_distance_from_itself():
    assert relative(outputs(), outputs(), 2.0) == 0


@pytest.mark.parametrize("number", range(5))
def test_the_teachers_mean_is_at_distance_one(number):
    teacher = outputs()[number]
    rest = {0: (0, 2, 3), 1: (0, 1), 2: (0, 2), 3: (0,), 4: (0,)}[number]
    assert relative(teacher.mean(rest, keepdim=True).expand_as(teacher), teacher) == pytest.approx(1, rel=1e-5)


def test_a_channels_unit_does_not_matter():
    student, teacher = outputs(1)[0], outputs(0)[0]
    units = torch.tensor([1, 10, 0.5, 5, 1, 20]).reshape(1, 6, 1, 1)
    assert torch.allclose(relative(student * units, teacher * units), relative(student, teacher), rtol=1e-5)


def test_a_constant_teacher_has_a_finite_distance():
    teacher = torch.ones(2, 3, 4, 4)
    assert relative(teacher + 2, teacher) == 4
    teacher = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    teacher[:, 1] = 0
    assert relative(teacher + 0.01, teacher) < 0.1


def test_the_gradient_is_the_students_alone():
    student, teacher = (x.requires_grad_() for x in (outputs(1)[0], outputs(0)[0]))
    relative((student, torch.zeros(2, dtype=torch.int64)), (teacher, torch.ones(2, dtype=torch.int64))).backward()
    assert teacher.grad is None
    assert student.grad.isfinite().all()
    assert student.grad.any()


@pytest.mark.parametrize("student", [[torch.zeros(2, 3)], [], [torch.zeros(2, 4), torch.zeros(1)]])
def test_outputs_that_cannot_be_compared_are_refused(student):
    with pytest.raises(ModelError, match="must be the same"):
        relative(student, [torch.zeros(2, 4)])
