"""Many recipes at once: a process for each, a device for each, and a table of what came of them."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import IO, Final

import click

from deploy_prune.commands.frame import say, write_json
from deploy_prune.errors import RecipeError, RunFolderError
from deploy_prune.recipe.file import resolve
from deploy_prune.recipe.sweep import Swept
from deploy_prune.report.results import Outcome
from deploy_prune.report.row import Row
from deploy_prune.system.guard import guarded

RECIPE: Final = (sys.executable, "-P", "-m", "deploy_prune.cli", "recipe")
"""The command that runs one recipe. Nothing is imported from the current folder but the user's own code."""
END_S: Final = 10.0
"""After an interrupt, a recipe has so long to write down where it is."""
_ERROR: Final = "deploy-prune: error: "

Show = Callable[[str, str], object]
"""Gets a recipe's name and the last line of its progress."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A recipe to run: its name, and the command's arguments behind ``recipe``."""

    name: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Pool:
    """What the threads share: places on devices that are free, processes that run, and whether all is to stop."""

    out: Path
    show: Show
    places: queue.Queue[str | None] = field(default_factory=queue.Queue)
    running: list[subprocess.Popen[str]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, job: Job) -> Outcome:
        """One recipe, as soon as there is a place."""
        device, started = self.places.get(), time.time()
        try:
            code, told = self._process(job, device)
        finally:
            self.places.put(device)
        error = next((line.removeprefix(_ERROR) for line in reversed(told) if line.startswith(_ERROR)), None)
        if code and error is None:
            error = told[-1] if told else f"it ended with exit code {code}"
        return Outcome(
            name=job.name, code=code, error=error if code else None, device=device, seconds=time.time() - started,
            rows=_results(self.out / job.name, started),
        )  # fmt: skip

    def _process(self, job: Job, device: str | None) -> tuple[int, list[str]]:
        """Its exit code, and the last lines of its standard error."""
        placed = ["--set", f"device={device}"] if device else []
        if self.stop.is_set():
            return signal.SIGINT + 128, []
        process = subprocess.Popen(  # noqa: S603
            [*RECIPE, *job.arguments, *placed], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        with guarded(process.pid):
            self.running.append(process)
            told = self._follow(job.name, process.stderr) if process.stderr else []
            code = process.wait()
        return code if code >= 0 else 128 - code, told

    def _follow(self, name: str, lines: IO[str]) -> list[str]:
        told: list[str] = []
        with lines:
            for line in lines:
                self.show(name, line.rstrip())
                told = [*told[-9:], line.rstrip()]
        return told

    def end(self) -> None:
        """Interrupt what runs, and end what doesn't end by itself."""
        self.stop.set()
        for sent, seconds in ((signal.SIGINT, END_S), (signal.SIGKILL, END_S)):
            for process in [one for one in self.running if one.poll() is None]:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, sent)
            until = time.monotonic() + seconds
            while any(one.poll() is None for one in self.running) and time.monotonic() < until:
                time.sleep(0.05)


def run_many(jobs: Sequence[Job], out: Path, at_once: int, devices: Sequence[str], show: Show) -> list[Outcome]:
    """Run recipes, at most ``at_once`` at a time, each in a process of its own; their outcomes in the same order.

    Args:
        jobs: the recipes. One that fails doesn't stop the others.
        out: the folder of run folders that they write to.
        at_once: so many places there are; they are spread over the devices.
        devices: where recipes train, a device for each place in turn; none: as each recipe says.
        show: gets every line of a recipe's progress.

    Raises:
        RecipeError: two have the same name, and so the same run folder.
    """
    names = [job.name for job in jobs]
    if len(set(names)) < len(names):
        message = f"Two recipes have the name {max(names, key=names.count)!r}, and so the same run folder; "
        raise RecipeError(message + "give one another name.")
    pool = _Pool(out=out, show=show)
    for device in islice(cycle(devices or [None]), at_once):
        pool.places.put(device)
    with ThreadPoolExecutor(max_workers=at_once) as threads:
        try:
            return [one.result() for one in [threads.submit(pool.run, job) for job in jobs]]
        except BaseException:
            pool.end()
            raise


def run_recipes(
    recipes: Sequence[tuple[str, Swept]], out: Path, at_once: int | None, devices: str | None, flags: Sequence[str],
    quiet: bool, json_file: Path | None = None,
) -> None:  # fmt: skip
    """Run recipes, each with the name that it was given by, and show (and write) what came of them.

    Raises:
        RecipeError: ``devices`` are none.
        Exit: some failed; with the highest of their exit codes.
    """
    from deploy_prune.report.table import outcomes_table
    from deploy_prune.report.terminal import output, recipe_lines

    places = [device.strip() for device in devices.split(",")] if devices else []
    for device in places:
        resolve({"name": "x", "model": {"source": "resnet20"}, "device": device}, name="--devices")
    jobs = []
    for name, one in recipes:
        sets = [word for setting in one.settings for word in ("--set", setting)]
        jobs.append(Job(name=one.recipe.name, arguments=(name, *sets, "--out", str(out), *flags)))
    with nullcontext(lambda name, line: None) if quiet else recipe_lines([job.name for job in jobs]) as show:
        outcomes = run_many(jobs, out, at_once or len(places) or 1, places, show)
    output().print(outcomes_table(outcomes))
    write_json(json_file, [row for one in outcomes for row in one.as_json()])
    failed = [one for one in outcomes if one.code]
    if failed:
        say(f"deploy-prune: error: {len(failed)} of {len(outcomes)} recipes failed, see above.", err=True)
        raise click.exceptions.Exit(max(one.code for one in failed))


def _results(folder: Path, since: float) -> tuple[Row, ...]:
    """The rows that were written since then."""
    from deploy_prune.run.folder import RunFolder

    file = folder / "results.json"
    try:
        return RunFolder(path=folder).read_results() if file.stat().st_mtime >= since - 0.1 else ()
    except (OSError, RunFolderError):
        return ()
