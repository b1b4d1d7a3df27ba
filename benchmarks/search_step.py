"""What a search costs: a step of each method against the same training step without gates, in turn; median of ratios.

    python benchmarks/search_step.py [--steps N] [--threads N]

Aim: at most 1.05 in time and in peak memory. Weights lie with channels last on both sides, as in a search; beside them
a plain step with channels first. No data needed: inputs are random, which doesn't change the time. Peak memory is that
of a process of its own for each, torch and the network included.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import _results
import torch
from torch import nn
from torch.optim import SGD, Adam

from deploy_prune import cost
from deploy_prune.data.examples import Batch
from deploy_prune.networks import build
from deploy_prune.recipe.parts import ModelPart, PrunePart, SearchPart
from deploy_prune.search.frame import SearchGoal, SearchJob
from deploy_prune.search.methods.dap import two_temperatures
from deploy_prune.search.methods.gate import trainable_gate
from deploy_prune.search.methods.gumbel import gumbel_gate
from deploy_prune.search.relaxed import GateSearch, Relaxation, RelaxedOptions
from deploy_prune.surgery.groups import find_groups
from deploy_prune.tasks.classification import CLASSIFIER
from deploy_prune.training.loop import Session, make_accelerator

CASES = [("resnet20", 32, 128), ("torchvision:mobilenet_v2", 64, 64), ("torchvision:resnet18", 32, 64)]
RELAXATIONS = {
    "gate": Relaxation(sample=lambda w: trainable_gate(w, "constant"), start=1.0),
    "dap": Relaxation(sample=lambda theta: two_temperatures(theta, 0.1, 5.0), start=1.0),
    "gumbel": Relaxation(
        sample=lambda m: gumbel_gate(m, 1.0), expected=torch.sigmoid, start=4.0, rescale=1e-3
    ),
}  # fmt: skip
"""As the methods' defaults have them, over 200 steps."""
PEAK_STEPS = 4

Step = Callable[[], None]


def steps_of(source: str, size: int, batch: int) -> dict[str, Step]:
    """A step without gates ("plain"), the same with channels first, and one of each method; all on one batch."""
    torch.manual_seed(0)
    network = (
        build.build_network(ModelPart(source=source), 10).train().to(memory_format=torch.channels_last)
    )  # as searches do
    x = torch.randn(batch, 3, size, size)
    drawn = Batch((x,), torch.randint(10, (batch,)))
    structure = find_groups(network, (x[:1],), PrunePart())
    model = cost.macs(structure)
    weights = SGD(network.parameters(), lr=1e-4, momentum=0.9, nesterov=True)
    job = SearchJob(
        network=network, structure=structure, loss=CLASSIFIER.batch_loss, batches=itertools.repeat(drawn),
        goal=SearchGoal(cost=model, limit=0.5 * model(structure.dense_counts)),
        config=SearchPart(steps=200, batch_size=batch), session=Session(accelerator=make_accelerator("cpu"), seed=0),
    )  # fmt: skip
    first = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    other = SGD(first.parameters(), lr=1e-4, momentum=0.9, nesterov=True)
    steps = {
        "plain": step_of(network, lambda: CLASSIFIER.batch_loss(network, drawn), [weights]),
        "channels first": step_of(first, lambda: CLASSIFIER.batch_loss(first, drawn), [other]),
    }
    for name, relaxation in RELAXATIONS.items():
        search = GateSearch(network, job, RelaxedOptions(), relaxation)
        optimizers: list[torch.optim.Optimizer] = [weights, Adam([search.logit_N], lr=1e-3)]
        if search.scales:
            optimizers.append(SGD(search.scales.values(), lr=1e-3, momentum=0.9))
        steps[name] = step_of(network, lambda search=search: search.loss(drawn), optimizers)
    return steps


def step_of(network: nn.Module, loss: Callable[[], torch.Tensor], optimizers: list[torch.optim.Optimizer]) -> Step:
    """Gradients to None, loss, backward, all optimizers."""

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss().backward()
        for optimizer in optimizers:
            optimizer.step()

    return step


def seconds(step: Step) -> float:
    """Wall time of one step."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def peak_mb(case: int, name: str) -> int:
    """Peak resident memory of a process that makes a few of these steps, read from /proc (Linux).

    Not from getrusage, which begins with the parent's.
    """
    command = [sys.executable, __file__, "--peak", str(case), name]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure(case: int, count: int) -> list[dict[str, object]]:
    """A row a method: its step's time and peak memory over those of a plain step."""
    source, size, batch = CASES[case]
    steps = steps_of(source, size, batch)
    for step in steps.values():
        for _ in range(3):
            step()
    rounds = [{name: seconds(step) for name, step in steps.items()} for _ in range(count)]
    plain_mb = peak_mb(case, "plain")
    rows = []
    for name in RELAXATIONS:
        ratio = statistics.median(one[name] / one["plain"] for one in rounds)
        memory = peak_mb(case, name) / plain_mb
        plain_s = statistics.median(one["plain"] for one in rounds)
        layout = statistics.median(one["plain"] / one["channels first"] for one in rounds)
        rows.append({
            "network": source, "image_size": size, "batch": batch, "method": name, "ratio": ratio,
            "memory_ratio": memory, "plain_s": plain_s, "over_channels_first": layout,
        })  # fmt: skip
        print(f"{source} {size} px, batch {batch}, {name}: {ratio:.3f} times a plain step, memory {memory:.3f}")
    return rows


def main() -> None:
    """Measure every case and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="rounds of steps (default 40)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "NAME"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        step = steps_of(*CASES[int(arguments.peak[0])])[arguments.peak[1]]
        for _ in range(PEAK_STEPS):
            step()
        print(int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) // 1024)
        return
    rows = [row for case in range(len(CASES)) for row in measure(case, arguments.steps)]
    _results.write("search_step", {"rows": rows}, n=arguments.steps)


if __name__ == "__main__":
    main()
