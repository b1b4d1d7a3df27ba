"""Predictions for devices that are not attached, against published latencies, each network left out in turn.

    python benchmarks/published_latencies.py --data ROOT [--fit]

ROOT (or DEPLOY_PRUNE_DATA) holds device_latencies.json: rows of device, runtime, threads, model, precision and ms. Rows
of one device, runtime, precision, threads and power mode are one calibration. A network is left out of all devices at
once, the rest is fitted anew, and its latency is predicted on each device. --fit prints the numbers for edge_targets/.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import _calibrate
import _results
import numpy
from _calibrate import FORMS, LAST, Device, Known
from _published_networks import meaning, operators
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

FEWEST = 6
"""Networks that a device must have for its figures to count."""
LAST_TWO = tuple(FORMS)[-2:]
LEAST = 1e-3
"""1e9 transcendental functions that a network has at least if it counts as one with them; gates alone have fewer."""
GRANULES = {"npu": 32, "coreml": 32, "tensorrt int8": 32}
"""Step of channels by kind of runtime, as in edge_targets/; 8 for all others."""
MATMUL = {"ncnn": 0.25}
"""First guess at the rate of matrix products relative to convolutions', by kind of runtime; 1 for all others. That of
ncnn was read off its only network with such products, a vision transformer: its own left-out errors there are the
better for it."""
BYTES = {"fp16": 2, "float": 2, "w8a8": 1, "w8a16": 2, "int8": 1, "8bit": 1}


@dataclass(frozen=True, kw_only=True)
class Left:
    """Published and predicted ms of one device's networks, each predicted by what is known without it."""

    published: Mapping[str, float]
    predicted: Mapping[str, float]

    @property
    def errors(self) -> list[float]:
        """|predicted / published - 1|."""
        return [abs(self.predicted[n] / ms - 1) for n, ms in self.published.items()]

    @property
    def median(self) -> float:
        """Of the errors."""
        return float(numpy.median(self.errors))

    @property
    def rank(self) -> float:
        """Spearman's rank correlation."""
        names = list(self.published)
        return float(spearmanr([self.published[n] for n in names], [self.predicted[n] for n in names]).statistic)

    @property
    def band(self) -> tuple[float, float]:
        """Between what factors of the prediction a next network lies with a chance of 80%."""
        return band([ms / self.predicted[n] for n, ms in self.published.items()])


def band(ratios: Sequence[float]) -> tuple[float, float]:
    """(1 / f, f): at least 80% of the ratios published / predicted are within, and a next one with that chance.

    f is the ceil(0.8 (n + 1))-th smallest of n (split conformal prediction: arXiv 2107.07511, section 1), the largest
    where n is too small for that.
    """
    factors = sorted(numpy.exp(numpy.abs(numpy.log(ratios))))
    f = float(factors[min(len(factors), math.ceil(0.8 * (len(factors) + 1))) - 1])
    return 1 / f, f


def family(row: Mapping[str, Any]) -> str | None:
    """The kind of runtime, whose devices share what they can't tell themselves; None for rows that aren't used.

    One thread and several are two kinds on a CPU: the bandwidth is shared, and threads have to be started.
    Left out: int8 of ncnn (two networks a device), networks that a phone's accelerator runs on its CPU instead.
    """
    runtime, precision = str(row["runtime"]), str(row.get("precision"))
    if runtime.startswith("ncnn"):
        threads = {1: " 1 thread"}.get(row["threads"], " threads") if runtime.endswith("cpu") else ""
        return None if row["model"].endswith("_int8") else runtime + threads
    if row.get("compute_unit") == "NPU":
        return None if runtime == "onnx" and precision != "float" or "mixed" in precision else f"npu {precision}"
    if row.get("compute_unit") is not None:
        return None
    return f"{runtime.partition('(')[0]} {precision}"


def milliseconds(row: Mapping[str, Any]) -> float:
    """The undisturbed latency: the least, or the median where that is what was published."""
    return float(next(row[key] for key in ("min_ms", "p50_ms", "ms", "approx_ms") if key in row))


