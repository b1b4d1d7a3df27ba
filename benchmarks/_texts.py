"""What each benchmark's figures become in a README: a text and a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from deploy_prune.report.units import digits

Text = Callable[[dict[str, Any]], str]
"""What a benchmark's JSON file becomes."""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def transfer(figures: dict[str, Any]) -> str:
    """Accuracy per method and budget."""
    methods = figures["methods"]
    budgets = list(next(iter(methods.values())))
    rows = [
        [name, *(f"{of[b]['accuracy']:.1%} ± {of[b]['standard_error']:.1%}" for b in budgets)]
        for name, of in methods.items()
    ]
    head = f"Target accuracy on digits, mean of {figures['seeds']} seeds ± standard error"
    head += " (`benchmarks/digits_transfer.py`). All methods of a seed share the dense network, its teacher and the "
    head += "shots; the gates' search trains the weights 90 steps more than the baselines' do:"
    return f"{head}\n\n{table(['method', *budgets], rows)}"


def step(figures: dict[str, Any]) -> str:
    """What gates cost."""
    rows = [
        [
            r["network"], f"{r['image_size']} px, batch {r['batch']}", r["method"], f"{r['ratio']:.3f}",
            f"{r['memory_ratio']:.3f}",
        ]
        for r in figures["rows"]
    ]  # fmt: skip
    head = "A search step against the same training step without gates, median of interleaved steps"
    head += " (`benchmarks/search_step.py`)"
    shares = {r["network"]: r["over_channels_first"] for r in figures["rows"] if "over_channels_first" in r}
    if shares:
        head += "; the training step with channels last, over that with channels first: "
        head += ", ".join(f"{name.rpartition(':')[2]} {share:.2f}" for name, share in shares.items())
    head += ":"
    return f"{head}\n\n{table(['network', 'input', 'method', 'time', 'peak memory'], rows)}"


def resume(figures: dict[str, Any]) -> str:
    """What became of killed runs."""
    same = sum(trial["same"] for trial in figures["trials"])
    return (
        f"Killed at random moments and resumed, same results: {same} of {figures['n']} (`benchmarks/kill_resume.py`)."
    )


def zoo(figures: dict[str, Any]) -> str:
    """How many networks of other libraries are cut, and how many torch-pruning alone cuts."""
    rows = figures["rows"]
    passed = [row for row in rows.values() if row["passed"]]
    wide = sum(row["macs_share"] >= 0.9 for row in passed)
    slowest = max(rows.items(), key=lambda item: item[1].get("find_s", 0))
    text = (
        f"Networks of torchvision, timm, transformers and others, half of every group cut, the cut proven, trained "
        f"a step, reloaded from its file and run in ONNX Runtime: {len(passed)} of {len(rows)} pass, {wide} of them "
        f"with 90% of their MACs in groups. Finding the groups takes {median(r['find_s'] for r in passed):.1f} s "
        f"(median), {slowest[1]['find_s']:.1f} s at most ({slowest[0].partition(':')[2]}) (`benchmarks/zoo.py`)."
    )
    if counted := [row for row in rows.values() if "macs" in row]:
        text += f" The MACs of {len(counted)} of them, dense and slim, are what torch counts, and the network given is "
        text += "unchanged to the bit."
    text += elsewhere(figures)
    if plain := [row for row in rows.values() if "plain" in row]:
        cut = sum(row["plain"].startswith("passed") for row in plain)
        text += f" Plain torch-pruning, 30 s for each, leaves {cut} of {len(plain)} running with the same outputs."
    return text


def zoo_others(figures: dict[str, Any]) -> str:
    """In which runtimes the networks run that classify no pictures."""
    rows = figures["rows"]
    passed = {name: row for name, row in rows.items() if row["passed"]}
    head = (
        f"{len(rows)} networks that classify no pictures (boxes, masks, poses, sound, speech, text, series, tables, "
        f"volumes, points), cut the same way: {len(passed)} pass. Their artifacts in fp32, each in its own runtime "
        f"against torch (`benchmarks/zoo.py --others`).{elsewhere(figures)}"
    )
    lines, refusals = [], []
    for format in figures["formats"]:
        found = {name.partition(":")[2]: row[format] for name, row in passed.items() if format in row}
        refused = [name for name, what in found.items() if isinstance(what, str) and what.startswith("ExportError")]
        wrong = [name for name, what in found.items() if isinstance(what, str) and name not in refused]
        lines.append([format, f"{len(found) - len(refused) - len(wrong)} of {len(found)}", str(len(refused))])
        lines[-1].append(", ".join(wrong) or "none")
        refusals += [f"- {format} refuses {', '.join(refused)}."] if refused else []
    return "\n\n".join((head, table(["format", "run", "refused", "differ or end"], lines), "\n".join(refusals)))


