"""Training beside other work: threads as torch has them ("old") against as many as others leave cores ("new"), in turn.

    python benchmarks/busy_training.py [--recipe NAME] [--busy N ...] [--rounds N] [--seconds S]

One process trains the recipe's dense network, as `deploy-prune recipe` does, for some seconds a turn with each setting;
the order is random. --busy: so many busy processes beside it (default: none, and one a core). Aims: new at most
3% slower on a quiet machine, and at least 3 times faster beside one busy process a core. Ratios are of mean times of a
step, for training beside other work has long stalls now and then.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from typing import Any

import _results
import torch
from torch.optim import SGD

from deploy_prune.data import loaders, splits
from deploy_prune.networks import build
from deploy_prune.recipe.file import load_recipe
from deploy_prune.tasks.classification import CLASSIFIER
from deploy_prune.training import threads
from deploy_prune.training.channels_last import channels_last, sample
from deploy_prune.training.loop import MOMENTUM, Session, fit, make_accelerator
from deploy_prune.types import Progress, silent

SETTINGS = ("old", "new")
BUSY = "while True: pass"
SETTLE_S = 2.0  # from the worker's start to the first turn
Worker = subprocess.Popen[str]


def worker(name: str) -> None:
    """For a setting and seconds on standard input, train that long; answer with ms a step and threads in the end."""
    recipe = load_recipe(name, [])
    examples = splits.load(recipe.data, recipe.seed)
    network = build.build_network(recipe.model, examples.num_source).train()
    accelerator = make_accelerator("cpu")
    optimizer = SGD(network.parameters(), lr=1e-4, momentum=MOMENTUM, nesterov=True)
    stream = loaders.batches(examples.source_train, recipe.train.batch_size, recipe.seed)
    most = torch.get_num_threads()

    def step(progress: Progress = silent) -> None:
        fit(
            lambda batch: CLASSIFIER.batch_loss(network, batch), stream, [optimizer], steps=1, work="train",
            session=Session(accelerator=accelerator, seed=recipe.seed, progress=progress),
        )  # fmt: skip

    with channels_last(network, sample(examples.source_train, accelerator.device), accelerator.device):
        step()
        print("ready", flush=True)
        for line in sys.stdin:
            setting, seconds = line.split()
            torch.set_num_threads(most)
            tell = (lambda sentence: None) if setting == "new" else None
            progress = threads.share_cores(silent, None, accelerator.device, tell)
            time.sleep(threads.FIRST_LOOK_S)  # a run has done other things for longer before it trains
            progress("train", 0, 1)
            count, started = 0, time.perf_counter()
            while time.perf_counter() - started < float(seconds):
                step(progress)
                count += 1
            print(1e3 * (time.perf_counter() - started) / count, torch.get_num_threads(), flush=True)


def start(name: str) -> Worker:
    """The worker, which trains a step first."""
    environment = {key: value for key, value in os.environ.items() if key not in threads.OWN_SETTINGS}
    command = [sys.executable, __file__, "--worker", "--recipe", name]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def turn(process: Worker, setting: str, seconds: float) -> tuple[float, int]:
    """(mean ms a step, threads in the end) of a turn of so many seconds."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{setting} {seconds}\n")
    process.stdin.flush()
    step_ms, count = process.stdout.readline().split()
    return float(step_ms), int(count)


def measure(process: Worker, busy: int, seconds: float) -> list[dict[str, Any]]:
    """One turn of each setting beside so many busy processes."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
    try:
        rows = []
        for setting in random.sample(SETTINGS, len(SETTINGS)):
            step_ms, count = turn(process, setting, seconds)
            rows.append({"busy": busy, "setting": setting, "step_ms": step_ms, "threads": count})
            print(f"{busy} busy, {setting}: {step_ms:.0f} ms a step, {count} threads, load {os.getloadavg()[0]:.1f}")
        return rows
    finally:
        for other in others:
            other.kill()
            other.wait()


def compared(rows: list[dict[str, Any]], busy: int) -> dict[str, float]:
    """The means of both settings, and how many times faster the new one is."""
    old, new = (
        statistics.fmean(r["step_ms"] for r in rows if (r["busy"], r["setting"]) == (busy, s)) for s in SETTINGS
    )
    print(f"{busy} busy: {old:.0f} ms a step before, {new:.0f} ms now, {old / new:.2f} times as fast")
    return {"busy": busy, "old_ms": old, "new_ms": new, "faster": old / new}


def main() -> None:
    """Measure in turn and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--recipe", default="mobilenet")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, cores], help="busy processes (default: 0, cores)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of a turn (default 20)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.recipe)
        return
    process = start(arguments.recipe)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", "the worker failed"
        print("ready", flush=True)
        time.sleep(SETTLE_S)
        turns = [(busy, number) for number in range(arguments.rounds) for busy in arguments.busy]
        rows = [{**row, "round": number} for busy, number in turns for row in measure(process, busy, arguments.seconds)]
    finally:
        process.kill()
    figures = {"rows": rows, "compared": [compared(rows, busy) for busy in arguments.busy]}
    how = {"recipe": arguments.recipe, "cores": cores, "n": arguments.rounds, "seconds": arguments.seconds}
    _results.write(f"busy_training_{arguments.recipe}", figures, **how)


if __name__ == "__main__":
    main()
