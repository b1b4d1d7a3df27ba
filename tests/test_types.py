import json
from dataclasses import FrozenInstanceError, asdict, fields, is_dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deploy_prune import types
from deploy_prune.report.row import Row
from deploy_prune.types import Artifact, Axis, Budget, ChannelGroup, Latency, Structure, Width, silent


def latency(*samples_ms: float) -> Latency:
    return Latency(samples_ms=samples_ms, warmup=3, threads=1, device="cpu", measured_on="host")


@given(st.lists(st.floats(0.001, 1e4), min_size=2, max_size=200))
def test_percentiles_are_the_usual_ones(samples):
    measured = latency(*samples)
    found = [measured.p50_ms, measured.p90_ms, measured.p99_ms]
    np.testing.assert_allclose(found, np.percentile(samples, [50, 90, 99]), rtol=1e-9)


def test_one_sample_is_its_own_percentile():
    assert (latency(2.5).p50_ms, latency(2.5).p99_ms) == (2.5, 2.5)


def test_samples_do_not_flood_the_repr():
    assert "0.125" not in repr(latency(0.125, 0.25))


def test_width_counts_fixed_and_every_group():
    width = Width(fixed=3, per_unit={"a": 1, "b": 16})
    assert width.at({"a": 5, "b": 2, "unrelated": 100}) == 3 + 5 + 32


@pytest.mark.parametrize(("relative", "limit", "absolute"), [(True, 0.5, 4.0), (False, 3.0, 3.0)])
def test_a_budget_in_the_metrics_unit(relative, limit, absolute):
    assert Budget(text="x", metric="latency", limit=limit, relative=relative).absolute(8.0) == absolute


def test_dense_counts_are_full_width():
    axis = Axis(tensor="a.weight", axis=0, unit_of=torch.arange(4))
    groups = [
        ChannelGroup(name=n, channels=c, period=1, consumers=(), members=(axis,)) for n, c in (("a", 4), ("b", 7))
    ]
    assert Structure(groups=tuple(groups), layers=(), whole=()).dense_counts == {"a": 4, "b": 7}


def test_an_artifact_knows_its_size(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"x" * 17)
    artifact = Artifact(path=path, format="onnx", precision="fp32", sha256="", input_shape=(1, 3, 8, 8), versions={})
    assert artifact.size_bytes == 17


def test_silent_progress_says_nothing(capsys):
    silent("work", 1, 10, loss=0.5)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize("kind", [x for x in vars(types).values() if isinstance(x, type) and is_dataclass(x)])
def test_shared_data_is_frozen_and_keyword_only(kind):
    assert kind.__dataclass_params__.frozen
    assert all(field.kw_only for field in fields(kind))


def test_frozen_means_frozen():
    with pytest.raises(FrozenInstanceError):
        Width(fixed=1, per_unit={}).fixed = 2


def test_a_row_survives_json():
    values = dict.fromkeys(field.name for field in fields(Row))
    row = Row(
        **{**values, "target": "host", "metric": "latency", "macs": 3, "params": 4, "asked": 1 / 3, "status": "ok"}
    )
    assert Row(**json.loads(json.dumps(asdict(row)))) == row
