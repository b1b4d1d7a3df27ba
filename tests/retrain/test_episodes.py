import pytest

from deploy_prune.retrain.episodes import interval


def test_one_episode_has_no_interval():
    assert interval([0.5]) == (0.5, None)


def test_it_is_students():
    mean, half = interval([0.1, 0.2, 0.3])
    assert mean == pytest.approx(0.2)
    assert half == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-6)  # t(0.975, 2)
