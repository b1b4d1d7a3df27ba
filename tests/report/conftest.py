"""A made-up but complete run folder: MobileNetV2's groups, two targets, three budgets, one of them failed."""

import json
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import pytest

from deploy_prune.report.page import write_page
from deploy_prune.report.row import Row

WIDTHS = [32, 96, 144, 144, 192, 192, 192, 384, 384, 384, 384, 576, 576, 576, 960, 960, 960, 16, 24, 32, 64, 96, 160]
GROUPS = {f"features.{i}.conv.0.0": width for i, width in enumerate(WIDTHS)}
FEW = dict(list(GROUPS.items())[:3])
SHARES = {"75%": 0.75, "50%": 0.5, "35%": 0.35}
DENSE_MS = {"host": 2.481, "jetson-orin-nano": 0.913}
MACS, PARAMS = 6_132_480, 2_230_277
HOST_CPU = "AMD EPYC 7B13"


def make_row(target: str = "host", budget: str = "50%", **changes) -> Row:
    """A good row of a measured target (``host``) or of a predicted one (every other)."""
    share, dense_ms = SHARES.get(budget, 1.0), DENSE_MS.get(target, 1.0)
    is_dense, is_host = budget == "dense", target == "host"
    values = {
        "target": target,
        "runtime": "onnxruntime 1.31.1",
        "precision": "fp32",
        "budget": budget,
        "metric": "latency",
        "asked": None if is_dense else share * dense_ms,
        "predicted": dense_ms * share * 0.99,
        "predicted_ms": dense_ms * share * 0.99,
        "measured_p50_ms": dense_ms * share * 1.012 if is_host else None,
        "measured_p90_ms": dense_ms * share * 1.09 if is_host else None,
        "dense_p50_ms": dense_ms if is_host else None,
        "speedup": 1 / (share * 1.012) if is_host and not is_dense else None,
        "speedup_low": 1 / (share * 1.02) if is_host and not is_dense else None,
        "speedup_high": 1 / (share * 1.004) if is_host and not is_dense else None,
        "predicted_dense_ms": None if is_host or is_dense else dense_ms * 0.99,
        "measured_on": "host" if is_host else None,
        "macs": int(MACS * share**1.1),
        "params": int(PARAMS * share**1.3),
        "size_bytes": int(4 * PARAMS * share**1.3) + 60_000,
        "score": 0.983 - 0.06 * (1 - share) ** 2,
        "score_dense": 0.983,
        "score_artifact": None,
        "parity_max_abs": 3.1e-6,
        "status": "ok",
        "error": None,
    }
    return Row(**{**values, **changes})


def make_rows() -> tuple[Row, ...]:
    """Rows of two targets; the last budget of the second one failed."""
    rows = [make_row(target, budget) for target in DENSE_MS for budget in ("dense", *SHARES)]
    nothing = dict.fromkeys(("score", "predicted", "predicted_ms", "size_bytes", "parity_max_abs"))
    reason = "Budget 35% asks for 0.32 ms on jetson-orin-nano, but the smallest reachable is 0.34 ms: raise it to 38%."
    rows[-1] = make_row("jetson-orin-nano", "35%", status="failed", error=reason, **nothing)
    return tuple(rows)