def cut_speed(figures: dict[str, Any]) -> str:
    """Cutting, beside torch-pruning."""
    rows = [
        [name, f"{row['ours_s'] * 1e3:.0f} ms", f"{row['torch_pruning_s'] * 1e3:.0f} ms"]
        for name, row in figures["rows"].items()
    ]
    head = "A cut, groups known, against torch-pruning removing the same channels (`benchmarks/cut_speed.py`):"
    return f"{head}\n\n{table(['network', 'ours', 'torch-pruning'], rows)}"


def reading(figures: dict[str, Any]) -> str:
    """Images per second, beside torchvision's."""
    rows = [
        [
            str(row["workers"]), name, f"{row[f'ours_per_s_{name}']:g}", f"{row[f'theirs_per_s_{name}']:g}",
            f"{row[f'ratio_{name}']:.2f}",
        ]
        for row in figures["rows"] for name in ("wall", "processor") if f"ratio_{name}" in row
    ]  # fmt: skip
    head = f"Training batches from {figures['images']} JPEGs of 500 x 375 pixels at 224, images per second beside "
    head += f"torchvision's ImageFolder and a DataLoader, {figures['turns']} turns (`benchmarks/reading.py`):"
    return f"{head}\n\n{table(['workers', 'time', 'ours', 'torchvision', 'ratio'], rows)}"


def busy(figures: dict[str, Any]) -> str:
    """Training beside other programs, before and now."""
    head = (
        f"Training {figures['recipe']}'s dense network on {figures['cores']} cores ({figures['device']}) beside so "
        f"many busy processes, as many threads as cores (before) and as many as the others leave (now), in turns of "
        f"{figures['seconds']:g} s; ms a step, means of {figures['n']} turns (`benchmarks/busy_training.py`):"
    )
    rows = [
        [str(row["busy"]), f"{row['old_ms']:.0f}", f"{row['new_ms']:.0f}", f"{row['faster']:.2f}"]
        for row in figures["compared"]
    ]
    return f"{head}\n\n{table(['busy processes', 'before', 'now', 'times as fast'], rows)}"


def cifar(figures: dict[str, Any]) -> str:
    """Accuracy per point and method, after the cut and after tuning."""
    found = {tuple(name.split(" ")): row for name, row in figures["figures"].items()}
    is_repaired = all("repaired" in row for row in found.values())
    columns = ("cut", *(["repaired"] if is_repaired else []), "10 a class", "50 a class", "all")
    points = sorted({point for _, point in found})
    timed = any("latency" in row for row in found.values())
    share = ["latency"] if timed else []
    rows = [
        [
            point,
            method,
            *(f"{row[c]:.1%}" for c in share),
            *(f"{100 * row[c]:.1f} ± {100 * row['standard_error'][c]:.1f}" for c in columns),
            str(row["n"]),
        ]
        for point in points
        for (method, at), row in found.items()
        if at == point
    ]
    network = figures["network"]
    head = f"{network.rpartition(':')[2]} on CIFAR-10, dense {figures['dense']:.2%}; test accuracy in % straight after "
    head += "the cut (batch norm measured anew), "
    head += "repaired (no training, by 10 unlabelled images a class), " if is_repaired else ""
    head += "and tuned with 10 and 50 images a class and with everything. "
    head += f"{figures['steps']} training steps of {figures['batch']} images in all for every method, of which "
    head += f"{figures['search_steps']} "
    head += "are the search's where there is one; of a single seed ± is the test set's standard error. "
    head += reductions(figures)
    head += f"Speed-ups are of MACs, shares of measured latency (`benchmarks/cifar_resnet.py`).{elsewhere(figures)}"
    if missed := [" at ".join(one.split(" ")) for one in figures.get("out_of_reach", [])]:
        head += f" Out of reach: {', '.join(missed)}."
    titles = ["point", "method", *share, "after the cut", *columns[1:], "seeds"]
    return f"{head}\n\n{table(titles, rows)}"


