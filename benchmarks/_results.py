"""Where benchmarks put their figures: benchmarks/results/NAME.json, with what is needed to make them again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from deploy_prune.runfolder import PACKAGES, cpu_name, versions
from deploy_prune.shell import write_text

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


def _commit() -> str | None:
    done = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None
