"""What the figures on transcendental functions become in the documentation: a text and a table each."""

from __future__ import annotations

from typing import Any

from _texts import table


def activations(figures: dict[str, Any]) -> str:
    """What functions take, per runtime and activation."""
    rows, networks = figures["rows"], list(dict.fromkeys(row["network"] for row in figures["rows"]))
    pairs = list(dict.fromkeys((row["format"], row["activation"]) for row in rows))
    cells = []
    for pair in pairs:
        of = {row["network"]: row for row in rows if (row["format"], row["activation"]) == pair}
        macs = [row["macs"] for row in of.values() if "macs" in row]
        shown = f"{min(macs):.0f} to {max(macs):.0f}" if macs else ""
        cells.append([*pair, *(f"{of[name]['ratio']:.2f}x" for name in networks), shown])
    head = (
        f"Networks with other activations beside the same with ReLU ({figures['device']}, one thread, medians of one "
    )
    head += (
        "interleaved run), and as many multiply-accumulates as take as long as the function of one element, without "
    )
    head += "its traffic (`benchmarks/activations.py`):"
    return f"{head}\n\n{table(['format', 'activation', *networks, 'multiply-accumulates'], cells)}"


def functions(figures: dict[str, Any]) -> str:
    """Left-out networks with and without transcendental functions, by kind of runtime."""
    kinds = figures["functions"]
    before, after = list(figures["left_out"])[-2:]
    rows = [
        [
            kind.removesuffix(" None"), name, str(row["predictions"]),
            *(f"{row[form]['error']:.1%}" for form in (before, after)),
            *(f"{row[form]['ratio']:.2f}" for form in (before, after)),
        ]
        for kind, told in kinds.items()
        for name, row in told.items()
    ]  # fmt: skip
    head = "Predictions of left-out networks with and without transcendental functions, against what was published; "
    head += "medians over devices and networks, before these functions had a cost and since "
    head += "(`benchmarks/published_latencies.py`):"
    titles = ["runtime", "functions", "predictions", "error before", "error", "predicted / published before"]
    return f"{head}\n\n{table([*titles, 'predicted / published'], rows)}"
