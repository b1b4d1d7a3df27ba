"""Progress of long work: bars on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from deploy_prune import types
from deploy_prune.errors import printable
from deploy_prune.report.table import plain_table

PLAIN_EVERY_S = 5.0
NOTEBOOK_EVERY_S = 0.5
Write = Callable[[str, str], object]
"""Gets a work's name, and the line that tells of it."""
SHARE: Final = "kept/"
"""Figures of such names are shares, and are shown together as a row of blocks ..."""
_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_MOST_BLOCKS: Final = 32
"""... of so many at most; beyond, every block is the mean of neighbours."""
_PIPED_WIDTH = 160  # columns of a table that no terminal shows
_BAR: Final = 12  # columns


@contextmanager
def rich_progress(stream: TextIO | None = None) -> Iterator[types.Progress]:
    """Yield a progress: a bar per work on a terminal, a line per work in a notebook, and plain lines on anything else.

    Args:
        stream: where to. Default: standard error, or the output of a notebook's cell.
    """
    console = PrintableConsole(file=stream or sys.stderr)
    if stream is None and console.is_jupyter:
        yield PlainLines(NotebookOutput(), every_s=NOTEBOOK_EVERY_S)
        return
    stream = stream or sys.stderr
    if not (stream.isatty() and console.is_interactive):
        yield PlainLines(written_to(stream))
        return
    with _bars(console) as bars:
        yield Bars(bars)


@contextmanager
def recipe_lines(names: Sequence[str], stream: TextIO | None = None) -> Iterator[Callable[[str, str], object]]:
    """Yield what is told a recipe's name and its last line: a line each on a terminal, on anything else all of them."""
    stream = stream or sys.stderr
    console = PrintableConsole(file=stream)
    if not (stream.isatty() and console.is_interactive):
        yield lambda name, line: stream.write(f"{printable(f'{name}: {line}')}\n") and stream.flush()
        return
    columns = ("{task.description}", "{task.fields[line]}")
    shown = Progress(*(TextColumn(column, markup=False) for column in columns), TimeElapsedColumn(), console=console)
    with shown:
        tasks = {name: shown.add_task(name, total=None, start=False, line="waits") for name in names}

        def show(name: str, line: str) -> None:
            shown.start_task(tasks[name])
            shown.update(tasks[name], line=printable(line))

        yield show


def output() -> Console:
    """The console for results on standard output; wide where it is not a terminal, so that no table is folded."""
    return PrintableConsole(width=None if sys.stdout.isatty() else _PIPED_WIDTH)


class PrintableConsole(Console):
    """A console on which names of files, targets and devices can't steer the terminal, whatever they contain."""

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        """What is written: text without control characters, and the console's own controls and colours."""
        clean = [s if s.control else Segment(printable(s.text, keep="\n"), s.style) for s in buffer]
        return super()._render_buffer(clean)


class NotebookOutput:
    """One output of a notebook's cell, which has the last line of every work."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}
        self._shown: Any = None

    def __call__(self, work: str, line: str) -> None:
        """Show the line in place of the work's last one."""
        self._lines[work] = line
        told = {"text/plain": "\n".join(self._lines.values())}
        if self._shown is None:
            self._shown = import_module("IPython.display").display(told, raw=True, display_id=True)
        else:
            self._shown.update(told, raw=True)


def written_to(stream: TextIO) -> Write:
    """What writes every line to a stream."""
    return lambda work, line: print(line, file=stream, flush=True)


class PlainLines:
    """A progress that writes "work: done/total figures, 3 min left" at first and last steps and every few seconds."""

    def __init__(
        self, write: Write, clock: Callable[[], float] = time.monotonic, every_s: float = PLAIN_EVERY_S
    ) -> None:
        self._write = write
        self._clock = clock
        self._every_s = every_s
        self._shown: dict[str, float] = {}
        self._begun: dict[str, tuple[float, int]] = {}

    def __call__(self, work: str, done: int, total: int, **figures: float) -> None:
        """Write a line if it is time for one."""
        now = self._clock()
        since, first = self._begun.setdefault(work, (now, done))
        if done < total and now - self._shown.get(work, -self._every_s) < self._every_s:
            return
        self._shown[work] = now
        left = (now - since) / (done - first) * (total - done) if done > first else 0.0
        told = f"{work}: {done}/{total} {_shown(figures)}".rstrip() + (f", {in_words(left)} left" if left >= 1 else "")
        self._write(work, printable(told))
        if done >= total:
            del self._begun[work]


