"""What README.md and docs/benchmarks.md say of each benchmark; the tables are in benchmarks/README.md."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any, Final

from _texts import cut_speed, resume, table, zoo

LEARNED: Final = ("dap", "gate", "gumbel")
COLUMNS: Final = ("cut", "10 a class", "50 a class", "all")


def cifar(networks: Iterable[Mapping[str, Any]]) -> str:
    """Per network and point, the best learned masks beside the best baseline."""
    rows = []
    for figures in networks:
        found = {tuple(name.split(" ")): row for name, row in figures["figures"].items()}
        name = f"{figures['network'].rpartition(':')[2]} ({figures['dense']:.1%})"
        for point in sorted({point for _, point in found}):
            of = {method: row for (method, at), row in found.items() if at == point}
            rows.append([name, point, *(versus(of, column) for column in COLUMNS)])
    head = "Test accuracy on CIFAR-10, best learned masks / best baseline, straight after the cut, and tuned with 10 "
    head += "and 50 images a class and with everything; as many training steps in all for each "
    head += "(`benchmarks/cifar_resnet.py`; speed-ups are of MACs, shares of measured latency):"
    titles = ["network (dense)", "point", "after the cut", "10 a class", "50 a class", "all"]
    return f"{head}\n\n{table(titles, rows)}"


def versus(methods: Mapping[str, Mapping[str, float]], column: str) -> str:
    """As in "80.5 dap / 61.3 taylor"."""
    cells = []
    for is_learned in (True, False):
        mine = {m: row[column] for m, row in methods.items() if (m.removesuffix("_depth") in LEARNED) == is_learned}
        best = max(mine, key=lambda m: mine[m], default=None)
        cells.append("–" if best is None else f"{100 * mine[best]:.1f} {best}")
    return " / ".join(cells)


def formats(figures: Mapping[str, Any]) -> str:
    """How much faster the slim artifacts are."""
    rows = figures["rows"]
    times = [row["speed_up"] for row in rows]
    return (
        f"{len({row['network'] for row in rows})} networks cut to {figures['budget']} of the dense latency for each of "
        f"{len({row['format'] for row in rows})} runtimes ({figures['device']}) are {min(times):.2f} to "
        f"{max(times):.2f} times as fast as dense in one interleaved run (`benchmarks/formats.py`)."
    )


def parity(figures: Mapping[str, Any]) -> str:
    """How many artifacts compute what the network does."""
    rows = figures["rows"]
    refused = sum("error" in row for row in rows.values())
    exact = [row for name, row in rows.items() if name.endswith("fp32") and "max_rel" in row]
    int8 = [row["agreement"] for name, row in rows.items() if name.endswith("int8") and "agreement" in row]
    return (
        f"Of {len(rows)} artifacts (networks, dense and slim, times formats and precisions), each in its own runtime "
        f"against torch, {len(rows) - refused} pass their checks; fp32 is off by "
        f"{max(r['max_rel'] for r in exact):.0e} at most, and int8 has the same first answer for at least "
        f"{min(int8):.1%} of the images "
        "(`benchmarks/parity.py`)."
    )


def recovery(figures: Mapping[str, Any]) -> str:
    """What comes back with few examples."""
    found = {name.partition(",")[0]: f for name, f in figures["figures"].items() if name.endswith("all defaults")}
    told = ", ".join(f"{100 * of['mean']:.1f} with {shots}" for shots, of in found.items())
    return (
        f"{figures['network']}, {figures['dense']:.1%}, has {figures['cut']:.1%} after a cut to {figures['point']} of "
        f"its MACs; retrained with images of each class: {told} (`benchmarks/recovery.py`)."
    )


def carried(figures: Mapping[str, Any]) -> str:
    """Channels on new classes, with their weights."""
    found = figures["figures"]
    told = []
    for shots in dict.fromkeys(name.partition(",")[0] for name in found):
        learned = [found[n]["mean"] for m in LEARNED if (n := f"{shots}, 50%, {m}, inherit") in found]
        dense = found[f"{shots}, 100%, dense, inherit"]["mean"]
        told.append(f"{100 * max(learned):.1f} / {100 * dense:.1f} with {shots}")
    steps = figures["retrain"].get("steps")
    return (
        f"On ten new classes (CIFAR-100), in {steps or 'as many steps as a recipe takes by default'}"
        f"{' steps' if steps else ''}, the best learned half of the channels / the dense network, fine-tuned on the "
        f"same images of each class: {', '.join(told)} (`benchmarks/transfer.py`)."
    )


def task(figures: Mapping[str, Any]) -> str:
    """The dense network's score, and at each point the best learned masks' beside the best baseline's."""
    found = {tuple(name.split(" ")): row for name, row in figures["figures"].items()}
    told = []
    for point in dict.fromkeys(point for _, point in found if point != "100%"):
        of = {method: row for (method, at), row in found.items() if at == point}
        told.append(f"{versus(of, 'retrained')} at {point}")
    return (
        f"{figures['network']}, {figures['score']} {100 * figures['dense']:.1f}; cut to shares of its measured latency "
        f"and retrained, best learned masks / best baseline: {', '.join(told)} (`benchmarks/{figures['name']}.py`)."
    )


