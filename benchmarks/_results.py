"""Where benchmarks put their figures: benchmarks/results/NAME.json, with what is needed to make them again.

Rows that take long are kept between runs, each set under its conditions: every argument that isn't in a row's name, the
dense network's weights, the data, this package's and the benchmarks' code, versions and processor. Under any other
conditions a row is made again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Set
from pathlib import Path
from typing import Any

import torch

from deploy_prune.data.collected import Collection
from deploy_prune.data.examples import ClassExamples
from deploy_prune.run.folder import PACKAGES, cpu_name, versions
from deploy_prune.surgery.remembered import own_code
from deploy_prune.system.shell import write_text

RESULTS = Path(__file__).parent / "results"


def write(name: str, figures: dict[str, Any], **conditions: Any) -> None:
    """Write benchmarks/results/NAME.json: the figures, command (no full paths), device, versions, commit."""
    record = {
        "command": ["python", *(Path(told).name if Path(told).is_absolute() else told for told in sys.argv)],
        "device": cpu_name(),
        "torch_threads": torch.get_num_threads(),
        "versions": versions(PACKAGES),
        "commit": _commit(),
        **conditions,
        **figures,
    }
    write_text(RESULTS / f"{name}.json", json.dumps(record, indent=1) + "\n")
    print(f"wrote {RESULTS / f'{name}.json'}")


def conditions(arguments: argparse.Namespace, in_names: Set[str], bench: Any = None, **more: Any) -> dict[str, Any]:
    """What kept rows depend on beside their names.

    Args:
        arguments: the script's.
        in_names: arguments that say which rows to make (they are in the rows' names), or only where things lie.
        bench: a ``_cifar.Bench``; its weights and examples count by content.
        more: whatever else counts.
    """
    given = {key: value for key, value in vars(arguments).items() if key not in in_names}
    found: dict[str, Any] = {}
    if bench is not None:
        examples = bench.examples
        found = {"weights": state_digest(bench.network), "data": [examples.source_train.digest]}
        found["data"].append(examples.source_test.digest)
    made_by = {"code": [own_code(), _benchmarks_code()], "versions": versions(PACKAGES), "processor": cpu_name()}
    plain: dict[str, Any] = json.loads(json.dumps({"arguments": given, **found, **made_by, **more}, default=str))
    return plain


def kept(path: Path, under: dict[str, Any]) -> dict[str, Any]:
    """The rows, by name, that a file has under these conditions."""
    rows: dict[str, Any] = _sets(path).get(digest_of(under), {}).get("rows", {})
    return rows


def keep(path: Path, under: dict[str, Any], rows: dict[str, Any]) -> None:
    """Write the rows of these conditions; those of others stay in the file."""
    sets = {**_sets(path), digest_of(under): {"conditions": under, "rows": rows}}
    write_text(path, json.dumps(sets, indent=1) + "\n")


def kept_file(path: Path, under: dict[str, Any], kind: str) -> Path:
    """Where something large is kept beside the rows, under conditions of its own."""
    return path.with_name(f"{path.stem}_{kind}_{digest_of(under)}.pt")


def digest_of(under: dict[str, Any]) -> str:
    """16 hex digits of the conditions' SHA-256."""
    return hashlib.sha256(json.dumps(under, sort_keys=True).encode()).hexdigest()[:16]


def state_digest(network: torch.nn.Module) -> str:
    """Of all names and values of a network's state dict."""
    found = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def collection_digest(found: Collection) -> list[str]:
    """Of a whole data set: its training and its test part."""
    none = torch.zeros(1)
    parts = [part for part in (found.train, found.test) if part is not None]
    return [ClassExamples(images=part.images, labels=part.labels, mean=none, std=none).digest for part in parts]


def _sets(path: Path) -> dict[str, Any]:
    """Digest of conditions -> conditions and rows; what a file has in another form is dropped."""
    told = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {key: value for key, value in told.items() if isinstance(value, dict) and {"conditions", "rows"} == {*value}}


def _benchmarks_code() -> str:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def _commit() -> str | None:
    done = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None
