"""New calls in a torch.export program's graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx


def value(node: Any) -> Tensor:
    """The tensor without numbers that torch.export notes at a node: shape and type."""
    val = node.meta["val"]
    assert isinstance(val, Tensor)
    return val


def call(like: fx.Node, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A new call before ``like``, with the notes that torch's exporters read: its value's shape, its module."""
    made = like.graph.call_function(op, args, kwargs)
    values: Any = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
    with value(like).fake_mode:  # type: ignore[attr-defined]
        made.meta = {**like.meta, "val": op(*values[0], **values[1])}
    return made


def arguments(node: fx.Node) -> dict[str, Any]:
    """A call's arguments by name, defaults included."""
    schema = node.target._schema  # type: ignore[union-attr]
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    return {a.name: given.get(a.name, a.default_value) for a in schema.arguments}