class Bars:
    """A progress that shows a bar while a work goes on, and leaves one line of it when it is done."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, work: str, done: int, total: int, **figures: float) -> None:
        """Move the work's bar."""
        if work not in self._tasks:
            self._tasks[work] = self._bars.add_task(work, figures="", begun=done)
        task = self._tasks[work]
        self._bars.update(task, completed=done, total=total, figures=_shown(figures))
        if done >= total:
            self._bars.console.print(Text(f"{work}: {done}/{total} {_shown(figures)}".rstrip()))
            self._bars.remove_task(self._tasks.pop(work))


class TimeLeft(ProgressColumn):
    """As in "6 min left": what is left takes as long a step as what was done since the bar is there.

    Rich's own column looks back 30 seconds, in which no part of a long run ends.
    """

    def render(self, task: Task) -> Text:
        """Nothing before the first step is done."""
        begun = task.fields["begun"]
        done = task.completed - begun
        if not done or task.total is None or not task.elapsed:
            return Text("")
        return Text(f"{in_words(task.elapsed / done * (task.total - task.completed))} left")


def _bars(console: Console) -> Progress:
    """What a narrow terminal has no room for is cut off from the texts, never from the numbers."""
    work, figures = (Column(no_wrap=True, overflow="ellipsis", ratio=ratio, min_width=8) for ratio in (3, 2))
    bar, count, left = (Column(no_wrap=True, min_width=width) for width in (_BAR, 1, 1))
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=work),
        BarColumn(bar_width=_BAR, table_column=bar),
        MofNCompleteColumn(table_column=count),
        TimeLeft(table_column=left),
        TextColumn("{task.fields[figures]}", markup=False, table_column=figures),
        console=console, expand=True,
    )  # fmt: skip


def _shown(figures: dict[str, float]) -> str:
    plain = [f"{name}={_figure(value)}" for name, value in figures.items() if not name.startswith(SHARE)]
    shares = [value for name, value in figures.items() if name.startswith(SHARE)]
    return " ".join(plain + ([_blocks(shares)] if shares else []))


def in_words(seconds: float) -> str:
    """A duration in its largest unit, as in "40 s", "3 min" or "1.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _figure(value: float) -> str:
    """Three significant digits; all digits of whole numbers, and of what is before the point, up to a million."""
    return f"{value:.0f}" if abs(value) < 1e6 and (abs(value) >= 100 or value == round(value)) else f"{value:.3g}"


def _blocks(shares: Sequence[float]) -> str:
    """A block for each share (0 to 1), or for each of up to 32 runs of neighbours."""
    size = -(-len(shares) // _MOST_BLOCKS)
    means = [statistics.fmean(shares[start : start + size]) for start in range(0, len(shares), size)]
    return "".join(_BLOCKS[min(len(_BLOCKS) - 1, int(mean * len(_BLOCKS)))] for mean in means)


def targets_table(targets: Sequence[types.Target]) -> Table:
    """A row per device; at most 80 columns wide."""
    table = plain_table("target", "device", "runtime", "format\nprecision", "threads", "channels in", "latency")
    for target in targets:
        step = "measured steps" if target.granularity is None else f"steps of {target.granularity}"
        kind = (target.name, target.title, target.runtime, f"{target.format}\n{target.precision}", str(target.threads))
        table.add_row(*(Text(cell) for cell in (*kind, step, _how_known(target))))
    return table


def _how_known(target: types.Target) -> str:
    """Measured, or predicted and how wrong that is."""
    if target.runner is not None:
        return "measured"
    if target.error is None:
        return "predicted"
    judged = f"{target.error.networks} networks" if target.error.networks else "unverified"
    return f"predicted ±{target.error.median:.0%} ({judged})"
