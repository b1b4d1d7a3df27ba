"""A run measured again: what stands beside a row, and when layers are named."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from deploy_prune.commands import bench
from deploy_prune.cost import Lost
from deploy_prune.device.targets import load_target
from deploy_prune.errors import MeasurementError, TargetError
from deploy_prune.recipe.parts import parse_budget
from deploy_prune.report.bench import bench_tables
from deploy_prune.report.results import Bench
from deploy_prune.report.row import Row
from deploy_prune.run.final_latency import with_latency
from deploy_prune.types import Latency

HOST = replace(load_target("host"), granularity=4)
LOST = Lost(layer="features.3", dense_ms=1.0, slim_ms=0.8, macs_share=0.25, share=0.4, reason="granularity")


def row(budget="50%", **changes) -> Row:
    values = dict.fromkeys(Row.__dataclass_fields__) | {
        "target": "host", "runtime": "onnxruntime", "precision": "fp32", "budget": budget, "metric": "latency",
        "asked": 2.0, "predicted": 1.9, "macs": 40, "params": 10, "status": "ok",
    }  # fmt: skip
    return Row(**(values | changes))


def latency(ms, num=20):
    samples = tuple(ms * (1 + i / 1000) for i in range(num))
    return Latency(samples_ms=samples, warmup=0, threads=1, device="test", measured_on="host")


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Measures a run of a dense and a slim artifact, of which the slim one takes the given share."""

    def run(share, target=HOST, budget="50%", **changes):
        monkeypatch.setattr(bench, "measure_steadily", lambda t, both, runs, warmup: taken(both, share))
        monkeypatch.setattr(bench.stages, "artifact_of", lambda folder, place: SimpleNamespace(place=place))
        monkeypatch.setattr(bench, "profile_for", lambda target, artifacts, ms, seconds: ({"a": 1.0}, {"a": 2.0}))
        monkeypatch.setattr(bench, "lost", lambda artifacts, profiles, granule: (LOST,))
        recipe = SimpleNamespace(
            budgets_of=lambda target: [parse_budget(budget, "latency")],
            measure=SimpleNamespace(warmup=3, tolerance=0.03),
            export=None,
        )
        rows = (row("dense", macs=100), row(budget, **changes))
        return tuple(bench._measured_again(tmp_path, rows, recipe, {"host": target}, 20))

    def taken(artifacts, share):
        return (latency(4.0), latency(4.0 * share))[: len(artifacts)]

    return run


def test_a_row_has_percentiles_and_the_interval_of_its_speedup(measured):
    dense, slim = measured(0.5)
    assert dense.row.speedup is None, "a network isn't compared with itself"
    assert slim.row.speedup == slim.row.speedup_low == slim.row.speedup_high == pytest.approx(2)
    assert slim.row.measured_p50_ms < slim.row.measured_p90_ms < slim.row.measured_p99_ms
    assert slim.row.asked == pytest.approx(0.5 * slim.row.dense_p50_ms)
    assert (dense.macs_share, slim.macs_share) == (1.0, 0.4)


def test_layers_are_named_where_latency_fell_less_than_macs(measured):
    assert [found.lost for found in measured(0.5)] == [(), (LOST,)]
    assert [found.lost for found in measured(0.42)] == [(), ()]


@pytest.mark.parametrize(("budget", "share"), [("2 ms", 0.6), ("50%", 0.6), ("2 ms", 0.52)])
def test_a_row_over_its_budget_is_failed_with_the_cause(measured, budget, share):
    row = measured(share, budget=budget)[1].row
    assert (row.status, row.error_kind) == ("failed", "BudgetError")
    assert f"host/{budget} takes 2." in row.error
    assert "(+-3%)" in row.error
    assert row.measured_p50_ms == pytest.approx(4.0 * share, rel=0.02)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.51])
def test_a_row_within_the_run_s_tolerance_is_ok(measured, share):
    assert measured(share)[1].row.status == "ok"


def test_what_was_predicted_and_is_measured_now_is_ok(measured):
    assert measured(0.4, status="predicted")[1].row.status == "ok"


def test_a_row_that_failed_in_the_run_has_no_old_figures_beside_new_ones(measured):
    old = {"measured_p50_ms": 9.0, "dense_p50_ms": 8.0, "measured_on": "host", "speedup": 1.1, "asked": 4.0}
    dense, slim = measured(0.5, status="failed", error="Off by 9%.", error_kind="ParityError", **old)
    assert dense.row.measured_on == "host"
    assert [getattr(slim.row, name) for name in old] == [None] * len(old)
    assert (slim.row.status, slim.row.error_kind) == ("failed", "ParityError")