def devices(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[Device]], Known, list[str]]:
    """Family -> its devices; network -> its features; the names that mean no network here."""
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    wanted: dict[str, tuple[str, int, str]] = {}
    unknown = set()
    for row in rows:
        kind = family(row)
        known = None if kind is None else meaning(row["model"], row["runtime"])
        if kind is None or known is None:
            unknown |= set() if kind is None else {str(row["model"])}
            continue
        network = f"{known[0]}@{known[1]}" + ("x1.4" if row["model"] == "mobilenet_v2_1.4" else "")
        wanted[network] = (*known, row["model"])
        modes = [f"{row['threads']} threads, mode {row['powersave']}"] if row.get("threads") else []
        name = ", ".join(
            [row["device"], row["runtime"], *modes, *([row["precision"]] if row.get("precision") else [])][:4]
        )
        found[kind, name.replace(", fp32-or-fp16(ncnn default: fp16 storage+arith where HW supports)", "")][
            network
        ].append(milliseconds(row))
    families: dict[str, list[Device]] = defaultdict(list)
    for (kind, name), published in found.items():
        ms = {network: float(numpy.exp(numpy.mean(numpy.log(values)))) for network, values in published.items()}
        width = BYTES.get(kind.rpartition(" ")[2], 2)
        processor = "cpu" if "cpu" in kind else "accelerator"
        granule = next((step for start, step in GRANULES.items() if kind.startswith(start)), 8)
        matmul = next((rate for start, rate in MATMUL.items() if kind.startswith(start)), 1.0)
        made = Device(name=name, published=ms, element_bytes=width, granule=granule, processor=processor, matmul=matmul)
        families[kind].append(made)
    steps = {device.granule for group in families.values() for device in group}
    features: dict[tuple[str, int], Any] = {}
    for network, how in wanted.items():
        ops = operators(*how)
        features |= {(network, step): _calibrate.features(ops, step) for step in steps}
    return families, features, sorted(unknown)


def left_out(group: Sequence[Device], features: Known, form: str) -> dict[str, Left]:
    """Every network of a family left out in turn, of all its devices at once."""
    predicted: dict[str, dict[str, float]] = defaultdict(dict)
    for network in sorted({n for device in group for n in device.published}):
        rest = [device.without(network) for device in group]
        prior = _calibrate.learn_prior([d for d in rest if len(d.published) >= 3], features, form)
        for device, others in zip(group, rest, strict=True):
            if network in device.published and others.published:
                fitted = _calibrate.fit(others, features, form, prior)
                asked = features[network, device.granule]
                predicted[device.name][network] = _calibrate.predict_ms(fitted, asked, form, device.processor)
    return {d.name: Left(published=d.published, predicted=predicted[d.name]) for d in group if len(d.published) > 1}


def table(results: Mapping[str, Mapping[str, Left]]) -> Table:
    """A row a device: median error and rank by each form of the model."""
    shown = Table("device", "networks", *(f"{form}: error, rank" for form in FORMS))
    for name, left in next(iter(results.values())).items():
        if len(left.published) >= FEWEST:
            cells = (f"{results[f][name].median:.0%} {results[f][name].rank:.2f}" for f in FORMS)
            shown.add_row(name, str(len(left.published)), *cells)
    return shown


def summary(results: Mapping[str, Mapping[str, Left]]) -> Table:
    """A row a form of the model: over all devices with enough networks."""
    shown = Table("model", "devices", "median of medians", "worst", "within 20%", "rank >= 0.95", "mean rank")
    for form in FORMS:
        lefts = [left for left in results[form].values() if len(left.published) >= FEWEST]
        medians, ranks = [left.median for left in lefts], [left.rank for left in lefts]
        shown.add_row(
            form, str(len(lefts)), f"{numpy.median(medians):.1%}", f"{max(medians):.0%}",
            f"{sum(m <= 0.2 for m in medians)}", f"{sum(r >= 0.95 for r in ranks)}", f"{numpy.mean(ranks):.3f}",
        )  # fmt: skip
    return shown


