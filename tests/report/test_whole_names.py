"""No table at 80 columns shortens a name, so that no two names look alike."""

import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from deploy_prune.report.compare import Candidate, Comparison, Field
from deploy_prune.report.compare_table import compare_tables
from deploy_prune.report.results import BudgetReach, CheckReport, Place, TargetReach
from deploy_prune.report.show import Cost, GroupLine, LayerLine, Overview, overview_tables
from deploy_prune.report.table import check_tables, results_table
from deploy_prune.report.terminal import targets_table
from deploy_prune.types import ChannelGroup, Structure, Target, Whole

LETTERS = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz0123456789"), min_size=1, max_size=12)
NAME = st.lists(LETTERS, min_size=1, max_size=6).map(".".join)
TWO = st.tuples(NAME, LETTERS, LETTERS, NAME).map(lambda x: [f"{x[0]}.{x[1]}1.{x[3]}", f"{x[0]}.{x[2]}2.{x[3]}"])


def checked(names, _) -> tuple:
    groups = tuple(ChannelGroup(name=n, channels=8, period=1, consumers=(), members=()) for n in names)
    whole = tuple(Whole(name=n, channels=8, reason="it reaches the network's output") for n in names)
    reach = TargetReach(
        target=names[0], granularity=8, granularity_source="measured", metric="latency", smallest=0.3, dense=2.5,
        predicted_by="table",
    )  # fmt: skip
    met = BudgetReach(target=names[0], budget="50%", metric="latency", asked=1.2, met=True, reason=None)
    place = Place(kind=names[0], file=f"{names[1]}.py", line=7)
    return check_tables(
        CheckReport(
            recipe_name="r", network="n", structure=Structure(groups=groups, layers=(), whole=whole),
            dense={"macs": 1e6, "params": 1e6}, targets=(reach, replace(reach, target=names[1])),
            budgets=(met, replace(met, target=names[1])), seconds=1.0, places=(place, place),
        )
    )  # fmt: skip


def ran(names, make_row) -> tuple:
    return (results_table([replace(make_row(), target=name) for name in names]),)


def listed(names, _) -> tuple:
    common = {"format": "executorch", "precision": "fp32", "runtime": "r", "granularity": 8, "threads": 1}
    more = {"roofline": None, "runner": None, "title": "a device"}
    return (targets_table([Target(name=name, **common, **more) for name in names]),)


def drawn(names, _) -> tuple:
    cost = Cost(dense=2.0, slim=1.0)
    layers = tuple(
        LayerLine(name=n, kind="conv", inputs=(1024, 512), outputs=(1024, 512), macs=cost, latency=cost) for n in names
    )
    groups = tuple(GroupLine(name=n, channels=1024, kept=512, period=1) for n in names)
    return overview_tables(
        Overview(source="s", num_classes=2, inputs=(), form="module", target=names[0], layers=layers, groups=groups,
                 macs=cost, params=cost, latency=cost)
    )  # fmt: skip


def compared(names, make_row) -> tuple:
    candidates = tuple(
        Candidate(
            run=n, folder=Path(n), method="magnitude", row=make_row(), ms=1.0, low_ms=None, high_ms=None, score=0.9
        )
        for n in names
    )
    field = Field(
        device="host", data="digits", score_name="accuracy", score_unit="%", higher_is_better=True, measured=True,
        candidates=candidates,
    )  # fmt: skip
    different = {n: {"seed": place} for place, n in enumerate(names)}
    return compare_tables(Comparison(runs=tuple(names), fields=(field,), differences=different, left_out=()))


def columns(parts, width: int) -> list[str]:
    """What is printed, read down its columns: text in the same columns of lines below each other, joined."""
    console = Console(width=width, file=StringIO())
    console.print(*parts, sep="\n")
    return console.file.getvalue().splitlines()


def is_whole(name: str, printed: list[str]) -> bool:
    """Whether all of the name stands somewhere, in one line or broken into lines below each other."""
    for at, line in enumerate(printed):
        for begin in range(len(line)):
            left, below, column = name, at, begin
            while left and below < len(printed):
                word = re.match(r"\S*", printed[below][column:])[0]
                if not word or not left.startswith(word):
                    break
                left, below = left[len(word) :], below + 1
            if not left:
                return True
    return False


@pytest.mark.parametrize("table", [checked, ran, listed, drawn, compared], ids=lambda made: made.__name__)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=TWO)
def test_a_name_is_whole_in_80_columns(table, make_row, names):
    printed = columns(table(names, make_row), 80)
    assert max(map(len, printed)) <= 80
    assert "…" not in "".join(printed)
    for name in names:
        assert is_whole(name, printed), "\n".join(printed)
