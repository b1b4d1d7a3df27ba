"""What a program in any language does to make boxes of raw outputs, as numbers: one program serves every family.

A family's own program in numpy (device/payload/decode_*.py) and its settings become a ``Plan``: where in the outputs a
row's scores, codes and anchor stand, what makes scores of logits and boxes of codes, and which boxes stay. A row is an
anchor, a place, a query or a proposal, a column a class logit. ``handover/boxes.*`` do what a plan says.

A rows of all levels, C classes, H W height and width of the network's input or of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

Shapes = Sequence[Sequence[int]]
"""Of the outputs for one picture, without the batch."""
NEVER: Final = 2.0
"""An overlap that no two boxes have: none is suppressed."""
CELL_MOST: Final = 10.0
"""Of the logarithm of a side in cells (device/payload/decode_grid.py)."""
LEAST_SIDE: Final = 1e-2
"""Of a two-stage detector's box, in pixels (device/payload/decode_rcnn.py)."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """Numbers in an output: that of a row and column stands at ``start + row * per_row + column * per_column``."""

    output: int = -1
    start: int = 0
    per_row: int = 0
    per_column: int = 0


NOWHERE: Final = Field()


@dataclass(frozen=True, kw_only=True)
class Level:
    """Rows whose numbers stand together.

    ``width``, ``per_place``, ``first``, ``step_y``, ``step_x``: anchors on a grid: of a row's place, ``per_place`` at
    each, the boxes from ``Plan.anchors[first]`` on, moved by these steps in pixels. ``anchors``: boxes that are among
    the outputs instead. ``more``: one number a row that the scores depend on, too.
    """

    rows: int
    scores: Field
    codes: Field
    more: Field = NOWHERE
    anchors: Field = NOWHERE
    width: int = 1
    per_place: int = 1
    first: int = 0
    step_y: float = 0.0
    step_x: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """From raw outputs to boxes.

    ``levels``, ``anchors``: as Level says.
    ``logits`` columns stand in the outputs, those from ``first`` on, ``columns`` of them, count. ``softmax``: over all
    logits; else each has its own sigmoid. ``more``: the scores are multiplied by the sigmoid of Level.more (factor), or
    are the root of that (root). ``one_each``: only a row's best column counts.
    ``group``: what has at most ``candidates`` of its own, with scores above ``least_score``.
    ``codes``: what a box's numbers are: shifts of the anchor's centre and logarithms of its sides' growth (deltas,
    divided by ``weights``, logarithms at most ``most``), distances of the edges from its centre in its sides
    (distances, each the mean over ``bins``), centre and sides as shares of the input (shares), or the edges (edges).
    ``codes_per_logit``: how far the codes of two classes are apart; 0: all classes have the same.
    ``clip``: boxes are cut at the input's edges before suppression, after it, or never. ``least_side``: in pixels;
    smaller boxes go. ``overlap``: two boxes of a column may have. ``shift``: of a column, to its label; below 0: none.
    """

    levels: tuple[Level, ...]
    logits: int
    columns: int
    anchors: tuple[tuple[float, ...], ...] = ()
    first: int = 0
    softmax: bool = False
    more: Literal["none", "factor", "root"] = "none"
    one_each: bool = False
    group: Literal["all", "level", "column"] = "all"
    candidates: int
    least_score: float
    codes: Literal["deltas", "distances", "shares", "edges"]
    codes_per_logit: int = 0
    weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    most: float = 0.0
    bins: int = 1
    clip: Literal["before", "after", "never"] = "before"
    least_side: float = 0.0
    overlap: float = NEVER
    most_boxes: int
    shift: int = 0


def plan(program: str, settings: Mapping[str, Any], shapes: Shapes) -> Plan:
    """The plan that does what a program of device/payload does with these settings and outputs of these shapes."""
    return PLANS[program](settings, shapes)


def _common(settings: Mapping[str, Any]) -> dict[str, Any]:
    overlap = settings.get("overlap")
    return {
        "most_boxes": settings["most_boxes"],
        "least_score": float(settings.get("least_score", -1.0)),
        "overlap": NEVER if overlap is None else float(overlap),
    }


def _map(output: int, shape: Sequence[int], first: int = 0) -> Field:
    """Of a map [channels, H, W]: a row is a place, a column a channel from ``first`` on."""
    places = shape[1] * shape[2]
    return Field(output=output, start=first * places, per_row=1, per_column=places)


def _cells(shape: Sequence[int], stride: float, first: int) -> dict[str, Any]:
    """A grid whose anchors are the cells themselves, of which ``first`` is the first one."""
    return {
        "rows": shape[1] * shape[2], "width": shape[2], "first": first, "step_y": float(stride), "step_x": float(stride)
    }  # fmt: skip


def _cell(stride: float) -> tuple[float, ...]:
    return (0.0, 0.0, float(stride), float(stride))


