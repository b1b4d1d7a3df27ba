"""A run's folder: finished stages are found again, everything is written under a temporary name first."""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import io
import json
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from deploy_prune.errors import RunFolderError, printable
from deploy_prune.report.row import Row
from deploy_prune.run.twins import Twins
from deploy_prune.system import strict_json
from deploy_prune.system.shell import atomic, files_of, shown, sweep, write_text
from deploy_prune.system.shell import digest as digest_of
from deploy_prune.types import Artifact

if TYPE_CHECKING:
    from torch import Tensor

RowT = TypeVar("RowT")

PACKAGES: Final = (
    "deploy-prune",
    "torch",
    "torchvision",
    "torch-pruning",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "numpy",
)
MOST_ROWS: Final = 4096
"""Of a trace: more than a chart can show, and at 200 bytes a row a tenth of what a JSON file may have."""
_FORMULA: Final = ("=", "+", "-", "@")
"""A spreadsheet takes a cell that begins so for a formula."""


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """Of what is told of a finished stage, what is shown."""

    stage: str
    seconds: float | None = None
    taken_from: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """One run on disk. A stage is finished once its mark, with the key of what it depends on, is written."""

    path: Path
    _sums: dict[Path, tuple[list[tuple[str, int, int, int]], str]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def open(self, fresh: bool) -> None:
        """Make the folder; sweep out what a killed run left half-written; with ``fresh``, forget finished stages.

        What another process is writing there stays. ``locks.hold`` has the folder for a whole command.

        Raises:
            RunFolderError: the folder can't be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            sweep(self.path)
            if fresh:
                shutil.rmtree(self._marks, ignore_errors=True)
            write_text(
                self._marks / "README",
                "What finished, and of what it depends; *.partial: how far what was stopped had come. Delete a file "
                "to do that again.\n",
            )
        except OSError as error:
            message = (
                f"The run folder {shown(self.path)} can't be written ({error.strerror}); choose another with --out."
            )
            raise RunFolderError(message) from error

    @property
    def _marks(self) -> Path:
        return self.path / ".stages"

    def stage(
        self, name: str, key: Mapping[str, Any], files: Sequence[str], compute: Callable[[], None],
        twins: Twins | None = None,
    ) -> str:  # fmt: skip
        """Run ``compute``, which writes ``files`` (paths in the folder), unless it is finished for this key.

        ``twins``: take the files of a finished stage of the same key and kind, if there is one.

        Returns:
            A digest of the key.
        """
        digest, mark = self.digest(name, key), self._mark(name)
        if not self.is_finished(name, key, files):
            with twins.alone(name, digest) if twins else nullcontext():
                paths, started = [self.path / file for file in files], time.perf_counter()
                mark.unlink(missing_ok=True)
                taken = twins.take(name, digest, paths) if twins else None
                if taken is None:
                    compute()
                how = {"seconds": round(time.perf_counter() - started, 1)} if taken is None else {"taken_from": taken}
                sums = [self.sha256(file) for file in paths]
                told = {"digest": digest, "files": dict(zip(files, sums, strict=True)), "stage": name, **how}
                write_text(mark, json.dumps(told, indent=1) + "\n")
                if twins:
                    twins.remember(digest, paths, sums)
        self.partial(name).unlink(missing_ok=True)
        return digest

    def digest(self, name: str, key: Mapping[str, Any]) -> str:
        """A digest of a stage's key, the same wherever it lies: TARGET/BUDGET/export has that of any other export."""
        text = json.dumps({**key, "stage": name.rpartition("/")[2]}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def sha256(self, path: Path) -> str:
        """A file's or folder's sha256; read again only if a size, a time or an inode has changed since."""
        stats = [(file, file.stat()) for file in files_of(path)]
        seen = [(str(file), stat.st_size, stat.st_mtime_ns, stat.st_ino) for file, stat in stats]
        if path not in self._sums or self._sums[path][0] != seen:
            self._sums[path] = seen, sha256(path)
        return self._sums[path][1]

    def partial(self, name: str) -> Path:
        """The file from which a stage goes on that was stopped."""
        return self._mark(name).with_suffix(".partial")

    def content(self, files: Sequence[str]) -> str:
        """A digest of files' contents, for the keys of later stages."""
        return hashlib.sha256("".join(self.sha256(self.path / file) for file in files).encode()).hexdigest()

    def forget(self, name: str) -> None:
        """The stage has to be done again."""
        self._mark(name).unlink(missing_ok=True)

    def seconds(self) -> dict[str, float]:
        """How long each finished stage took that was computed here; in the order in which they were."""
        return {one.stage: one.seconds for one in self._told() if one.seconds is not None}

    def taken_from(self) -> dict[str, str]:
        """Each stage whose files were taken from its twin, and from where."""
        return {one.stage: one.taken_from for one in self._told() if one.taken_from is not None}

    def _told(self) -> list[_Mark]:
        marks = sorted(self._marks.glob("*.json"), key=lambda mark: mark.stat().st_mtime_ns)
        return [strict_json.conform(_Mark, read_json(mark), RunFolderError, str(mark)) for mark in marks]

    def _mark(self, name: str) -> Path:
        return self._marks / f"{name.replace('/', '__')}.json"

    def is_finished(self, name: str, key: Mapping[str, Any], files: Sequence[str]) -> bool:
        """Whether a stage is finished for this key, and its files are as it left them."""
        try:
            kept = read_json(self._mark(name))
            return kept["digest"] == self.digest(name, key) and all(
                self.sha256(self.path / f) == kept["files"][f] for f in files
            )
        except (OSError, RunFolderError, KeyError, TypeError):
            return False

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the folder."""
        write_text(self.path / name, text)

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file of the folder."""
        write_text(self.path / name, json.dumps(content, indent=1) + "\n")

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the folder.

        Raises:
            RunFolderError: it is missing or damaged.
        """
        return read_json(self.path / name)

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a safetensors file of the folder."""
        save_tensors(self.path / name, tensors)

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        """Read a safetensors file of the folder.

        Raises:
            RunFolderError: it is missing or damaged.
        """
        return load_tensors(self.path / name)

    def write_results(self, rows: Sequence[Row]) -> None:
        """results.json and results.csv, a row each."""
        self.write_json("results.json", [asdict(row) for row in rows])
        table = io.StringIO()
        writer = csv.DictWriter(table, [f.name for f in fields(Row)])
        writer.writeheader()
        writer.writerows({key: cell(value) for key, value in asdict(row).items()} for row in rows)
        write_text(self.path / "results.csv", table.getvalue())

    def read_results(self) -> tuple[Row, ...]:
        """The rows of results.json.

        Raises:
            RunFolderError: there are none.
        """
        path = self.path / "results.json"
        where = f"{path} is not what this program writes"
        told = strict_json.figures(read_json(path), RunFolderError, where)
        rows: tuple[Row, ...] = strict_json.conform(tuple[Row, ...], told, RunFolderError, where)
        return rows

    def read_artifact(self, place: str) -> Artifact:
        """The artifact that a place's artifact.json tells of.

        Raises:
            RunFolderError: it is missing or damaged, or leads out of its folder.
        """
        file = self.path / place / "artifact.json"
        found: Artifact = strict_json.conform(Artifact, read_json(file), RunFolderError, str(file))
        if found.path.name != str(found.path) or found.path.name in ("", ".."):
            message = f"{file}: 'path' is {strict_json.shown(found.path)}, which is no file beside it."
            raise RunFolderError(message)
        return replace(found, path=self.path / place / found.path)

    def write_provenance(self, recipe_text: str, seed: int, summary: Sequence[str] = ()) -> None:
        """provenance.json: versions, machine, command line, and the sha256 of every file of the run.

        ``summary``: sentences of what went into the network.
        """
        files = sorted(p for p in self.path.rglob("*") if p.is_file() and self._lasting(p))
        self.write_json(
            "provenance.json",
            {
                "versions": versions(PACKAGES),
                "python": platform.python_version(),
                "platform": platform.platform(),
                "cpu": cpu_name(),
                "seed": seed,
                "summary": list(summary),
                "command": shlex.join(["deploy-prune", *sys.argv[1:]]),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": self.seconds(),
                "taken_from": self.taken_from(),
                "recipe_sha256": hashlib.sha256(recipe_text.encode()).hexdigest(),
                "files": {p.relative_to(self.path).as_posix(): self.sha256(p) for p in files},
            },
        )

    def _lasting(self, file: Path) -> bool:
        inside = file.relative_to(self.path)
        return not inside.parts[0].startswith(".") and inside.name not in {"provenance.json", "report.html"}


def is_run(path: Path) -> bool:
    """Whether this is a run's folder, finished or not; an architecture or a TARGET/BUDGET folder is none."""
    return (path / "recipe.yaml").is_file()


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed version of each package."""
    return {name: importlib.metadata.version(name) for name in packages}


def sha256(path: Path) -> str:
    """The file's or folder's sha256, hexadecimal."""
    return digest_of(path)


def thinned(rows: Sequence[RowT]) -> list[RowT]:
    """Every n-th row of a long trace, and the last: at most ``MOST_ROWS``."""
    step = -(-len(rows) // (MOST_ROWS - 1)) or 1
    kept = list(rows[::step])
    return kept if not rows or (len(rows) - 1) % step == 0 else [*kept, rows[-1]]


def cpu_name() -> str:
    """The processor's name, as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def read_json(path: Path) -> Any:
    """A JSON file's content. Raises RunFolderError if it is missing or damaged."""
    try:
        return strict_json.read(path, RunFolderError, finite=False)
    except RunFolderError as error:
        message = f"{path} is missing or damaged ({error}); run the recipe again."
        raise RunFolderError(message) from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file atomically; a tensor that two names share is written twice."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic(path) as temporary:
        try:
            save_file({k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}, temporary)
        except SafetensorError as error:  # a full disk, too, is of this class
            message = f"{shown(path)} can't be written: {error}"
            raise RunFolderError(message) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file's tensors. Raises RunFolderError if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        message = f"{path} is missing or damaged ({error}); run the recipe again."
        raise RunFolderError(message) from error
    return tensors


def cell(value: object) -> object:
    """A value for a table that a spreadsheet may open: text is printable, and never begins as a formula does."""
    if not isinstance(value, str):
        return value
    text = printable(value, keep="\n")
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text
