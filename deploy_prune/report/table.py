"""Tables for the terminal: a run's results, and what ``deploy-prune check`` found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from deploy_prune.report import latency
from deploy_prune.report.results import BudgetReach, CheckReport, Outcome, TargetReach
from deploy_prune.report.row import Row
from deploy_prune.report.units import NONE, amount, in_unit, percent, plain
from deploy_prune.types import ChannelGroup


def results_table(rows: Sequence[Row]) -> Table:
    """Rows of results.json as a table of at most 80 columns; failed rows are red, their errors stand below it.

    The speed-up comes first, then p50 in ms beside dense's in the same rounds: ms of two rows can't be compared.
    Where the dense network was adapted to other classes, the original one comes first, with the score on its own.
    """
    table = plain_table("target", "budget\nasked")
    for header in ("speed-up\n(95%)", "p50 ms\nslim / dense", "MMACs\nM params\nMB"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column(f"{rows[0].score_name if rows else 'score'}\ndense →\nslim", justify="right")
    table.add_column("status")
    for index, row in enumerate(rows):
        new_target = index > 0 and rows[index - 1].target != row.target
        if new_target:
            table.add_section()
        if row.budget == "dense" and row.dense_adapted:
            table.add_row(
                Text(row.target),
                "original",
                *[""] * 3,
                f"{in_unit(row.score_given, row.score_unit)}\n(source)",
                style="dim",
            )
        style = "red" if row.status == "failed" else "dim" if row.budget == "dense" else None
        table.add_row(*_result(row), style=style)
    told = Text("\n".join((*data_sentences(rows), *latency.remarks(rows))), style="not italic", justify="left")
    errors = [f"\n{row.target} {row.budget}: {row.error}" for row in rows if row.status == "failed"]
    if told or errors:
        table.caption = told.append("".join(errors) if told else "".join(errors).lstrip(), style="red")
        table.caption_justify = "left"
    return table


def data_sentences(rows: Sequence[Row]) -> tuple[str, ...]:
    """What the slim networks learned from, and which network the dense one is; () where the rows don't tell."""
    row = next((row for row in rows if row.train_examples is not None), None)
    if row is None:
        return ()
    used, there = row.train_examples, row.train_examples_of
    learned = f"all {there}" if used == there else f"{used} of {there}"
    dense = "the original network, unchanged"
    if row.dense_adapted:
        given = in_unit(row.score_given, row.score_unit)
        dense = (
            f"the original network ({given} on its own classes) with new class layers, adapted with the same examples"
        )
    return (
        f"Retrained with {learned} training examples of the target task, scored on {row.test_examples} others.",
        f"Dense is {dense}.",
    )


def status(row: Row) -> str:
    """``ok`` only for what was measured; ``predicted`` where no device is attached; else ``failed``."""
    if row.status == "failed":
        return "failed"
    return "ok" if row.measured_on is not None else "predicted"


def input_size(row: Row) -> str:
    """Height and width of the input, where the recipe lists several; else nothing."""
    return "" if row.image_size is None else "{} x {} px".format(*row.image_size)


def score(row: Row) -> str:
    """The score of the dense and of the slim network; one figure for a dense row."""
    slim = in_unit(row.score, row.score_unit)
    if row.budget == "dense" or row.score_dense is None:
        return slim
    return f"{in_unit(row.score_dense, row.score_unit)} → {slim}"


def predicted(row: Row) -> str:
    """The prediction in the metric's unit; in ms too where the budget is about something else."""
    if row.metric == "latency":
        return amount(row.predicted_ms if row.predicted is None else row.predicted, "latency")
    figures = [amount(row.predicted, row.metric), amount(row.predicted_ms, "latency")]
    return "\n".join(figure for figure in figures if figure != NONE) or NONE


def faster(row: Row) -> tuple[str, str]:
    """The speed-up, and its interval or that it is predicted; NONE and nothing where there is no speed-up."""
    found = None if _is_unknown(row) else latency.speedup(row)
    sure = "predicted" if found is not None and row.measured_on is None else latency.interval(row)
    return latency.times(found), sure or ""


def milliseconds(row: Row) -> tuple[str, str]:
    """p50 in ms, slim / dense of the same rounds; and whether that is predicted, or was disturbed."""
    if _is_unknown(row):
        return NONE, ""
    if row.measured_on is None:
        return latency.beside_dense(row), "predicted"
    return latency.beside_dense(row), "disturbed" if row.disturbed else ""


def _is_unknown(row: Row) -> bool:
    """Nothing is known of its latency; a prediction of what then failed isn't told as if it were something."""
    return latency.latency_ms(row) is None or (row.status == "failed" and row.measured_on is None)


def _result(row: Row) -> tuple[str | Text, ...]:
    asked = "" if row.asked is None else amount(row.asked, row.metric)
    counted = (plain(row.macs, "macs"), plain(row.params, "params"), plain(row.size_bytes, "size"))
    return (
        Text(row.target),
        Text(lines(row.budget, asked, input_size(row))),
        lines(*faster(row)),
        lines(*milliseconds(row)),
        lines(*counted),
        score(row).replace("→ ", "→\n"),
        status(row),
    )