def task(figures: dict[str, Any]) -> str:
    """A detector's or segmenter's score per point and method, after the cut and retrained."""
    found = {tuple(name.split(" ")): row for name, row in figures["figures"].items()}
    points = dict.fromkeys(point for _, point in found)
    rows = [
        [point, method, f"{row['latency']:.1%}", scored(row, "cut"), scored(row, "retrained"), str(row["n"])]
        for point in points
        for (method, at), row in found.items()
        if at == point
    ]
    height, width = figures["image_size"]
    head = f"{figures['network']}, {figures['train_pictures']} training and {figures['test_pictures']} test pictures "
    head += (
        f"of {height} x {width}; {figures['score']} in %: dense {100 * figures['dense']:.1f}, slim straight after the "
    )
    head += "cut (batch norm measured anew) and retrained. The dense network was trained for "
    head += (
        f"{figures['train_steps']} steps of {figures['batch']} pictures; every method takes {figures['steps']} more, "
    )
    head += (
        f"of which {figures['search_steps']} are the search's where there is one; mean over seeds ± standard error. "
    )
    head += "Points are shares of the measured latency, and `latency` is that of the slim artifact measured once more "
    head += f"(`benchmarks/{figures['name']}.py`).{elsewhere(figures)}"
    return f"{head}\n\n{table(['point', 'method', 'latency', 'after the cut', 'retrained', 'seeds'], rows)}"


def scored(row: Mapping[str, Any], column: str) -> str:
    """As in "55.1 ± 0.3"; of a single seed, without."""
    error = row["standard_error"][column]
    return f"{100 * row[column]:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def aslp(figures: dict[str, Any]) -> str:
    """Accuracy of subnetworks of random weights against the epoch."""
    curves = figures["curves"]
    last = figures["epochs"]
    shown = [*(e for e in (1, 2, 3, 5, 8, 12, 20, 50) if e < last), last]
    rows = [[name, *(f"{100 * curve[e - 1]:.1f}" for e in shown)] for name, curve in curves.items()]
    head = f"Subnetworks of frozen random weights ({figures['network']}, {figures['n']} images of CIFAR-10, one seed); "
    head += "test accuracy in % after so many epochs (`benchmarks/aslp_conv.py`):"
    return f"{head}\n\n{table(['masks', *map(str, shown)], rows)}"


def formats(figures: dict[str, Any]) -> str:
    """Latency and size per runtime, dense and slim."""
    rows = [
        [
            row["network"].rpartition(":")[2], f"{row['image_size']} px", row["format"], f"{row['speed_up']:.2f}x",
            f"{row['slim_ms']:.3f}", f"{row['dense_ms']:.3f}", f"{row['slim_bytes'] / 1e6:.2f}",
            f"{row['dense_bytes'] / 1e6:.2f}",
        ]
        for row in figures["rows"]
    ]  # fmt: skip
    head = f"Cut to {figures['budget']} of the dense latency for each runtime on this CPU (1 thread, "
    head += f"{figures['precision']}), then all runtimes, dense and slim, in one interleaved run "
    head += f"(`benchmarks/formats.py`; random weights).{elsewhere(figures)}"
    titles = ["network", "input", "format", "speed-up", "slim ms", "dense ms", "slim MB", "dense MB"]
    return f"{head}\n\n{table(titles, rows)}"


def parity(figures: dict[str, Any]) -> str:
    """Per format and precision, the worst of all networks, dense and slim."""
    by_kind: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name, row in figures["rows"].items():
        *_, format, precision = name.split(" ")
        by_kind.setdefault((format, precision), []).append(row)
    rows = []
    for (format, precision), found in by_kind.items():
        compared = [row for row in found if "max_rel" in row]
        refused = sum("error" in row for row in found)
        off = f"{max(row['max_rel'] for row in compared):.1e}" if compared else "contents compared"
        agree = f"{min(row['agreement'] for row in compared):.1%}" if compared else ""
        rows.append([format, precision, f"{len(found) - refused} of {len(found)}", off, agree])
    networks = {name.split(" ")[0] for name in figures["rows"]}
    head = (
        f"Artifacts of {len(networks)} networks trained on digits, dense and cut to half of their MACs, in their own "
    )
    head += f"runtimes against torch on {figures['n']} test images: how many pass the checks, the largest difference "
    head += "relative to the largest output, and the smallest share of images with the same first answer "
    head += "(`benchmarks/parity.py`):"
    return f"{head}\n\n{table(['format', 'precision', 'pass', 'off by', 'agree'], rows)}"


