"""A run and a bench with one fault each, on real files: real stages, real folders, ONNX Runtime's own outputs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from tiny_run import ArithmeticDevice, arithmetic_device, tiny_recipe
from torch import nn

from deploy_prune.commands import bench
from deploy_prune.device import RUNNERS
from deploy_prune.device.targets import targets_folder
from deploy_prune.errors import RecipeError
from deploy_prune.export.artifact import describe
from deploy_prune.run import pipeline, stages
from deploy_prune.run.folder import RunFolder, sha256
from deploy_prune.run.pipeline import Run

BUDGETS = ["50% macs", "60% macs"]
PLACE = "pixel-8/60% macs"


# --- a run: the second of two budgets goes wrong ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of the first budget, for a device that is not attached. Not to be changed."""
    return pipeline.run(tiny_recipe(budgets=BUDGETS[:1]), tmp_path_factory.mktemp("finished"))


@pytest.fixture
def begun(finished: Run, tmp_path: Path) -> Path:
    """A folder of runs that has the finished one."""
    shutil.copytree(finished.folder, tmp_path / "tiny")
    return tmp_path


def wrong_cut(patch: pytest.MonkeyPatch) -> None:
    working = stages.verify.cut

    def turned(*args: Any) -> nn.Module:
        slim = working(*args)
        slim[0].weight.data = slim[0].weight.flip(0)
        return slim

    patch.setattr(stages.verify, "cut", turned)


def another_network_exported(patch: pytest.MonkeyPatch) -> None:
    working = stages.isolated.write

    def write(format: str, network: nn.Module, *args: Any) -> Any:  # noqa: A002
        network[3].weight.data[[0, 1]] = network[3].weight[[1, 0]].clone()
        return working(format, network, *args)

    def elsewhere(format: str, network: nn.Module, *args: Any) -> Any:  # noqa: A002
        kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        try:
            return write(format, network, *args)
        finally:
            network.load_state_dict(kept)

    patch.setattr(stages.isolated, "write", elsewhere)


def a_file_cut_short(patch: pytest.MonkeyPatch) -> None:
    working = stages.isolated.write

    def write(format: str, network: nn.Module, example: Any, path: Path, precision: str, *args: Any) -> Any:  # noqa: A002
        made = working(format, network, example, path, precision, *args)
        path.write_bytes(path.read_bytes()[:-100])
        return describe(
            path, format=format, precision=precision, input_shape=made.input_shape, versions={}, layout=made.layout
        )

    patch.setattr(stages.isolated, "write", write)


RUN_FAULTS = {
    wrong_cut: ("VerificationError", "differs from the masked one's", {"macs": None}),
    another_network_exported: ("ParityError", "model.onnx differs from the network by", {"size_bytes": None}),
    a_file_cut_short: ("MeasurementError", "can't be run", {"size_bytes": None}),
}


