"""Which network of a run to take for each device, why, and the command that hands it over.

The rule: of the networks that passed every check and are faster than dense, the fastest whose artifact scores no more
than the recipe's ``export.max_score_drop`` below the dense network. If all of them lose more, the one that scores best
(of equals the fastest): it is at the end of the Pareto front. If none is faster than dense, none.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from deploy_prune.errors import RunFolderError
from deploy_prune.recipe.file import read_values
from deploy_prune.recipe.parts import ExportPart
from deploy_prune.report import latency
from deploy_prune.report.row import Row
from deploy_prune.report.units import digits, in_unit

BUNDLES: Final = Path("bundles")
"""Where bundles go unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Which row of a target to take (None: no network is faster than dense), why, and how to hand it over.

    ``command`` writes ``bundle``; both are empty without a row.
    """

    target: str
    row: Row | None
    why: str
    command: str = ""
    bundle: str = ""

    @property
    def sentence(self) -> str:
        """What to take and why."""
        return f"Take for {self.target}: {f'{self.row.budget}, ' if self.row else ''}{self.why}."


def advice(run: Path, rows: Sequence[Row]) -> tuple[Advice, ...]:
    """For each target whose dense network could be judged, in the order of the rows.

    Args:
        run: the run folder, whose recipe says how much worse a network may score.
        rows: its results.

    Raises:
        RecipeError, RunFolderError: its recipe can't be read.
    """
    if not rows:
        return ()
    name, part = _of_the_recipe(run)
    return tuple(
        _advised(run, name, part, target, here)
        for target in dict.fromkeys(row.target for row in rows)
        if (here := [row for row in rows if row.target == target and _is_known(row)])
    )


def bundle_place(name: str, target: str, budget: str, folder: Path = BUNDLES) -> Path:
    """Where the bundle of a run of this name goes: "50% macs" is 50pct-macs, fit for a file's name anywhere."""
    return folder / f"{name}-{target}-{re.sub(r'[^A-Za-z0-9.]+', '-', budget.replace('%', 'pct'))}"


def _of_the_recipe(run: Path) -> tuple[str, ExportPart]:
    """The run's name, and what its recipe says of artifacts; the defaults where it says nothing, or is gone."""
    file = run / "recipe.yaml"
    values = read_values(str(file))[0] if file.is_file() else {}
    said = values.get("export")
    drop = {key: said[key] for key in ("max_score_drop",) if key in said} if isinstance(said, dict) else {}
    try:
        return str(values.get("name", run.resolve().name)), ExportPart(**drop)
    except ValidationError as error:
        message = f"{file}: export.max_score_drop is {drop['max_score_drop']!r}, which is no drop of a score."
        raise RunFolderError(message) from error


def _is_known(row: Row) -> bool:
    return row.budget != "dense" and row.status != "failed" and None not in (row.score, row.score_dense)


def _advised(run: Path, name: str, part: ExportPart, target: str, rows: Sequence[Row]) -> Advice:
    faster = sorted((row for row in rows if _speedup(row) > 1), key=_speedup, reverse=True)
    if not faster:
        return Advice(target=target, row=None, why="no network, as none is faster than the dense one")
    dense = _known(rows[0].score_dense)
    allowed, unit = part.allowed_drop(dense), rows[0].score_unit
    close = [row for row in faster if _loss(row) <= allowed]
    taken = close[0] if close else min(faster, key=_loss)
    drop = f"{100 * allowed:.3g} points" if unit == "%" else f"{digits(allowed)} {unit}".rstrip()
    score = f"{taken.score_name} {in_unit(_score(taken), unit)}, dense {in_unit(dense, unit)}"
    limit = f"{drop} below dense (export.max_score_drop)"
    why = f"the fastest that scores at most {limit}" if close else f"the best score, as all are more than {limit}"
    bundle = bundle_place(name, target, taken.budget)
    command = shlex.join(["deploy-prune", "export", str(run), "--target", target, "--budget", taken.budget])
    kind = "" if taken.measured_on else "predicted "
    return Advice(
        target=target, row=taken, why=f"{kind}{latency.times(_speedup(taken))}: {why}; {score}", command=command,
        bundle=str(bundle),
    )  # fmt: skip


def _speedup(row: Row) -> float:
    return latency.speedup(row) or 0.0


def _score(row: Row) -> float:
    """The artifact's in its runtime where that was computed, else the network's."""
    return _known(row.score if row.score_artifact is None else row.score_artifact)


def _loss(row: Row) -> float:
    """How much worse than dense it scores; below 0: better."""
    lost = _known(row.score_dense) - _score(row)
    return lost if row.higher_is_better else -lost


def _known(score: float | None) -> float:
    assert score is not None
    return score
