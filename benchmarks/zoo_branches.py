"""Leave a random half of many networks' branches out, and of every channel group, and check that the cut is right.

    python benchmarks/zoo_branches.py [NAME...] [--json FILE] [--timeout S]

Names and networks as in zoo.py. What is checked: the masked network gives what the cut one gives, the counts of MACs
and parameters are right, the slim network trains, and the network given is unchanged. --json: every row as soon as it
is there; networks whose rows are there already are not run again. A whole list goes to
benchmarks/results/zoo_branches.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import _results
import torch
from zoo import Rows, contents, counted, first, half, train, without_folders

from deploy_prune.recipe.parts import PrunePart
from deploy_prune.search.gated_network import gates_of
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.groups import find_groups
from deploy_prune.surgery.try_branches import add_branches
from deploy_prune.surgery.try_groups import keep_cuttable
from deploy_prune.surgery.verify import prove
from deploy_prune.types import Keep, Structure


def half_of_all(structure: Structure) -> Keep:
    """A random half of the branches, and of every other group."""
    lot = torch.Generator().manual_seed(0)
    stays = torch.randperm(len(structure.branches), generator=lot) % 2 == 0
    return half(structure) | {b.name: stays[i : i + 1] for i, b in enumerate(structure.branches)}


def check(name: str, row: dict[str, Any]) -> None:
    """One network, into ``row``; raises at the first thing that fails."""
    import _zoo_networks

    network, inputs = _zoo_networks.make(name)
    as_given, part = contents(network), PrunePart()
    whole = keep_cuttable(network, find_groups(network, first(inputs, 1), part), first(inputs, 2), gates_of, part)
    started = time.process_time()
    structure = add_branches(network, whole, first(inputs, 2), gates_of, part)
    row["seconds"] = round(time.process_time() - started, 2)
    row["branches"] = len(structure.branches)
    row["whole"] = [f"{w.name}: {without_folders(w.reason)}" for w in structure.whole if w.name.endswith(":branch")]
    keep = half_of_all(structure)
    if structure.branches:
        proof = prove(network, structure, keep, inputs, gates_of(structure))
        slim = cut(network, structure, keep)
        row |= {"difference": proof.difference, "precision": proof.precision}
        row |= counted(network, slim, structure, keep, inputs)
        row["train"] = train(name, network, slim, keep, inputs)
    assert contents(network) == as_given, "the network given has changed"


def child(name: str, path: Path) -> None:
    """One network, in this process; the row goes to ``path``."""
    row: dict[str, Any] = {}
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        check(name, row)
    except Exception as error:  # noqa: BLE001  whatever goes wrong is the row's result
        words = (str(error).strip().splitlines() or [""])[0]
        row["error"] = f"{type(error).__name__}: {without_folders(words)[:300]}"
    path.write_text(json.dumps(row))


def alone(name: str, timeout: float) -> dict[str, Any]:
    """Check one network in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.json"
        try:
            done = subprocess.run(
                [sys.executable, __file__, "--child", name, "--json", str(path)], timeout=timeout, capture_output=True,
                text=True, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"error": f"no result in {timeout:g} s"}
        if not path.exists():
            return {"error": f"the process ended with {done.returncode}: {done.stderr.strip()[-200:]}"}
        row: dict[str, Any] = json.loads(path.read_text())
        return row


def main() -> None:
    """Check the networks and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--timeout", type=float, default=300, help="seconds per network (default 300)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.json)
        return
    import _zoo_networks

    listed = f"{_zoo_networks.LISTED} {_zoo_networks.OTHERS}".split()
    under = _results.conditions(argparse.Namespace(), set())
    rows: Rows = _results.kept(arguments.json, under) if arguments.json is not None else {}
    for name in arguments.names or listed:
        if name not in rows:
            rows[name] = alone(name, arguments.timeout)
            if arguments.json is not None:
                _results.keep(arguments.json, under, rows)
        row = rows[name]
        state = "FAILED" if "error" in row else "passed" if row["branches"] else "none"
        print(f"{name:44} {state:8} {row}", flush=True)
    right = [row for row in rows.values() if row.get("branches") and "error" not in row]
    totals = {
        "networks": len(rows), "without_branches": sum(row.get("branches") == 0 for row in rows.values()),
        "right": len(right), "branches": sum(row["branches"] for row in right),
    }  # fmt: skip
    print(totals)
    if not arguments.names:
        _results.write("zoo_branches", {**totals, "rows": rows})


if __name__ == "__main__":
    main()
