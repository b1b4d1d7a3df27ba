"""A search that was stopped goes on as if it had not been."""

import pytest
import torch
from search_run import run_search

from deploy_prune.training.kept import Kept
from deploy_prune.training.loop import make_accelerator

STEPS, STOPPED = 10, 9


class StoppedError(Exception):
    """Stands in for the end of the process."""


class Numbered:
    """Batches that know how many they have given."""

    def __init__(self, make):
        self.make, self.stream, self.given = make, make(), 0

    def __next__(self):
        self.given += 1
        return next(self.stream)

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state):
        self.stream, self.given = self.make(), 0
        while self.given < state["given"]:
            next(self)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("gate", {}),
        ("dap", {"weights": "resample"}),
        ("gumbel", {}),
        ("gumbel", {"unit": "weight", "weights": "joint"}),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_ends_the_same(chained, tmp_path, method, options, accumulate):
    def search(stop=None, where=None):
        taken.clear()

        def progress(work, done, total, **figures):
            taken.append(done)
            if done == stop:
                raise StoppedError

        return run_search(
            method, chained, make_accelerator("cpu", accumulate=accumulate), steps=STEPS, progress=progress, kept=where,
            batches=Numbered(chained.batches), **options,
        )  # fmt: skip

    taken = []
    straight = search()
    with pytest.raises(StoppedError):
        search(STOPPED, Kept(tmp_path / "kept", "key", print, 0.0))
    gone_on = search(where=Kept(tmp_path / "kept", "key", print))
    assert taken == [STOPPED, STEPS]
    assert gone_on.trace == straight.trace
    for ours, theirs in ((gone_on.scores, straight.scores), (gone_on.state, straight.state)):
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
