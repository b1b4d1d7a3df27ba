from dataclasses import dataclass, field

import pytest
import torch
from rich.console import Console

from deploy_prune.report.table import check_tables, results_table
from deploy_prune.types import Axis, ChannelGroup, Structure, Whole


def printed(*parts, width: int = 120, color: bool = False) -> str:
    console = Console(width=width, record=True, force_terminal=color, color_system="standard" if color else None)
    with console.capture() as capture:
        console.print(*parts, sep="\n")
    return capture.get()


def line_with(text: str, *words: str) -> str:
    return next(line for line in text.splitlines() if all(word in line for word in words))


def test_a_measured_row_shows_every_figure(make_row):
    line = line_with(printed(results_table([make_row("host", "50%")])), "host")
    for figure in ("50%", "1.24 ms", "1.23 ms", "1.26 / 1.35", "2.86", "0.906", "3.68", "98.3% → 96.8%", "ok"):
        assert figure in line


def test_a_predicted_row_is_never_called_ok_or_measured(make_row):
    line = line_with(printed(results_table([make_row("pixel-8", "50%")])), "pixel-8")
    assert "predicted" in line
    assert "not measured" in line
    assert "ok" not in line.split()


def test_no_row_needs_more_than_120_columns(rows, make_row):
    wide = make_row("jetson-orin-nano", "120 MMACs", metric="macs", asked=120e6, predicted=119e6)
    text = printed(results_table([*rows, wide]))
    assert max(map(len, text.splitlines())) <= 120
    assert len([line for line in text.splitlines() if "50%" in line and "→" in line]) == 2, "a row was wrapped"


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
    text = printed(results_table([make_row(metric="macs", asked=3e6, predicted=2.98e6, predicted_ms=1.7)]))
    assert "3.00 MMACs" in text
    assert "2.98 MMACs" in text
    assert "1.70 ms" in text


def test_a_dense_row_has_one_accuracy(make_row):
    line = line_with(printed(results_table([make_row("host", "dense")])), "dense", "98.3%")
    assert "→" not in line


@dataclass(frozen=True, kw_only=True)
class Reach:
    target: str = "host"
    granularity: int = 16
    granularity_source: str = "measured"
    metric: str = "latency"
    smallest: float = 0.31
    dense: float = 2.48
    predicted_by: str = "table"


@dataclass(frozen=True, kw_only=True)
class Answer:
    target: str = "host"
    budget: str = "50%"
    metric: str = "latency"
    asked: float = 1.24
    met: bool = True
    reason: str | None = None


def make_structure() -> Structure:
    unit_of = torch.arange(8)
    weight, bias = (Axis(tensor=f"stem.conv.{kind}", axis=0, unit_of=unit_of) for kind in ("weight", "bias"))
    reader = Axis(tensor="head.weight", axis=1, unit_of=unit_of)
    group = ChannelGroup(name="stem.conv", channels=8, period=4, consumers=(reader,), members=(weight, bias, reader))
    return Structure(groups=(group,), layers=(), whole=(Whole(name="head", channels=5, reason="it is an output"),))


@dataclass(frozen=True, kw_only=True)
class Report:
    recipe_name: str = "mobilenet"
    network: str = "torchvision:mobilenet_v2"
    structure: Structure = field(default_factory=make_structure)
    dense: dict = field(default_factory=lambda: {"macs": 6_130_000.0, "params": 2_230_000.0})
    targets: tuple = (Reach(),)
    budgets: tuple = (Answer(), Answer(budget="5%", asked=0.124, met=False, reason="the smallest reachable is 0.31 ms"))
    seconds: float = 1.234
    summary: tuple[str, ...] = ("Input: 3 x 32 x 32 pixels.",)


@pytest.fixture
def checked() -> str:
    return printed(*check_tables(Report()))


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
    text = printed(*check_tables(Report(structure=Structure(groups=(), layers=(), whole=()))))
    assert "No channel of this network can be pruned." in text
