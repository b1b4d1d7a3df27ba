"""The pages' templates, and what they can call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from deploy_prune.errors import printable
from deploy_prune.report import latency, table
from deploy_prune.report.units import amount, heading, in_unit, percent, plain


def _shown(value: Any) -> Any:
    """What is written into the page: text without control characters; what is markup already is ours."""
    return printable(value, keep="\n\t") if isinstance(value, str) and not isinstance(value, Markup) else value


def template(name: str) -> Template:
    """A template of this folder, with the functions that show figures."""
    here = FileSystemLoader(Path(__file__).parent)
    env = Environment(loader=here, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.finalize = _shown
    env.filters["ms"] = partial(amount, metric="latency")
    env.filters["percent"] = percent
    shown: Mapping[str, Callable[..., Any]] = {
        "amount": amount,
        "plain": plain,
        "score": table.score,
        "heading": heading,
        "in_unit": in_unit,
        "input_size": table.input_size,
        "faster": table.faster,
        "interval": latency.interval,
        "latency_ms": latency.latency_ms,
        "milliseconds": table.milliseconds,
        "own_dense_ms": latency.own_dense_ms,
        "speedup": latency.speedup,
        "status": table.status,
        "sentence": latency.sentence,
        "times": latency.times,
    }
    env.globals.update(shown)
    return env.get_template(name)
