"""Write figures into README.md, docs/ and benchmarks/README.md, from runs and from benchmarks/results/*.json.

python benchmarks/_readme.py [RUNS]      (default: runs, with mobilenet; what isn't there stays as it is)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any, Final

import _function_texts
import _texts
from _summary import sentences, summary
from _texts import Text, table
from rich.console import Console

from deploy_prune.report.latency import remarks
from deploy_prune.report.table import faster, milliseconds, results_table, score
from deploy_prune.run.folder import RunFolder
from deploy_prune.system.shell import write_text

ROOT: Final = Path(__file__).parent.parent
FIRST_ROWS: Final = 2
"""Of a run, as an example of what the terminal shows."""
TERMINAL_COLUMNS: Final = 80
Results = Mapping[str, dict[str, Any]]
"""A file's name in benchmarks/results, without its suffix -> what is in it."""

SECTIONS: Final[dict[str, dict[str, Text]]] = {
    "Budgets on CIFAR-10": {
        "cifar_resnet20": _texts.cifar, "cifar_resnet56": _texts.cifar, "cifar_resnet18": _texts.cifar,
        "cifar_latency_resnet20": _texts.cifar,
    },
    "Detection and segmentation": {"detection": _texts.task, "segmentation": _texts.task, "yolo_latency": _texts.yolo},
    "Few images of the same task": {
        "recovery_resnet56": _texts.recovery, "recovery_resnet20": _texts.recovery, "repair_resnet20": _texts.repair,
    },
    "New classes": {
        "transfer": _texts.carried, "transfer_defaults": _texts.carried, "digits_transfer": _texts.transfer,
    },
    "Subnetworks of random weights": {"aslp_conv2": _texts.aslp},
    "Formats": {"formats": _texts.formats, "parity": _texts.parity},
    "Costs": {
        "search_step": _texts.step, "cut_speed": _texts.cut_speed, "busy_training_mobilenet": _texts.busy,
        "busy_training_quickstart": _texts.busy, "reading": _texts.reading,
    },
    "Any network, any moment": {
        "zoo": _texts.zoo, "zoo_others": _texts.zoo_others, "kill_resume": _texts.resume,
    },
}  # fmt: skip
"""Title -> the figures below it in benchmarks/README.md."""


def all_of(texts: Mapping[str, Text]) -> Callable[[Results], str]:
    """The figures that are there, as texts and tables; empty without any."""
    return lambda results: "\n\n".join(text(results[name]) for name, text in texts.items() if name in results)


def sections(results: Results) -> str:
    """All tables, under their titles."""
    found = {title: all_of(texts)(results) for title, texts in SECTIONS.items()}
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in found.items() if text)


BLOCKS: Final[dict[str, dict[str, Callable[[Results], str]]]] = {
    "README.md": {"figures": sentences},
    "docs/benchmarks.md": {"benchmarks": summary},
    "docs/latency.md": {
        "latency-table": all_of({"latency_table": _texts.latency_table}),
        "budgets": all_of({"budgets": _texts.budgets}),
        "functions": all_of(
            {"published_latencies": _function_texts.functions, "activations": _function_texts.activations}
        ),
    },
    "benchmarks/README.md": {"benchmarks": sections},
}
"""File -> marker in it -> what stands there. Without any figures it stays as it is."""


def put(text: str, name: str, content: str) -> str:
    """Replace what stands between two markers."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}"


def run_table(folder: Path) -> str:
    """The results of a run."""
    run = RunFolder(path=folder)
    provenance = run.read_json("provenance.json")
    header = ["target", "budget", "speed-up (95%)", "p50 ms, slim / dense", "accuracy, dense → slim"]
    results = run.read_results()
    slim = [row for row in results if row.budget != "dense"]
    rows = [
        [row.target, row.budget, in_brackets(*faster(row)), in_brackets(*milliseconds(row)), score(row)] for row in slim
    ]
    where = f"`{provenance['command']}` on {provenance['cpu']}, one thread, {provenance['finished'][:10]}."
    return "\n\n".join((table(header, rows), " ".join((where, *remarks(results)))))


def in_brackets(figure: str, more: str) -> str:
    """As in "1.31x (1.29–1.33)"."""
    return f"{figure} ({more})" if more else figure


def terminal_table(folder: Path) -> str:
    """The first results of a run as the terminal shows them."""
    console = Console(file=StringIO(), width=TERMINAL_COLUMNS, color_system=None)
    with console.capture() as captured:
        console.print(results_table(RunFolder(path=folder).read_results()[:FIRST_ROWS]))
    lines = [line.rstrip() for line in captured.get().splitlines()]
    return "\n".join(["```text", *(line for line in lines if line), "```"])


RUNS: Final[dict[str, tuple[str, Callable[[Path], str]]]] = {
    "results": ("mobilenet", run_table),
    "terminal": ("mobilenet", terminal_table),
}
"""Marker in README.md -> the run's name, and what stands there."""


def written(runs: Path | None = None) -> dict[str, str]:
    """File -> its text with what the results say between its markers."""
    files = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    results = {path.stem: json.loads(path.read_text()) for path in files}
    texts = {file: (ROOT / file).read_text() for file in BLOCKS}
    for file, blocks in BLOCKS.items():
        for name, tell in blocks.items():
            if content := tell(results):
                texts[file] = put(texts[file], name, content)
    for marker, (name, tell_run) in RUNS.items():
        if runs is not None and (runs / name).is_dir():
            texts["README.md"] = put(texts["README.md"], marker, tell_run(runs / name))
    return texts


def main() -> None:
    """Rewrite what stands between the markers."""
    for file, text in written(Path(sys.argv[1] if len(sys.argv) > 1 else "runs")).items():
        write_text(ROOT / file, text)


if __name__ == "__main__":
    main()