def yolo(figures: dict[str, Any]) -> str:
    """A YOLO cut to a share of its measured latency, runtime by runtime."""
    rows = [
        [
            format, f"{row['dense_ms']:.2f} → {row['slim_ms']:.2f}", f"{row['share']:.3f}", f"{row['error']:+.1%}",
            f"{row['macs']:.0%}", f"{row['uniform_over_ours']:.2f}",
        ]
        for format, row in figures["rows"].items()
    ]  # fmt: skip
    head = f"{figures['network']} at {figures['size']} pixels, random weights, cut to {figures['budget']} of its "
    head += (
        "measured latency in each runtime on this machine, one thread; the finished artifact in turns with the dense "
    )
    head += (
        "one and with uniform width at equal MACs, which takes so many times as long (`benchmarks/yolo_latency.py`):"
    )
    titles = ["runtime", "ms", "share", "off the budget", "MACs left", "uniform width"]
    return f"{head}\n\n{table(titles, rows)}"


def reductions(figures: dict[str, Any]) -> str:
    """What a benchmark changed of a recipe's defaults, in sentences."""
    told = ""
    if changed := figures.get("retrain"):
        told += f"Retrained with {', '.join(f'{key} {value:g}' for key, value in changed.items())}. "
    if figures["inner"]:
        told += "Channels that skip connections share are left as they are. "
    return told


def elsewhere(figures: dict[str, Any]) -> str:
    """Which cells were made on another machine or at an earlier commit than the rest, in a sentence."""
    also = figures.get("also")
    if also is None:
        return ""
    where = f"on another machine ({also['device']})" if "device" in also else f"at commit {also['commit'][:7]}"
    return f" Made {where}: {also['cells']}."


def recovery(figures: dict[str, Any]) -> str:
    """What comes back with few examples, and what each part of the retrainer adds."""
    found = figures["figures"]
    shots = list(dict.fromkeys(name.partition(", ")[0] for name in found))
    variants = list(dict.fromkeys(name.partition(", ")[2] for name in found))
    cells = [[found.get(f"{k}, {variant}") for k in shots] for variant in variants]
    rows = [[v, *(interval_cell(c) for c in row)] for v, row in zip(variants, cells, strict=True)]
    head = f"{figures['network']} on CIFAR-10, cut to {figures['point']} of its MACs by a search of "
    head += f"{figures['search_steps']} steps, and retrained with so many images of each class of the same task "
    head += (
        f"(`benchmarks/recovery.py`). {reductions(figures)}Test accuracy: dense {figures['dense']:.1%}, after the cut "
    )
    head += f"{figures['cut']:.1%}; then, with a recipe's defaults and with one of them changed:"
    return f"{head}\n\n{table(['retraining', *(f'{k} a class' for k in shots)], rows)}"


def repair(figures: dict[str, Any]) -> str:
    """What weights computed anew give, with no training and with a little."""
    found = figures["figures"]
    steps = list(dict.fromkeys(name.split()[1] for name in found))
    of = {m: [found[f"{m} {n}"] for n in steps] for m in dict.fromkeys(name.split()[0] for name in found)}
    rows = [[method, *(f"{x['cut']:.1%} → {x['repaired']:.1%}" for x in each)] for method, each in of.items()]
    head = (
        f"{figures['network']} on CIFAR-10 (dense {figures['dense']:.1%}), at {figures['point']} fewer MACs, retrained "
    )
    head += f"with {figures['shots']} images of each class, from the weights as they were cut → from weights computed "
    head += "anew by least squares on the same images (`benchmarks/repair.py`, one seed). Test accuracy:"
    return f"{head}\n\n{table(['channels by', *(f'{n} steps' for n in steps)], rows)}"