def by_functions(
    families: Mapping[str, Sequence[Device]], features: Known, results: Mapping[str, Mapping[str, Left]]
) -> dict[str, dict[str, Any]]:
    """Kind of runtime -> networks with and without transcendental functions: how many predictions, their error, ratio.

    Each is a median over devices with enough networks, for the last form of the model and the one before it; the ratio
    is predicted / published.
    """
    kinds = {}
    for kind, group in families.items():
        told: dict[str, Any] = {}
        for name, has in (("with", True), ("without", False)):
            pairs = [
                (device.name, network)
                for device in group
                if len(device.published) >= FEWEST
                for network in device.published
                if bool(features[network, device.granule].gfunctions.sum() > LEAST) == has
            ]
            if pairs:
                told[name] = {"predictions": len(pairs)} | {form: _middle(pairs, results[form]) for form in LAST_TWO}
        if told:
            kinds[kind] = told
    return kinds


def _middle(pairs: Sequence[tuple[str, str]], lefts: Mapping[str, Left]) -> dict[str, float]:
    """The medians of the errors and of predicted / published."""
    ratios = [lefts[device].predicted[network] / lefts[device].published[network] for device, network in pairs]
    errors = [abs(ratio - 1) for ratio in ratios]
    return {"error": round(float(numpy.median(errors)), 3), "ratio": round(float(numpy.median(ratios)), 3)}


def functions_table(kinds: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row a kind of runtime, with and without."""
    shown = Table("kind", "transcendental", "predictions", *(f"{form}: error, ratio" for form in LAST_TWO))
    for kind, told in kinds.items():
        for name, row in told.items():
            cells = (f"{row[form]['error']:.1%} {row[form]['ratio']:.2f}" for form in LAST_TWO)
            shown.add_row(kind, name, str(row["predictions"]), *cells)
    return shown


def fitted_numbers(families: Mapping[str, Sequence[Device]], features: Known, lefts: Mapping[str, Left]) -> Table:
    """What edge_targets/ need, of every device, by the whole of its networks."""
    shown = Table(
        "device", "GMACs/s", "of products", "GB/s", "overhead ms", "per network", "median", "low", "high", "networks"
    )
    for group in families.values():
        prior = _calibrate.learn_prior([d for d in group if len(d.published) >= 3], features, LAST)
        for device in group:
            c = _calibrate.fit(device, features, LAST, prior)
            left = lefts.get(device.name)
            error = (f"{left.median:.2f}", *(f"{x:.2f}" for x in left.band)) if left else ("-", "-", "-")
            numbers = (
                f"{c.gmacs_per_s:.4g}",
                f"{c.matmul_gmacs_per_s:.4g}",
                f"{c.gelements_per_s * device.element_bytes:.4g}",
                f"{c.overhead_ms:.3g}",
                f"{c.network_ms:.3g}",
            )
            shown.add_row(device.name, *numbers, *error, str(len(device.published)))
    return shown


def figures(results: Mapping[str, Mapping[str, Left]]) -> dict[str, Any]:
    """Median error and rank: form -> device -> figure."""
    return {
        form: {
            name: {"networks": len(x.published), "median_error": round(x.median, 3), "rank": round(x.rank, 3)}
            for name, x in found.items()
            if len(x.published) >= FEWEST
        }
        for form, found in results.items()
    }


def run(rows: Sequence[Mapping[str, Any]], show: Callable[..., None], numbers: bool) -> dict[str, Any]:
    """Leave out, predict, show."""
    families, features, unknown = devices(rows)
    results: dict[str, dict[str, Left]] = {form: {} for form in FORMS}
    for form in FORMS:
        for group in families.values():
            results[form] |= left_out(group, features, form)
        show(f"{form}: {FORMS[form]}")
    show(table(results), summary(results))
    if unknown:
        show("Left out, as neither torchvision nor timm has them: " + ", ".join(unknown))
    kinds = by_functions(families, features, results)
    show(functions_table(kinds))
    if numbers:
        show(fitted_numbers(families, features, results[LAST]))
    return {"left_out": figures(results), "functions": kinds, "unknown": unknown}


def main() -> None:
    """Read the rows, show and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DEPLOY_PRUNE_DATA"))
    parser.add_argument("--fit", action="store_true", help="print the numbers for edge_targets/ too")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("give --data ROOT, or set DEPLOY_PRUNE_DATA")
    rows = json.loads((Path(arguments.data) / "device_latencies.json").read_text(encoding="utf-8"))
    console = Console(width=200)
    found = run(rows, partial(console.print, sep="\n"), arguments.fit)
    _results.write("published_latencies", found, fewest_networks=FEWEST)


if __name__ == "__main__":
    main()