def yolo(figures: Mapping[str, Any]) -> str:
    """How near a YOLO comes to its budget."""
    told = [
        f"{row['share']:.1%} in {format} (uniform width of equal MACs: {row['share'] * row['uniform_over_ours']:.0%})"
        for format, row in figures["rows"].items()
    ]
    return (
        f"{figures['network']} at {figures['size']} pixels, asked for {figures['budget']} of its measured latency: "
        f"{', '.join(told)} (`benchmarks/yolo_latency.py`)."
    )


def runtimes(figures: Mapping[str, Any]) -> str:
    """In which runtimes the networks run that classify no pictures."""
    rows = figures["rows"].values()
    counts = {of: sum(isinstance(row.get(of), float) for row in rows if row["passed"]) for of in figures["formats"]}
    return (
        f"Of {len(rows)} networks that classify no pictures {sum(row['passed'] for row in rows)} are cut right; in "
        f"their own runtimes run {', '.join(f'{count} as {of}' for of, count in counts.items())}; the others are "
        "refused with the reason (`benchmarks/zoo.py --others`)."
    )


def step(figures: Mapping[str, Any]) -> str:
    """What gates cost."""
    rows = figures["rows"]
    return (
        f"A search step takes at most {max(r['ratio'] for r in rows):.3f} times the plain training step, and "
        f"{max(r['memory_ratio'] for r in rows):.3f} times its memory (`benchmarks/search_step.py`)."
    )


def published(figures: Mapping[str, Any]) -> str:
    """How far predictions go wrong where nothing is measured."""
    devices = list(figures["left_out"].values())[-1].values()
    errors, within = [d["median_error"] for d in devices], sum(d["median_error"] <= 0.2 for d in devices)
    ranked = sum(d["rank"] >= 0.95 for d in devices)
    return (
        f"Predicted latencies of networks that were left out, against what was published for {len(devices)} pairs of "
        f"device and runtime with at least {figures['fewest_networks']} networks each: a device's median error is "
        f"{statistics.median(errors):.0%} (median over devices), at most 20% on {within}; Spearman's rank correlation "
        f"is at least 0.95 on {ranked} (`benchmarks/published_latencies.py`)."
    )


def summary(results: Mapping[str, dict[str, Any]]) -> str:
    """All of it; ``results``: a file's name without its suffix -> its figures. What isn't there isn't told."""
    networks = [figures for name, figures in results.items() if name.startswith("cifar_")]
    single = {
        "detection": task, "segmentation": task, "yolo_latency": yolo,
        "recovery_resnet56": recovery, "transfer": carried, "transfer_defaults": carried, "formats": formats,
        "parity": parity, "search_step": step, "published_latencies": published, "kill_resume": resume, "zoo": zoo,
        "zoo_others": runtimes,
    }  # fmt: skip
    told = [f"- {tell(results[name])}" for name, tell in single.items() if name in results]
    parts = [cifar(networks)] if networks else []
    parts += ["\n".join(told)] if told else []
    parts += [cut_speed(results["cut_speed"])] if "cut_speed" in results else []
    return "\n\n".join(parts)


def sentences(results: Mapping[str, dict[str, Any]]) -> str:
    """The six sentences of README.md, one figure each; empty unless all of the figures are there."""
    names = ("budgets", "recovery_resnet56", "parity", "zoo", "published_latencies")
    if not all(name in results for name in names):
        return ""
    budgets, recovered, parities, networks, published_ones = (results[name] for name in names)
    reached, rows = budgets["summary"], budgets["rows"].values()
    met = round(reached["within_3_percent"] * reached["counted"])
    everything = "All" if met == reached["counted"] else f"{met} of"
    longest = max(row["uniform_over_ours"] for row in rows if "uniform_over_ours" in row)
    name, best = list(recovered["figures"].items())[-1]
    shots = name.partition(",")[0]
    passed = sum(row["passed"] for row in networks["rows"].values())
    accepted = sum("error" not in row for row in parities["rows"].values())
    errors = [d["median_error"] for d in list(published_ones["left_out"].values())[-1].values()]
    told = (
        f"{everything} {reached['counted']} reachable latency budgets were met within 3% by the finished artifacts.",
        f"Uniform pruning to as many MACs takes up to {longest:.1f} times as long: hardware rounds channel counts up.",
        f"{recovered['network']} at {recovered['point']} of its MACs, retrained with {shots} images of each class, has "
        f"{best['mean']:.1%} accuracy on CIFAR-10; dense, it has {recovered['dense']:.1%}.",
        f"{accepted} of {len(parities['rows'])} artifacts compute what their network does in torch, in their own "
        "runtimes; the others were refused.",
        f"{passed} of {len(networks['rows'])} networks from torchvision, timm, transformers and others can be pruned.",
        f"Latencies predicted without a device are off by {statistics.median(errors):.0%} (median over devices).",
    )
    return "\n".join(f"- {sentence}" for sentence in told)