def carried(figures: dict[str, Any]) -> str:
    """Architectures on new classes."""
    found = figures["figures"]
    shots = list(dict.fromkeys(name.partition(", ")[0] for name in found))
    rows = []
    for name in dict.fromkeys(name.partition(", ")[2] for name in found):
        cells = [found.get(f"{k}, {name}") for k in shots]
        rows.append([*name.split(", "), *(interval_cell(c) + fewer_draws(c, figures["episodes"]) for c in cells)])
    head = f"{figures['network']}'s channels, chosen on CIFAR-10 by searches of {figures['search_steps']} steps and "
    head += f"carried to {figures['ways']} classes of CIFAR-100 with K images of each (`benchmarks/transfer.py`; mean "
    head += f"of {figures['episodes']} draws of classes and images, and its 95% interval). Dense is fine-tuned "
    head += "(inherit) or trained from scratch (fresh); all others have the fine-tuned one as teacher. "
    head += reductions(figures).rstrip()
    head += elsewhere(figures)
    return f"{head}\n\n{table(['MACs', 'method', 'weights', *(f'K = {k}' for k in shots)], rows)}"


def interval_cell(found: dict[str, Any] | None) -> str:
    """A mean and half its interval, in percent."""
    if found is None:
        return ""
    half = "" if found["interval"] is None else f" ± {100 * found['interval']:.1f}"
    return f"{100 * found['mean']:.1f}{half}"


def fewer_draws(found: dict[str, Any] | None, usual: int) -> str:
    """Where there are fewer than usual."""
    return "" if found is None or found["n"] >= usual else f" ({found['n']} draws)"


def latency_table(figures: dict[str, Any]) -> str:
    """How far latency tables go wrong on networks that they weren't made of."""
    rows = [
        [
            *parted(name), str(row["granularity"]), f"{row['median_error']:.1%}", f"{row['p90_error']:.1%}",
            f"{row['wall_s']:.0f}",
        ]
        for name, row in figures["rows"].items()
    ]  # fmt: skip
    head = f"Tables of {figures['n']} random networks on {figures['target']} ({figures['device']}, one thread), each "
    head += "checked with as many others; the seconds are those of the whole command (`benchmarks/latency_table.py`):"
    titles = ["network", "input", "granularity", "median error", "p90 error", "seconds"]
    return f"{head}\n\n{table(titles, rows)}"


def budgets(figures: dict[str, Any]) -> str:
    """Measured latency over what was asked, and uniform pruning's to the same MACs."""
    found, rows = figures["summary"], []
    for name, row in figures["rows"].items():
        cells = [*parted(name), f"{row['asked']:.0%}"]
        if row["status"] == "ok":
            both = f"{digits(row['slim_ms'])} / {digits(row['dense_ms'])}"
            latency = f"{row['dense_ms'] / row['slim_ms']:.2f}x", both
            shares = [*latency, f"{row['share'] / row['asked']:.3f}", f"{row['macs']:.1%}"]
            shares.append(f"{row['uniform_over_ours']:.2f}x")
        elif row["status"] == "failed":
            shares = ["not met", "", "", "", ""]
        else:
            shares = [f"out of reach: at least {row['smallest']:.0%}", "", "", "", ""]
        rows.append([*cells, *shares])
    head = f"Budgets of shares of the dense latency on {figures['target']} ({figures['device']}, one thread): the "
    head += (
        "finished artifact's speed-up and its p50 beside dense's in the same rounds (the speed-up is their quotient), "
    )
    head += "measured once more after the loop; that share over what was asked; its MACs; and how long uniform pruning "
    head += "to as many MACs takes beside it, in multiples of that. "
    head += f"{found['within_3_percent']:.0%} of {found['counted']} budgets within reach are met to 3%"
    head += "" if found["worst"] is None else f", the worst to {found['worst']:.1%}"
    head += " (`benchmarks/budgets.py`; random weights):"
    titles = ["network", "input", "budget", "speed-up", "p50 ms, slim / dense", "measured / asked", "MACs"]
    titles.append("uniform at equal MACs")
    return f"{head}\n\n{table(titles, rows)}"


def parted(key: str) -> tuple[str, str]:
    """Network and input of a row that is called "torchvision:resnet18:3,224,224:1000 ..."."""
    name, shape, _ = key.split(" ")[0].rsplit(":", 2)
    return name.rpartition(":")[2], f"{shape.rpartition(',')[2]} px"