def outcomes_table(outcomes: Sequence[Outcome]) -> Table:
    """A row for each recipe's target and budget; below it, the error of each recipe that failed."""
    table = plain_table("recipe", "target", "budget")
    for header in ("speed-up\n(95%)", "p50 ms\nslim / dense", "score\ndense → slim", "minutes"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("status")
    for one in outcomes:
        took = f"{one.seconds / 60:.1f}"
        slim = [row for row in one.rows if row.budget != "dense"]
        if not slim:
            ended = ("failed", "red") if one.code else ("no results", None)
            table.add_row(Text(one.name), *[""] * 5, took, ended[0], style=ended[1])
        for row in slim:
            figures = (lines(*faster(row)), lines(*milliseconds(row)), score(row))
            style = "red" if row.status == "failed" else None
            table.add_row(Text(one.name), Text(row.target), Text(row.budget), *figures, took, status(row), style=style)
            took = ""
    errors = [f"{one.name}: {one.error}" for one in outcomes if one.code]
    table.caption, table.caption_justify = Text("\n".join(errors), style="red not italic", justify="left"), "left"
    return table


def lines(*cells: str) -> str:
    """One below the other, those that say something."""
    return "\n".join(filter(None, cells))


def check_tables(report: CheckReport) -> tuple[RenderableType, ...]:
    """What can be pruned, what can't and why, how far each target reaches, and which budgets can be met."""
    dense = f"{amount(report.dense['macs'], 'macs')}, {amount(report.dense['params'], 'params')} parameters"
    parts: list[RenderableType] = [Text(f"{report.recipe_name}: {report.network}, {dense}", style="bold")]
    parts.extend(map(Text, report.summary))
    parts.append(_groups(report.structure.groups))
    parts += left_whole(report)
    parts.append(_targets(report.targets))
    parts.append(_budgets(report.budgets))
    parts.append(Text(f"Checked in {report.seconds:.1f} s; nothing was trained.", style="dim"))
    return tuple(parts)


def _groups(groups: Sequence[ChannelGroup]) -> RenderableType:
    if not groups:
        return Text("No channel of this network can be pruned.", style="red")
    table = plain_table("group", title="Prunable channels")
    table.add_column("channels", justify="right")
    table.add_column("period", justify="right")
    table.add_column("layers touched", justify="right")
    table.add_column("read by")
    for group in groups:
        first, *others = _modules(axis.tensor for axis in group.consumers) or (NONE,)
        readers = f"{first} and {len(others)} more" if others else first
        touched = len(_modules(axis.tensor for axis in group.members))
        table.add_row(Text(group.name), str(group.channels), str(group.period), str(touched), Text(readers))
    return table


def left_whole(report: CheckReport) -> tuple[RenderableType, ...]:
    """What can't be pruned, why, and where it is; below it for each kind of reason what to change."""
    if not report.left_whole:
        return (Text("Nothing is left whole."),)
    table = plain_table("left whole", title="Not prunable")
    table.add_column("channels", justify="right", no_wrap=True)
    table.add_column("why")
    table.add_column("used in")
    remedies: dict[str, list[str]] = {}
    for part, place, remedy in report.left_whole:
        where = lines(place.kind, f"{place.file}:{place.line}") if place else NONE
        table.add_row(Text(part.name), str(part.channels), Text(part.reason), Text(where))
        if remedy is not None:
            remedies.setdefault(f"{remedy.title}. {remedy.change}", []).append(part.name)
    told = [f"{', '.join(dict.fromkeys(names))}: {what}" for what, names in remedies.items()]
    return (table, Text("To free them", style="bold"), *map(Text, told), Text(""))


def _targets(targets: Sequence[TargetReach]) -> Table:
    table = plain_table("target", title="Reachable cost")
    for header in ("smallest\nin % of dense", "smallest", "dense", "multiples of"):
        table.add_column(header, justify="right")
    table.add_column("multiples from")
    table.add_column("predicted by")
    for reach in targets:
        figures = (amount(reach.smallest, reach.metric), amount(reach.dense, reach.metric))
        share = percent(reach.smallest / reach.dense)
        origin = (Text(reach.granularity_source), Text(reach.predicted_by))
        table.add_row(Text(reach.target), share, *figures, str(reach.granularity), *origin)
    return table


def _budgets(budgets: Sequence[BudgetReach]) -> Table:
    table = plain_table("target", "budget", title="Budgets")
    table.add_column("asked", justify="right")
    table.add_column("can be met")
    for reach in budgets:
        answer = Text("yes", style="green") if reach.met else Text(f"no: {reach.reason}", style="red")
        table.add_row(Text(reach.target), Text(reach.budget), amount(reach.asked, reach.metric), answer)
    return table


class WholeNames(Table):
    """A table that breaks a name too long for its column into lines: a name that is cut short may look like another."""

    def add_column(self, header: RenderableType = "", *args: Any, **how: Any) -> None:
        """As rich's, with other overflow; figures (no_wrap) are never broken."""
        super().add_column(header, *args, **{"overflow": "ellipsis" if how.get("no_wrap") else "fold", **how})


def plain_table(*headers: str, title: str | None = None) -> Table:
    """An empty table with these columns, in the style of all."""
    table = WholeNames(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.title_style, table.title_justify = "bold not italic", "left"
    for header in headers:
        table.add_column(header)
    return table


def _modules(tensors: Iterable[str]) -> tuple[str, ...]:
    """Paths of the modules that own these tensors, in order, each once."""
    return tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in tensors))