def test_a_row_that_can_not_be_measured_is_failed_and_the_others_go_on(measured, monkeypatch):
    def once(target, both, runs, warmup):
        if made:
            message = "The device is gone."
            raise MeasurementError(message)
        made.append(target)
        return (latency(4.0),)

    made = []
    monkeypatch.setattr(bench, "measure_steadily", once)
    monkeypatch.setattr(bench.stages, "artifact_of", lambda folder, place: SimpleNamespace(place=place))
    part = SimpleNamespace(warmup=3, tolerance=0.03)
    recipe = SimpleNamespace(budgets_of=lambda target: [parse_budget("50%", "latency")], measure=part, export=None)
    rows = (row("dense", macs=40), row(measured_p50_ms=3.0, measured_on="host"))
    dense, slim = bench._measured_again(SimpleNamespace(path="run"), rows, recipe, {"host": HOST}, 20)
    assert dense.row.status == "ok"
    assert (slim.row.status, slim.row.error_kind, slim.row.error) == (
        "failed",
        "MeasurementError",
        "The device is gone.",
    )
    assert slim.row.measured_p50_ms is None


def test_a_runtime_that_does_not_tell_names_none(measured):
    _, slim = measured(0.5, replace(HOST, format="ncnn", runtime="ncnn"))
    assert slim.lags
    assert slim.lost == ()
    assert "no single layer can be named" in shown(slim)


def shown(*found: Bench) -> str:
    console = Console(width=120, record=True, file=None, quiet=True)
    with console.capture() as captured:
        console.quiet = False
        console.print(*bench_tables(found), sep="\n")
    return captured.get()


def test_the_tables_have_all_side_by_side(measured):
    text = shown(*measured(0.5))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    (first,) = (index for index, line in enumerate(lines) if line.startswith("host 50% 2.00x "))
    assert lines[first : first + 2] == ["host 50% 2.00x 2.02 / 4.04 2.03 40.0% ok", "2.02 ms 2.00–2.00 2.04"]
    assert lines[first + 2] == "1.90 ms", "predicted"
    told = "2.00x as fast as dense, 50.0% of its latency with 40.0% of its MACs"
    for words in (told, "1.00 → 0.80", "features.3", "granularity"):
        assert words in " ".join(lines)


def test_a_device_measures_the_targets_whose_runtime_it_can_start():
    targets = {name: load_target(name) for name in ("raspberry-pi-4", "raspberry-pi-5", "galaxy-s24")}
    moved = bench._moved(targets, "ssh://pi@board")
    assert {name: target.runner for name, target in moved.items()} == {
        "raspberry-pi-4": "ssh://pi@board", "raspberry-pi-5": "ssh://pi@board", "galaxy-s24": None,
    }  # fmt: skip
    assert {moved[name].runtime for name in ("raspberry-pi-4", "raspberry-pi-5")} == {"ncnn"}
    with pytest.raises(TargetError, match="can be measured on ssh://pi@board: its runtimes are litert-npu, not"):
        bench._moved({"galaxy-s24": targets["galaxy-s24"]}, "ssh://pi@board")


def test_a_failed_row_is_told_below():
    failed = Bench(row=row(status="failed", error="Off by 9%."), macs_share=0.4)
    assert "host 50%: Off by 9%." in shown(failed)


def test_as_json_is_the_row_and_why(measured):
    _, slim = measured(0.5)
    told = slim.as_json()
    assert told["budget"] == "50%"
    assert told["lost"] == [
        {
            "layer": "features.3",
            "dense_ms": 1.0,
            "slim_ms": 0.8,
            "macs_share": 0.25,
            "share": 0.4,
            "reason": "granularity",
        }
    ]
    assert told["lags"] is True


def test_a_budget_in_macs_keeps_what_it_asked_for():
    budget = parse_budget("50% macs", "latency")
    found = with_latency(row("50% macs", metric="macs", asked=50.0), budget, latency(2.0), latency(4.0))
    assert (found.asked, found.speedup) == (50.0, pytest.approx(2))


def test_a_row_says_that_it_was_disturbed():
    slim = replace(latency(2.0), disturbed="the processor was throttled")
    found = with_latency(row(), parse_budget("50%", "latency"), slim, latency(4.0))
    assert found.disturbed == "the processor was throttled"
