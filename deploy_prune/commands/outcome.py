"""What a command shows when its work is done, and the error that it ends with if some of the results failed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy_prune.commands.frame import say
from deploy_prune.errors import BudgetError, of_kind
from deploy_prune.report.row import Row

if TYPE_CHECKING:
    from deploy_prune.bundle.write import Bundle
    from deploy_prune.report.results import CheckReport


def write_bundles(run: Path, target: str, budget: str | None, out: Path | None, trust: bool) -> None:
    """Write a run's bundles, and say what is in them and what is left out."""
    from deploy_prune.commands import export

    delivery = export.bundles(run, target, budget, out, trust)
    for made in delivery.bundles:
        _say_bundle(made)
    for row in delivery.left_out:
        say(f"left out: {row.target} {row.budget} failed: {row.error}", err=True)


def write_folder_bundle(source: Path, target: str, out: Path | None, trust: bool) -> None:
    """Write the bundle of a folder's network, and say what is in it."""
    from deploy_prune.commands.export_folder import folder_bundle

    _say_bundle(folder_bundle(source, target, out, trust))


def _say_bundle(made: Bundle) -> None:
    say("\n  ".join((f"{made.folder} and {made.packed}", *made.checked)))


def write_artifact(source: Path, target: str, out: Path, trust: bool, inputs: Sequence[str] = ()) -> None:
    """Write an architecture's artifact, and say what it is."""
    from deploy_prune.api import export
    from deploy_prune.architecture import json_file
    from deploy_prune.commands.given_inputs import or_own, parse_inputs
    from deploy_prune.commands.show import architecture_file

    given = parse_inputs(inputs)
    if given:
        or_own(given, json_file.load(architecture_file(source)))
    made = export.export_saved(source, target, out, trust, given)
    say(f"{made.path} {made.format} {made.precision} {made.size_bytes} bytes {made.sha256}")
    if made.unchecked:
        say(f"not compared with the network: {made.unchecked}", err=True)


def show_rows(rows: Sequence[Row]) -> None:
    """Print the table of a run's results."""
    from deploy_prune.report.table import results_table
    from deploy_prune.report.terminal import output

    output().print(results_table(rows))


def show_advice(run: Path, rows: Sequence[Row]) -> None:
    """Print where everything is, which network to take for each device, and the command that hands it over."""
    from deploy_prune.report.take import advice
    from deploy_prune.report.terminal import output

    for one in advice(run, rows):
        output().print(one.sentence, markup=False, highlight=False)
        if one.command:
            say(f"  {one.command}")
    say(run)


def require_ok(rows: Sequence[Row]) -> None:
    """Fail if a row failed. The table has every error; the message and the exit code are those of the first.

    Raises:
        DeployPruneError: a row failed; of the class of the first such row's error.
    """
    failed = [row for row in rows if row.status == "failed"]
    if failed:
        message = f"{len(failed)} of {len(rows)} results failed, the first of them {failed[0].target} "
        message += f"{failed[0].budget}: {failed[0].error}"
        raise of_kind(failed[0].error_kind)(message)


def require_met(report: CheckReport) -> None:
    """Fail if a budget can't be met. The table has every budget; the message has the first such one."""
    unmet = [reach for reach in report.budgets if not reach.met]
    if unmet:
        message = f"budgets: {unmet[0].budget!r} can't be met on {unmet[0].target}: {unmet[0].reason}"
        raise BudgetError(message)


def show_recipes() -> None:
    """Print the shipped recipes, each with the first line of its file, which says what it is."""
    from deploy_prune.recipe.file import shipped

    for name, path in shipped().items():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        say(f"{name:16} {first.lstrip('# ')}")
    say("\nRun one: deploy-prune recipe NAME. Write one for your data: deploy-prune init DATA.")


def show_cache() -> None:
    """Print what the cache has, a line for each kind."""
    from deploy_prune.system.cache import cache_folder, kinds

    found = kinds()
    for one in found:
        ages = f"{one.newest_days:.0f} to {one.oldest_days:.0f} days old"
        say(f"{one.name:12} {one.entries:6} entries {one.size_bytes / 1e6:9.2f} MB  {ages}")
    say(f"{cache_folder()}{'' if found else ' is empty'}")


def clear_cache(kind: str) -> None:
    """Remove what the cache has, of one kind or "all", and say how much that was."""
    from deploy_prune.system.cache import KINDS, cache_folder, clear

    if kind not in {"all", *KINDS}:
        message = f"there is no kind {kind!r} in the cache; write one of {', '.join(KINDS)}, or --clear alone for all"
        raise click.UsageError(message)
    num = clear(None if kind == "all" else kind)
    say(f"removed {num} entries from {cache_folder()}")
