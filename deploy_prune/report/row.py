"""A row of results.json: what a run found for one target and budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from deploy_prune.errors import DeployPruneError, kind_of
from deploy_prune.types import Metric

_TIMES: Final = (
    "predicted_ms", "predicted_dense_ms", "measured_p50_ms", "measured_p90_ms", "measured_p99_ms", "dense_p50_ms",
    "speedup", "speedup_low", "speedup_high",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of results.json: one target x budget, or a target's dense row (``budget == "dense"``).

    ``asked`` and ``predicted`` are in the metric's unit (ms for latency); a latency budget is held against
    ``measured_p50_ms``. ``score`` is on the target task's test examples, ``score_artifact`` that of the file in
    its runtime (None in fp32, where it is the network's): a ``score_name`` in ``score_unit`` ("%": values are 0 to 1,
    and shown times 100). ``measured_*`` and ``measured_on`` are None
    where no device is attached. ``dense_p50_ms`` is the dense artifact's p50 in the same interleaved run, never in
    another one. ``speedup``: how many times as fast as dense, the median of the paired samples' ratios, in the 95%
    interval from ``speedup_low`` to ``speedup_high`` (latency/paired.py); None in a dense row.
    ``predicted_dense_ms``: the dense network's latency by the model that ``predicted_ms`` is from; None where a device
    is attached. ``disturbed``: as ``Latency`` has it. ``macs`` and ``params`` are None if the network wasn't known yet.
    ``score_given``: of the network as given (or trained), on the source classes' test examples. ``dense_adapted``:
    whether the dense network is that one with new class layers, adapted to other classes; else it is the network as
    given. The slim network is retrained on ``train_examples`` of the ``train_examples_of`` that there are of the target
    classes, and scored on ``test_examples``.
    ``status``: "ok" where it was measured, "predicted" where no device is attached, and all checks passed in either
    case. ``error_kind``: the name of the error's class in errors.py, which has the command's exit code.
    ``format``: the artifact's; None in results of versions that didn't write it.
    ``image_size``: height and width of the input, where the recipe lists several; in a dense row the largest.
    ``refused``: why the artifact isn't in the target's precision but in ``precision`` (``export.on_refusal``).
    """

    target: str
    runtime: str
    precision: str
    budget: str
    metric: Metric
    asked: float | None
    predicted: float | None
    predicted_ms: float | None
    measured_p50_ms: float | None
    measured_p90_ms: float | None
    dense_p50_ms: float | None
    measured_on: str | None
    macs: int | None
    params: int | None
    size_bytes: int | None
    score: float | None
    score_dense: float | None
    score_artifact: float | None
    parity_max_abs: float | None
    status: Literal["ok", "predicted", "failed"]
    error: str | None
    disturbed: str | None = None
    measured_p99_ms: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    predicted_dense_ms: float | None = None
    score_given: float | None = None
    dense_adapted: bool = False
    train_examples: int | None = None
    train_examples_of: int | None = None
    test_examples: int | None = None
    error_kind: str | None = None
    refused: str | None = None
    score_name: str = "accuracy"
    score_unit: str = "%"
    higher_is_better: bool = True
    format: str | None = None
    image_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Refuse what no measurement gives: rows are read from files too, and are divided by.

        Raises:
            ValueError: a latency or a speed-up isn't above 0.
        """
        for name in _TIMES:
            value = getattr(self, name)
            if value is not None and not value > 0:
                message = f"{name} is {value}, which no measurement gives"
                raise ValueError(message)

    def failed(self, error: DeployPruneError) -> Row:
        """The row of what failed with this error."""
        return replace(self, status="failed", error=str(error), error_kind=kind_of(error))
