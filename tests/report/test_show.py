"""The drawing of an architecture, from figures made up."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from deploy_prune.report.show import Cost, GroupLine, LayerLine, Overview, overview_tables
from deploy_prune.types import Input


def line(name: str, share: float, **changes: object) -> LayerLine:
    plain = LayerLine(
        name=name, kind="conv", inputs=(3, 3), outputs=(64, 16), macs=Cost(dense=100, slim=100 * share),
        latency=Cost(dense=1.0, slim=share),
    )  # fmt: skip
    return replace(plain, **changes)


OVERVIEW = Overview(
    source="resnet20", num_classes=10, inputs=(Input(shape=(1, 3, 32, 32), type="float32"),), form="graph",
    target="pixel-8",
    layers=(line("first", 0.25), line("second", 0.5, outputs=(64, 64))),
    groups=(GroupLine(name="first", channels=16, kept=4, period=4),),
    macs=Cost(dense=200, slim=75), params=Cost(dense=2e6, slim=1e6), latency=Cost(dense=4.0, slim=1.0),
)  # fmt: skip


def drawn(overview: Overview, width: int = 160) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(*overview_tables(overview), sep="\n")
    return [" ".join(text.split()) for text in console.file.getvalue().splitlines()]


def test_headline_layers_totals_and_groups() -> None:
    text = drawn(OVERVIEW)
    assert text[0] == "resnet20, 10 classes, input 1x3x32x32; cut: its exported graph"
    assert "first conv 3 64 → 16 25.0% 50.0% → 33.3% ███ 25.0% → 25.0% ██" in text
    assert "second conv 3 64 50.0% 50.0% → 66.7% ███████ 25.0% → 50.0% █████" in text
    assert "rest 50.0% → 25.0% ██" in text
    assert "MACs 37.5% 0.0000750 MMACs 0.000200 MMACs" in text
    assert "parameters 50.0% 1.00 M 2.00 M" in text
    assert "latency on pixel-8, predicted 25.0% 1.00 ms 4.00 ms" in text
    assert "first 64 16 25.0% ██░░░░░░░░" in text, "channels, not units"


def test_without_a_target_there_is_no_latency() -> None:
    layers = tuple(replace(each, latency=None) for each in OVERVIEW.layers)
    text = "\n".join(drawn(replace(OVERVIEW, target=None, latency=None, layers=layers)))
    assert "latency" not in text
    assert "rest" not in text


def test_nothing_to_choose_and_nothing_to_multiply() -> None:
    nothing = Cost(dense=0, slim=0)
    text = drawn(replace(OVERVIEW, groups=(), macs=nothing, layers=(line("a", 0, macs=nothing),)))
    assert "No channels of this network are chosen." in text
    assert any(each.startswith("a conv 3 64 → 16 – 0.0% → 0.0%") for each in text)


@pytest.mark.parametrize("name", ["[bold]x[/bold]", "[/]", "a\x1b[31mb"])
def test_names_are_shown_as_they_are(name: str) -> None:
    text = "\n".join(drawn(replace(OVERVIEW, layers=(line(name, 0.5),))))
    assert name.replace("\x1b", "") in text.replace("\x1b", "")


def test_as_json_is_plain_data() -> None:
    plain = OVERVIEW.as_json()
    assert plain["layers"][0] | {"macs": None, "latency": None} == {
        "name": "first", "kind": "conv", "inputs": (3, 3), "outputs": (64, 16), "macs": None, "latency": None,
    }  # fmt: skip
    assert plain["latency"] == {"dense": 4.0, "slim": 1.0}


def test_a_run_s_row_is_told_with_its_speedup_first(make_row) -> None:
    text = drawn(replace(OVERVIEW, results=make_row("host", "50%")))
    told = "latency on host: 1.98 times as fast as dense (95% interval 1.96–1.99): 1.26 ms, dense 2.48 ms in the same"
    assert any(line.startswith(told) for line in text)
    failed = drawn(replace(OVERVIEW, results=make_row("host", "50%", status="failed", error="Off by 9%.")))
    assert not any(line.startswith("latency on host:") for line in failed)