@pytest.mark.parametrize("plant", RUN_FAULTS, ids=lambda plant: plant.__name__)
def test_a_fault_is_one_failed_row_and_a_run_without_it_goes_on(
    finished: Run, begun: Path, plant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    kind, words, unknown = RUN_FAULTS[plant]
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        run = pipeline.run(tiny_recipe(budgets=BUDGETS), begun)
    *others, failed = run.rows
    assert tuple(others) == finished.rows, "what was finished before is as it was"
    assert (failed.budget, failed.status, failed.error_kind) == (BUDGETS[1], "failed", kind)
    assert words in failed.error
    assert {name: getattr(failed, name) for name in unknown} == unknown
    assert RunFolder(path=run.folder).read_results() == run.rows
    assert not (run.folder / PLACE / "artifact.json").exists()
    if plant is not another_network_exported:
        return
    mended = pipeline.run(tiny_recipe(budgets=BUDGETS), begun).rows
    assert [row.status for row in mended] == ["predicted"] * 3
    assert (run.folder / PLACE / "artifact.json").is_file()


# --- a run: the finished artifact is slower than its candidate --------------------------------------------------------


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> str:
    """This machine, whose granularity needs no measurement."""
    path = tmp_path_factory.mktemp("targets") / "host.yaml"
    text = (targets_folder() / "host.yaml").read_text()
    assert "value: measure" in text
    path.write_text(text.replace("value: measure", f"value: {tiny_run.LANES}"))
    return str(path)


@pytest.fixture(scope="module")
def timed(host: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and a cache, for a device that keeps time by arithmetic. Not to be changed."""
    out = tmp_path_factory.mktemp("timed")
    with arithmetic_device(out / "cache"):
        pipeline.run(tiny_recipe(targets=[host], budgets=["60% macs", "90%"]), out)
    return out


class Slower:
    """A device on which finished artifacts take twice as long as the same file did as a candidate.

    ``first_only``: only the first one that is finished does.
    """

    def __init__(self, device: ArithmeticDevice, runs: Path, first_only: bool) -> None:
        self.device, self.runs, self.first_only = device, runs, first_only
        self.slow: dict[str, str] = {}

    def __call__(self, payload: Path, spec: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        told = self.device(payload, spec, timeout_s)
        for model, samples in zip(spec["models"], told.get("samples_ms", ()), strict=False):
            path = Path(model["path"])
            if path.is_relative_to(self.runs / "tiny" / "host" / "70%") and self._is_slow(sha256(path)):
                samples[:] = [2 * ms for ms in samples]
        return told

    def _is_slow(self, digest: str) -> bool:
        self.slow.setdefault("first", digest)
        return not self.first_only or self.slow["first"] == digest


@pytest.fixture
def slower(host: str, timed: Path, tmp_path: Path) -> Iterator[Callable[[bool], Run]]:
    """Goes on with the run, asked for 70% of dense latency, too, on such a device."""
    runs = Path(shutil.copytree(timed, tmp_path / "timed"))

    def go_on(first_only: bool) -> Run:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(RUNNERS, "local", Slower(device, runs, first_only))
            return pipeline.run(tiny_recipe(targets=[host], budgets=["60% macs", "90%", "70%"]), runs)

    with arithmetic_device(runs / "cache") as device:
        yield go_on


@pytest.mark.slow
def test_a_finished_artifact_that_is_slower_once_is_planned_again(slower: Callable[[bool], Run]) -> None:
    run = slower(True)
    row = run.rows[-1]
    assert (row.budget, row.status, row.error) == ("70%", "ok", None)
    assert row.measured_p50_ms <= 1.03 * row.asked
    steps = json.loads((run.folder / "host/70%/loop.json").read_text())["steps"]
    missed = [step for step in steps if not step["chosen"] and step["observed"] > 1.03 * step["asked"]]
    assert missed, "the first artifact's time stands for its candidate's"
    assert next(step["counts"] for step in steps if step["chosen"]) != missed[0]["counts"]


@pytest.mark.slow
def test_a_finished_artifact_that_is_always_slower_is_a_failed_row_with_its_figures(
    slower: Callable[[bool], Run],
) -> None:
    run = slower(False)
    row = run.rows[-1]
    assert (row.budget, row.status, row.error_kind) == ("70%", "failed", "BudgetError")
    assert f"host/70% takes {row.measured_p50_ms:.4g} ms; the budget is {row.asked:.4g} ms" in row.error
    assert row.measured_p50_ms > 1.03 * row.asked
    assert row.speedup == pytest.approx(row.dense_p50_ms / row.measured_p50_ms)
    assert not (run.folder / "host/70%/latency.json").exists()
    assert [r.status for r in run.rows[:-1]] == ["ok", "ok", "ok"]


# --- a bench, on this machine's clock ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def for_a_bench(host: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose slim network takes about half of dense here, where 80% were asked. Not to be changed.

    The arithmetic device that it was made for spends three fifths of dense's time on an overhead that isn't there.
    """
    out = tmp_path_factory.mktemp("bench")
    model = {"source": "tiny_run:network", "args": {"width": 48}}
    recipe = tiny_recipe(model=model, targets=[host], budgets=["80%"], metric="latency")
    with pytest.MonkeyPatch.context() as patch, arithmetic_device(out / "cache"):
        patch.setattr(tiny_run, "OVERHEAD_MS", 0.9)
        return pipeline.run(recipe, out)


@pytest.mark.slow
def test_a_bench_measures_finished_files_on_this_machine(for_a_bench: Run) -> None:
    before = RunFolder(path=for_a_bench.folder).read_results()
    dense, slim = (found.row for found in bench.bench(for_a_bench.folder, 20, trust=True))
    assert [(row.status, row.error) for row in (dense, slim)] == [("ok", None)] * 2
    assert [row.measured_on for row in (dense, slim)] == ["host", "host"]
    assert dense.speedup is None
    assert slim.speedup_low <= slim.speedup <= slim.speedup_high
    assert slim.speedup > 1 / 0.8, "so much less to compute"
    assert slim.asked == pytest.approx(0.8 * slim.dense_p50_ms)
    assert slim.measured_p50_ms not in {row.measured_p50_ms for row in before}
    assert RunFolder(path=for_a_bench.folder).read_results() == before, "a bench changes no file"


def the_dense_file_for_the_slim_one(folder: Path) -> None:
    place, dense = folder / "host" / "80%", json.loads((folder / "dense/host/artifact.json").read_text())
    shutil.copy(folder / "dense/host" / dense["path"], place / dense["path"])
    (place / "artifact.json").write_text(json.dumps(dense))


def a_changed_file(folder: Path) -> None:
    path = folder / "host" / "80%" / "model.onnx"
    path.write_bytes(path.read_bytes() + b" ")


BENCH_FAULTS = {
    the_dense_file_for_the_slim_one: ("BudgetError", r"host/80% takes .* the budget is"),
    a_changed_file: ("MeasurementError", "has changed since it was written"),
}


@pytest.mark.slow
@pytest.mark.parametrize("plant", BENCH_FAULTS, ids=lambda plant: plant.__name__)
def test_a_bench_finds_a_faulty_file(for_a_bench: Run, tmp_path: Path, plant: Callable[[Path], None]) -> None:
    kind, words = BENCH_FAULTS[plant]
    folder = Path(shutil.copytree(for_a_bench.folder, tmp_path / "tiny"))
    plant(folder)
    dense, slim = (found.row for found in bench.bench(folder, 20, trust=True))
    assert (dense.status, dense.error) == ("ok", None)
    assert (slim.status, slim.error_kind) == ("failed", kind)
    assert re.search(words, slim.error)
    assert asdict(slim)["macs"] == asdict(for_a_bench.rows[1])["macs"]


def test_each_target_in_each_precision_at_its_own_budgets(tmp_path):
    recipe = tiny_recipe(
        targets=["pixel-8", "x86-avx2@fp32"], precision=["fp32", "int8"], budgets=["60% macs"],
        target_budgets={"pixel-8-int8": ["40% macs", "50% macs"]}, export={"on_refusal": "fp16", "max_score_drop": 1.0},
    )  # fmt: skip
    done = pipeline.run(recipe, tmp_path)
    slim = [(row.target, row.budget) for row in done.rows if "%" in row.budget]
    assert slim == [
        ("pixel-8-fp32", "60% macs"),
        ("pixel-8-int8", "40% macs"),
        ("pixel-8-int8", "50% macs"),
        ("x86-avx2-fp32", "60% macs"),
    ]
    with pytest.raises(RecipeError, match="target_budgets: there is no target 'pixel-8' among pixel-8-fp32"):
        pipeline.run(tiny_recipe(targets=["pixel-8@fp32"], target_budgets={"pixel-8": ["9 ms"]}), tmp_path / "wrong")
