"""What a search costs: a training step with gates on against the same step without, in turn; median of the ratios.

    python benchmarks/search_step.py [--steps N] [--threads N]

Aim: at most 1.1. No data needed: inputs are random, which doesn't change the time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import _results
import torch
import torch.nn.functional as F

from deploy_prune import cost, models
from deploy_prune.recipe import ModelPart, PrunePart
from deploy_prune.search import gated
from deploy_prune.search.gate import trainable_gate
from deploy_prune.surgery.graph import find_groups

CASES = [("resnet20", 32, 128), ("torchvision:mobilenet_v2", 64, 64), ("torchvision:resnet18", 32, 64)]


def steps_of(source: str, size: int, batch: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """(a step without gates, a step with trainable gates and the expected cost in the loss)."""
    torch.manual_seed(0)
    network = models.build(ModelPart(source=source), 10).train()
    x, y = torch.randn(batch, 3, size, size), torch.randint(10, (batch,))
    structure = find_groups(network, (x[:1],), PrunePart())
    gates = {g.name: torch.full((g.channels,), 0.5, requires_grad=True) for g in structure.groups}
    weights = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, nesterov=True)
    both = torch.optim.Adam(gates.values(), lr=1e-3)
    price, on = cost.macs(structure), gated(network, structure, batch)
    dense = price(structure.dense_counts)

    def plain() -> None:
        weights.zero_grad()
        F.cross_entropy(network(x), y).backward()
        weights.step()

    def with_gates() -> None:
        weights.zero_grad()
        both.zero_grad()
        opened = {name: trainable_gate(w, "constant") for name, w in gates.items()}
        loss = F.cross_entropy(on.forward(opened)(x), y)
        (loss + 0.1 * price.expected({n: a.sum() for n, a in opened.items()}) / dense).backward()
        weights.step()
        both.step()

    return plain, with_gates


def seconds(step: Callable[[], None]) -> float:
    """Wall time of one step."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def main() -> None:
    """Measure every case and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="pairs of steps (default 40)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for source, size, batch in CASES:
        plain, with_gates = steps_of(source, size, batch)
        for _ in range(3):
            plain(), with_gates()
        pairs = [(seconds(plain), seconds(with_gates)) for _ in range(arguments.steps)]
        ratio = statistics.median(b / a for a, b in pairs)
        rows.append(
            {
                "network": source,
                "image_size": size,
                "batch": batch,
                "plain_s": statistics.median(a for a, _ in pairs),
                "ratio": ratio,
            }
        )  # noqa: E501
        print(f"{source} {size} px, batch {batch}: {ratio:.3f} times a plain step ({rows[-1]['plain_s']:.3f} s)")
    _results.write("search_step", {"rows": rows}, n=arguments.steps)


if __name__ == "__main__":
    main()
