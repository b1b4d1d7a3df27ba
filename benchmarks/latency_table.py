"""How well a latency table predicts networks that it wasn't made of, and how long it takes to make.

    python benchmarks/latency_table.py [NAME:CHANNELS,HEIGHT,WIDTH:CLASSES...] [--target host] [--device D]
                                       [--variants 8] [--rows FILE]

A NAME of torchvision or timm has its prefix: torchvision:mobilenet_v2:3,224,224:1000. Per network `deploy-prune
profile` is run in a process of its own with an empty cache, so that its time is what a user waits. The error is
|predicted / measured - 1| on as many random aligned networks as the table is made of, none of them the same. Networks
that --rows has are not measured again. The whole list goes into benchmarks/results/latency_table.json.

Aims: a median of at most 5%, a 90th percentile of at most 12%, and 3 minutes a network.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import _results

NETWORKS: Final = (
    "torchvision:mobilenet_v2:3,224,224:1000",
    "torchvision:mobilenet_v3_small:3,224,224:1000",
    "resnet20:3,32,32:10",
    "torchvision:resnet18:3,224,224:1000",
    "torchvision:efficientnet_b0:3,224,224:1000",
)
KEPT: Final = (
    "granularity", "ratios", "by_layer", "dense_ms", "smallest_ms", "median_error", "p90_error", "held_out", "seconds",
)  # fmt: skip
AIMS: Final = {"median_error": 0.05, "p90_error": 0.12, "wall_s": 180.0}


def profiled(network: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One network's row."""
    name, shape, classes = network.rsplit(":", 2)
    command = [sys.executable, "-m", "deploy_prune.cli", "profile", name, "--input", shape, "--classes", classes]
    command += ["--target", arguments.target, "--variants", str(arguments.variants), "--json"]
    command += [] if arguments.device is None else ["--device", arguments.device]
    with TemporaryDirectory() as cache:
        started = time.perf_counter()
        environment = os.environ | {"DEPLOY_PRUNE_CACHE": cache}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        wall_s = time.perf_counter() - started
    told = json.loads(done.stdout)
    return {key: told[key] for key in KEPT} | {"wall_s": round(wall_s, 1)}


def main() -> None:
    """Measure what --rows doesn't have, and write benchmarks/results/latency_table.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--target", default="host")
    parser.add_argument("--device")
    parser.add_argument("--variants", type=int, default=8)
    parser.add_argument("--rows", type=Path, default=Path("runs/latency_table.json"))
    arguments = parser.parse_args()
    under = _results.conditions(arguments, {"networks", "rows"})
    rows: dict[str, dict[str, Any]] = _results.kept(arguments.rows, under)
    keys = {n: f"{n} {arguments.target} {arguments.device} {arguments.variants}" for n in arguments.networks}
    for network, key in keys.items():
        if key not in rows:
            rows[key] = profiled(network, arguments)
            _results.keep(arguments.rows, under, rows)
        row = rows[key]
        missed = [name for name, aim in AIMS.items() if row[name] is None or row[name] > aim]
        print(f"{network}: {row['median_error']:.1%} median, {row['p90_error']:.1%} p90, {row['wall_s']:.0f} s",
              f"(above the aim: {', '.join(missed)})" if missed else "", flush=True)  # fmt: skip
    if tuple(arguments.networks) == NETWORKS:
        asked = {key: rows[key] for key in keys.values()}
        _results.write("latency_table", {"rows": asked, "aims": AIMS}, target=arguments.target, n=arguments.variants)


if __name__ == "__main__":
    main()
