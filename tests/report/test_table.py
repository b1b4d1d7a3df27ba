from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from deploy_prune.report.results import BudgetReach, CheckReport, TargetReach
from deploy_prune.report.table import check_tables, results_table
from deploy_prune.run.pipeline import Run
from deploy_prune.types import Axis, ChannelGroup, Structure, Whole


def printed(*parts, width: int = 120, color: bool = False) -> str:
    console = Console(width=width, record=True, force_terminal=color, color_system="standard" if color else None)
    with console.capture() as capture:
        console.print(*parts, sep="\n")
    return capture.get()


def cells(*parts) -> list[str]:
    """The lines that are printed, with single spaces."""
    return [" ".join(line.split()) for line in printed(*parts).splitlines()]


def line_with(text: str, *words: str) -> str:
    return next(line for line in text.splitlines() if all(word in line for word in words))


def test_a_measured_row_shows_every_figure(make_row):
    lines = cells(results_table([make_row("host", "50%")]))
    first = next(index for index, line in enumerate(lines) if line.startswith("host"))
    assert lines[first : first + 3] == [
        "host 50% 1.98x 1.26 / 2.48 2.86 98.3% → ok",
        "1.24 ms 1.96–1.99 0.906 96.8%",
        "3.68",
    ]


def test_a_notebook_shows_a_run_as_its_table(make_row):
    run = Run(folder=Path("runs/<mine>"), rows=(make_row("host", "50%"),), summary=("Input: 3 x 64 x 64.",))
    shown = run._repr_mimebundle_((), ())["text/html"]
    assert "1.26 / 2.48" in shown
    assert "Input: 3 x 64 x 64." in shown
    assert "runs/&lt;mine&gt;" in shown
    assert "Row(" not in shown


def test_a_predicted_row_is_never_called_ok_or_measured(make_row):
    lines = cells(results_table([make_row("pixel-8", "50%")]))
    (first,) = (index for index, line in enumerate(lines) if line.startswith("pixel-8"))
    assert lines[first] == "pixel-8 50% 2.00x 0.495 / 0.990 2.86 98.3% → predicted"
    assert lines[first + 1].startswith("0.500 ms predicted predicted"), "no interval"


def test_a_row_takes_three_lines_in_80_columns(make_row):
    rows = [make_row(target, budget) for target in ("host", "pixel-8") for budget in ("dense", "75%", "50%")]
    wide, narrow = (printed(results_table(rows), width=width) for width in (200, 80))
    assert max(map(len, wide.splitlines())) <= 80
    assert narrow.splitlines() == [line[:80] for line in wide.splitlines()], "nothing was wrapped or left out"


def test_a_failed_row_is_red_with_its_whole_error_below(rows):
    text = printed(results_table(rows), color=True)
    assert line_with(text, "failed").count("\x1b[31m") > 5
    assert "smallest reachable is 0.34 ms" in " ".join(printed(results_table(rows)).split())


def test_markup_in_names_and_errors_is_text(make_row):
    row = make_row("host", "[bold]", status="failed", error="bad key [/nonsense]")
    text = printed(results_table([row]))
    assert "[bold]" in text
    assert "[/nonsense]" in text


def test_a_macs_budget_is_in_macs_with_the_latency_beside_it(make_row):
    row = make_row("pixel-8", metric="macs", asked=3e6, macs=2_980_000, predicted_ms=1.7, predicted_dense_ms=3.4)
    text = printed(results_table([row]))
    for words in ("3.00 MMACs", "2.98", "2.00x", "1.70 / 3.40"):
        assert words in text


def test_what_failed_before_it_was_made_has_no_macs_and_no_latency(make_row):
    unknown = dict.fromkeys(("macs", "params", "size_bytes", "score", "score_dense", "speedup"))
    unknown |= dict.fromkeys(
        ("measured_on", "measured_p50_ms", "measured_p90_ms", "dense_p50_ms", "speedup_low", "speedup_high")
    )
    row = make_row("host", "50%", status="failed", error="It can't be written.", **unknown)
    lines = cells(results_table([row]))
    (first,) = (index for index, line in enumerate(lines) if line.startswith("host 50% –"))
    assert lines[first : first + 3] == ["host 50% – – – – failed", "1.24 ms –", "–"]


def test_a_dense_row_has_one_accuracy(make_row):
    line = line_with(printed(results_table([make_row("host", "dense")])), "dense", "98.3%")
    assert "→" not in line


def make_structure() -> Structure:
    unit_of = torch.arange(8)
    weight, bias = (Axis(tensor=f"stem.conv.{kind}", axis=0, unit_of=unit_of) for kind in ("weight", "bias"))
    reader = Axis(tensor="head.weight", axis=1, unit_of=unit_of)
    group = ChannelGroup(name="stem.conv", channels=8, period=4, consumers=(reader,), members=(weight, bias, reader))
    return Structure(groups=(group,), layers=(), whole=(Whole(name="head", channels=5, reason="it is an output"),))


def make_report(**changes) -> CheckReport:
    reach = TargetReach(
        target="host", granularity=16, granularity_source="measured", metric="latency", smallest=0.31, dense=2.48,
        predicted_by="table",
    )  # fmt: skip
    met = BudgetReach(target="host", budget="50%", metric="latency", asked=1.24, met=True, reason=None)
    unmet = replace(met, budget="5%", asked=0.124, met=False, reason="the smallest reachable is 0.31 ms")
    report = CheckReport(
        recipe_name="mobilenet", network="torchvision:mobilenet_v2", structure=make_structure(),
        dense={"macs": 6_130_000.0, "params": 2_230_000.0}, targets=(reach,), budgets=(met, unmet), seconds=1.234,
        summary=("Input: 3 x 32 x 32 pixels.",),
    )  # fmt: skip
    return replace(report, **changes)


@pytest.fixture
def checked() -> str:
    return printed(*check_tables(make_report()))


def test_check_names_the_network_and_what_it_costs(checked):
    assert "mobilenet: torchvision:mobilenet_v2, 6.13 MMACs, 2.23 M parameters" in checked


def test_check_counts_a_layer_once(checked):
    assert line_with(checked, "stem.conv").split() == ["stem.conv", "8", "4", "2", "head"]


def test_check_says_what_stays_whole_and_why(checked):
    assert line_with(checked, "it is an output").split()[:2] == ["head", "5"]


def test_check_shows_how_far_a_target_reaches(checked):
    line = line_with(checked, "measured")
    for figure in ("0.310 ms", "2.48 ms", "12.5%", "16", "table"):
        assert figure in line


def test_check_says_which_budgets_can_be_met(checked):
    assert line_with(checked, "50%").split()[-1] == "yes"
    assert "no: the smallest reachable is 0.31 ms" in line_with(checked, " 5%")


def test_check_of_a_network_without_groups_says_so():
    text = printed(*check_tables(make_report(structure=Structure(groups=(), layers=(), whole=()))))
    assert "No channel of this network can be pruned." in text