def _grid(settings: Mapping[str, Any], shapes: Shapes) -> Plan:
    (shape,) = shapes
    classes = shape[0] - 5
    level = Level(
        **_cells(shape, settings["stride"], 0),
        more=_map(0, shape),
        codes=_map(0, shape, 1),
        scores=_map(0, shape, 5),
    )
    return Plan(
        **_common(settings), levels=(level,), anchors=(_cell(settings["stride"]),), logits=classes, columns=classes,
        softmax=True, more="factor", candidates=settings["candidates"], codes="deltas", most=CELL_MOST,
    )  # fmt: skip


def _yolo(settings: Mapping[str, Any], shapes: Shapes) -> Plan:
    strides, masks = settings["strides"], bool(settings["masks"])
    kinds = (len(shapes) - masks) // len(strides)
    levels = []
    for scale, stride in enumerate(strides):
        codes, scores = scale * kinds, scale * kinds + 1
        shape = shapes[codes]
        grid = _cells(shape, stride, scale)
        levels.append(Level(**grid, codes=_map(codes, shape), scores=_map(scores, shapes[scores])))
    classes = shapes[1][0]
    return Plan(
        **_common(settings), levels=tuple(levels), anchors=tuple(map(_cell, strides)), logits=classes, columns=classes,
        candidates=settings["candidates"], codes="distances", bins=settings["bins"], clip="after",
    )  # fmt: skip


def _levels(settings: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """Levels and anchors of outputs [A, 1 + C], [A, 4] and perhaps [A, 1], level after level."""
    logits, levels, start = shapes[0][1], [], 0
    anchors: list[tuple[float, ...]] = []
    for told in settings["levels"]:
        (height, width), (step_y, step_x), per_place = told["size"], told["stride"], len(told["anchors"])
        levels.append(Level(
            rows=height * width * per_place, width=width, per_place=per_place, first=len(anchors),
            step_y=float(step_y), step_x=float(step_x),
            scores=Field(output=0, start=start * logits, per_row=logits, per_column=1),
            codes=Field(output=1, start=start * 4, per_row=4, per_column=1),
            more=Field(output=2, start=start, per_row=1) if len(shapes) > 2 else NOWHERE,
        ))  # fmt: skip
        anchors += [tuple(map(float, box)) for box in told["anchors"]]
        start += levels[-1].rows
    return {"levels": tuple(levels), "anchors": tuple(anchors), "logits": logits}


def _deltas(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"codes": "deltas", "weights": tuple(map(float, settings["weights"])), "most": float(settings["most"])}


def _ssd(settings: Mapping[str, Any], shapes: Shapes) -> Plan:
    return Plan(
        **_common(settings), **_levels(settings, shapes), **_deltas(settings), columns=shapes[0][1] - 1, first=1,
        shift=1, softmax=True, group="column", candidates=settings["candidates"],
    )  # fmt: skip


def _retina(settings: Mapping[str, Any], shapes: Shapes) -> Plan:
    codes = {"codes": "distances"} if settings["weights"] is None else _deltas(settings)
    return Plan(
        **_common(settings), **_levels(settings, shapes), **codes, columns=shapes[0][1], shift=1,
        more="root" if len(shapes) > 2 else "none", group="level", candidates=settings["candidates"],
    )  # fmt: skip


def _table(output: int, columns: int) -> Field:
    """Of an output [rows, columns]."""
    return Field(output=output, per_row=columns, per_column=1)


def _detr(settings: Mapping[str, Any], shapes: Shapes) -> Plan:
    rows, logits = shapes[0]
    softmax = settings["scores"] == "softmax"
    level = Level(rows=rows, scores=_table(0, logits), codes=_table(1, 4))
    return Plan(
        **_common(settings), levels=(level,), logits=logits, columns=logits - softmax,
        softmax=softmax, one_each=softmax, candidates=settings["most_boxes"], codes="shares", clip="never",
    )  # fmt: skip


def _rcnn(settings: Mapping[str, Any], shapes: Shapes) -> Plan:
    rows, logits = shapes[3 if settings["parts"] is None else 5]
    common = {
        **_common(settings), "logits": logits, "columns": logits - 1, "first": 1, "shift": 1, "softmax": True,
        "candidates": rows * logits, "least_side": LEAST_SIDE,
    }  # fmt: skip
    if settings["parts"] is not None:
        level = Level(rows=rows, scores=_table(5, logits), codes=_table(6, 4))
        return Plan(**common, levels=(level,), one_each=True, codes="edges", clip="never")
    level = Level(rows=rows, scores=_table(3, logits), codes=_table(4, logits * 4), anchors=_table(2, 4))
    return Plan(**common, **_deltas(settings), levels=(level,), codes_per_logit=4)


PLANS: Final[dict[str, Callable[[Mapping[str, Any], Shapes], Plan]]] = {
    "decode_detr": _detr,
    "decode_grid": _grid,
    "decode_rcnn": _rcnn,
    "decode_retina": _retina,
    "decode_ssd": _ssd,
    "decode_yolo": _yolo,
}
"""Program of device/payload that makes boxes -> its plan."""
