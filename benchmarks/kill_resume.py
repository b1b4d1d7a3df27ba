"""A run that is killed goes on: SIGKILL at random moments, the same command again, the same results.

    python benchmarks/kill_resume.py [--kills N] [--seed N]

Each trial starts a run in a new folder, kills it after a random share of a whole run's time, runs it again, and
compares architecture.json byte for byte, and results.json without its times, with those of a run left alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _results

COMMAND = [
    "recipe", "quickstart", "--quiet",
    "--set", "train.steps=12", "--set", "search.steps=8", "--set", "retrain.steps=6", "--set", "budgets=[70%]",
    "--set", "measure.tolerance=0.1",
]  # fmt: skip
TIMES = (
    "asked",
    "measured_p50_ms",
    "measured_p90_ms",
    "measured_p99_ms",
    "dense_p50_ms",
    "speedup",
    "speedup_low",
    "speedup_high",
    "disturbed",
)
"""What is measured anew in each run (``asked`` is a share of the dense network's time in it)."""


def start(out: Path, cache: Path) -> subprocess.Popen[bytes]:
    """Start the run in ``out``."""
    environment = {**os.environ, "DEPLOY_PRUNE_CACHE": str(cache)}
    args = [sys.executable, "-m", "deploy_prune.cli", *COMMAND, "--out", str(out)]
    return subprocess.Popen(args, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)


def outcome(out: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """(every architecture.json's text, results.json without times); no half-written file may be there."""
    run = out / "quickstart"
    assert not list(run.rglob(".writing-*")), "a half-written file was left behind"
    architectures = {str(p.relative_to(run)): p.read_text() for p in sorted(run.rglob("architecture.json"))}
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in json.loads((run / "results.json").read_text())]
    return architectures, rows


def main() -> None:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    trials = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        assert start(work / "first", work / "cache").wait() == 0, "the first run failed"
        started = time.perf_counter()
        assert start(work / "alone", work / "cache").wait() == 0, "the run left alone failed"
        whole_s = time.perf_counter() - started
        expected = outcome(work / "alone")
        assert outcome(work / "first") == expected, "two runs with one seed differ"
        for trial in range(arguments.kills):
            out, after_s = work / str(trial), generator.uniform(0.02, 0.98) * whole_s
            process = start(out, work / "cache")
            time.sleep(after_s)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            finished = sorted(p.stem for p in out.rglob(".stages/*.json"))
            code = start(out, work / "cache").wait()
            same = code == 0 and outcome(out) == expected
            trials.append({"killed_after_s": round(after_s, 2), "stages_finished": len(finished), "same": same})
            verdict = "same" if same else "DIFFERS"
            print(f"killed after {after_s:5.1f} of {whole_s:.1f} s, {len(finished)} stages done: {verdict}")
    _results.write("kill_resume", {"whole_s": whole_s, "trials": trials}, n=arguments.kills)
    sys.exit(0 if all(t["same"] for t in trials) else 1)


if __name__ == "__main__":
    main()
