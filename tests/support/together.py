"""Small trainings that several processes do together, or one alone with as many batches a step."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gating_examples import chain
from torch import nn

from deploy_prune.cost import macs
from deploy_prune.data.examples import ClassExamples
from deploy_prune.data.loaders import batches
from deploy_prune.errors import DataError
from deploy_prune.recipe.parts import RetrainPart, SearchPart, TrainPart
from deploy_prune.retrain.fewshot import adapt
from deploy_prune.search.frame import SearchGoal, SearchJob
from deploy_prune.search.methods import METHODS
from deploy_prune.tasks.classification import CLASSIFIER
from deploy_prune.training.kept import Kept
from deploy_prune.training.loop import Session, make_accelerator, network_score, set_seed, train_network
from deploy_prune.training.ranks import ALONE, DoneError, Ranks

STEPS = 12
Found = dict[str, Any]


def pictures(num: int = 41, size: int = 8) -> ClassExamples:
    """An odd number of noisy ones, of four kinds."""
    lot = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (num,), generator=lot)
    images = torch.rand(num, 3, size, size, generator=lot) * 0.5 + labels.view(-1, 1, 1, 1) * 0.12
    norm = {"mean": torch.full((3,), 0.5), "std": torch.full((3,), 0.3)}
    return ClassExamples(images=images, labels=labels, augment="shift_flip", **norm)


def network(momentum: float | None = 0.1) -> nn.Module:
    """A norm that is called twice, dropout, and a layer that is left out of every other forward."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)
            self.norm = nn.BatchNorm2d(6, momentum=momentum)
            self.drop, self.last, self.unused = nn.Dropout(0.2), nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.second(self.norm(self.first(x)).relu())).relu().mean((2, 3))
            return self.last(self.drop(x))

    set_seed(0)
    return Small()


def session(ranks: Ranks, accumulate: int, **more: Any) -> Session:
    """So many batches a process."""
    return Session(accelerator=make_accelerator("cpu", accumulate=accumulate), seed=3, ranks=ranks, **more)


def dense(ranks: Ranks, accumulate: int, momentum: float | None = 0.1) -> Found:
    """Dense training; as ``running``, the statistics before they are taken anew."""
    trained, running = network(momentum), {}

    def progress(work: str, done: int, total: int, **figures: float) -> None:
        if done == total:
            running.update({name: x.clone() for name, x in trained.state_dict().items() if "norm" in name})

    part = TrainPart(steps=STEPS, batch_size=6)
    losses = train_network(
        trained, pictures(), CLASSIFIER, part, session=session(ranks, accumulate, progress=progress), work="train"
    )
    score = network_score(trained, pictures(), CLASSIFIER)
    return {"state": trained.state_dict(), "running": running, "losses": losses, "score": score}


def search(ranks: Ranks, accumulate: int, method: str = "gate", **options: Any) -> Found:
    """A search for half of the MACs."""
    set_seed(0)
    example = chain()
    cost = macs(example.structure)
    job = SearchJob(
        network=example.network, structure=example.structure, loss=CLASSIFIER.batch_loss,
        batches=batches(pictures(), 6, 3), goal=SearchGoal(cost=cost, limit=0.5 * cost(example.structure.dense_counts)),
        config=SearchPart(method=method, steps=STEPS, lr=0.01, options=options), session=session(ranks, accumulate),
    )  # fmt: skip
    found = METHODS[method](job)
    return {"state": found.state, "scores": found.scores, "trace": found.trace}


def retrain(ranks: Ranks, accumulate: int, **settings: Any) -> Found:
    """Retraining towards a teacher."""
    teacher, student = network().eval(), network()
    part = RetrainPart(**{"steps": 24, "batch_size": 6, "features": 0.0, **settings})
    done = adapt(student, pictures(), CLASSIFIER, part, teacher=teacher, session=session(ranks, accumulate))
    told = {"losses": done.losses, "held": done.num_held_out, "chosen": done.chosen_step}
    return {"state": student.state_dict(), **told}


JOBS: dict[str, tuple[Callable[..., Found], dict[str, Any]]] = {
    "dense": (dense, {}),
    "dense, plain average": (dense, {"momentum": None}),
    "gate": (search, {"method": "gate"}),
    "dap": (search, {"method": "dap", "weights": "resample"}),
    "gumbel": (search, {"method": "gumbel"}),
    "gumbel of weights": (search, {"method": "gumbel", "unit": "weight", "weights": "joint"}),
    "retrain": (retrain, {"mix": "cutmix", "ema": 0.9}),
    "hold out": (retrain, {"hold_out": 0.3, "lr": 0.1, "batchnorm": "running"}),
}
"""Name -> a training, and what it is given."""


def do(name: str, ranks: Ranks = ALONE, accumulate: int = 1) -> Found:
    """One of JOBS."""
    job, given = JOBS[name]
    return job(ranks, accumulate, **given)


def all_jobs(ranks: Ranks, tell: Callable[..., None], file: str) -> None:
    """Every job after each other; the first process writes what comes of them, and tells which is done."""
    found: dict[str, Found] = {}
    for number, name in enumerate(JOBS):
        try:
            found[name] = do(name, ranks)
        except DoneError:
            continue
        tell("progress", name, number + 1, len(JOBS))
    if ranks.rank:
        raise DoneError
    torch.save(found, file)


def failing(ranks: Ranks, tell: Callable[..., None], how: str, rank: int) -> None:
    """One process fails in the third step of a training that would take long."""

    def progress(work: str, done: int, total: int, **figures: float) -> None:
        if done == 3:
            tell("progress", done)
        if done == 3 and ranks.rank == rank:
            if how == "error":
                message = f"data.root: picture {done} can't be read."
                raise DataError(message)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)

    part = TrainPart(steps=100_000, batch_size=6)
    train_network(network(), pictures(), CLASSIFIER, part, session=session(ranks, 1, progress=progress), work="train")


def going_on(ranks: Ranks, tell: Callable[..., None], kept: str, out: str, stop: int) -> None:
    """A dense training that keeps every step; the first process is killed in step ``stop``."""

    def progress(work: str, done: int, total: int, **figures: float) -> None:
        tell("progress", done)
        if done == stop and ranks.rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    where = Kept(Path(kept), "key", lambda sentence: tell("progress", sentence), 0.0 if ranks.rank == 0 else math.inf)
    here, trained = session(ranks, 1, progress=progress, kept=where), network()
    losses = train_network(
        trained, pictures(), CLASSIFIER, TrainPart(steps=STEPS, batch_size=6), session=here, work="train"
    )
    torch.save({"losses": losses, "state": trained.state_dict()}, out)