def architecture(budget: str, dense: dict[str, int]) -> dict:
    """architecture.json of a budget: narrow groups keep more than wide ones."""
    kept = {name: max(8, int(c * SHARES[budget] ** (0.5 + c / 960)) // 8 * 8) for name, c in dense.items()}
    kept["features.1.conv.0.0"] = dense["features.1.conv.0.0"]
    groups = {
        name: {"channels": channels, "kept": kept[name], "keep": f"0-{kept[name] - 1}"}
        for name, channels in dense.items()
    }
    return {
        "format": "deploy-prune/architecture",
        "version": 1,
        "model": {"source": "torchvision:mobilenet_v2", "args": {}, "num_classes": 5},
        "input": {"shape": [1, 3, 32, 32]},
        "groups": groups,
        "layers": {f"{name}.weight": [[c, 16, 1, 1], [kept[name], 16, 1, 1]] for name, c in dense.items()},
    }


def loop(target: str, budget: str) -> dict:
    """loop.json: three steps of the closed loop on the host, one without a device."""
    asked = SHARES[budget] * DENSE_MS[target]
    errors = (1.14, 0.958, 1.012) if target == "host" else (None,)
    steps = [
        {
            "step": number,
            "limit": asked / (1, 1.14, 1.09)[number - 1],
            "predicted": asked * 0.99 / (1, 1.14, 1.09)[number - 1],
            "observed": error and asked * error,
            "dense": DENSE_MS[target],
            "asked": asked,
            "counts": {"features.0.conv.0.0": 16 + number},
            "chosen": number == len(errors),
        }
        for number, error in enumerate(errors, start=1)
    ]
    return {"metric": "latency", "asked": asked, "tolerance": 0.03, "steps": steps}


def latency(target: str, budget: str) -> dict:
    """latency.json: samples where there is a device, else a prediction."""
    p50 = DENSE_MS[target] * SHARES.get(budget, 1.0)
    if target != "host":
        return {"predicted_ms": p50, "method": "roofline"}
    samples = [p50 * (1 + 0.002 * (i % 7 - 3)) for i in range(50)]
    return {
        "samples_ms": samples,
        "p50_ms": p50,
        "p90_ms": p50 * 1.006,
        "p99_ms": p50 * 1.006,
        "warmup": 30,
        "threads": 1,
        "device": HOST_CPU,
        "measured_on": "host",
        "dense_samples_ms": [DENSE_MS[target]] * 50,
    }


def trace() -> list[dict]:
    """trace.json: the loss falls and the cost comes down to its limit."""
    return [
        {
            "step": step,
            "loss": 1.4 * 0.985**step + 0.08 + 0.05 * ((step * 37) % 11) / 11,
            "cost": 0.87 + 1.6 * 0.975**step,
            "limit": 0.868,
            "kept": 1.0 - 0.5 * step / 240,
        }
        for step in range(240)
    ]


def provenance(run: Path) -> dict:
    """provenance.json with the sha256 of every file there is."""
    files = sorted(path for path in run.rglob("*") if path.is_file())
    return {
        "versions": {"deploy-prune": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.31.1", "torch-pruning": "1.6.1"},
        "python": "3.11.9",
        "platform": "Linux-6.1-x86_64",
        "cpu": HOST_CPU,
        "seed": 0,
        "command": "deploy-prune recipe mobilenet.yaml",
        "finished": "2026-03-01T12:00:00+00:00",
        "recipe_sha256": sha256((run / "recipe.yaml").read_bytes()).hexdigest(),
        "files": {str(path.relative_to(run)): sha256(path.read_bytes()).hexdigest() for path in files},
    }


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, its folders too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def make_run(run: Path, dense: dict[str, int] = GROUPS) -> Path:
    """Write the whole folder, of a network with these groups."""
    run.mkdir(parents=True)
    text = "name: mobilenet\nmodel:\n  source: torchvision:mobilenet_v2\nbudgets: [75%, 50%, 35%]\n"
    (run / "recipe.yaml").write_text(text, encoding="utf-8")
    write_json(run / "search" / "trace.json", trace())
    for row in make_rows():
        folder = run / row.target / row.budget
        write_json(folder / "latency.json", latency(row.target, row.budget))
        write_json(folder / "parity.json", {"max_abs": 3.1e-6, "max_rel": 9e-7, "tolerance": 1e-4, "num_inputs": 64})
        (folder / "model.onnx").write_bytes(b"onnx" * 100)
        if row.budget != "dense" and row.status == "ok":
            write_json(folder / "architecture.json", architecture(row.budget, dense))
            write_json(folder / "loop.json", loop(row.target, row.budget))
    write_json(run / "results.json", [asdict(row) for row in make_rows()])
    write_json(run / "provenance.json", provenance(run))
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A complete run folder of a network with three groups."""
    return make_run(tmp_path / "mobilenet", FEW)


@pytest.fixture(scope="session")
def mobilenet(tmp_path_factory) -> Path:
    """A complete run folder with all groups and its page; to be read only."""
    run = make_run(tmp_path_factory.mktemp("runs") / "mobilenet")
    write_page(run)
    return run


@pytest.fixture
def rows() -> tuple[Row, ...]:
    """Its rows."""
    return make_rows()


@pytest.fixture(name="make_row")
def row_maker():
    """The builder of rows."""
    return make_row
