"""Every reason that surgery's code can give has a kind, and a remedy."""

import ast
import re
from pathlib import Path

import pytest

import deploy_prune
from deploy_prune.report.remedies import REMEDIES, remedy_of
from deploy_prune.surgery.rules.no_rule import why

GIVEN_TO = {
    "freeze", "same", "contract", "keep_dims", "merge", "needs_gate", "zero_free", "unknown", "tie", "overlay",
    "_broken", "Failure", "_unseen",
}  # fmt: skip
"""Functions that are given a reason, and `reason = ...`."""


def text(node: ast.expr) -> str | None:
    """A string as it reads with NAME for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "NAME" for part in node.values)
    return None


def reasons() -> list[str]:
    """All of the surgery's sentences that are given as reasons."""
    found = []
    for file in sorted((Path(deploy_prune.__file__).parent / "surgery").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in GIVEN_TO:
                found += map(text, [*node.args, *(one.value for one in node.keywords)])
            elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in {"reason", "over", "why"}:
                found.append(text(node.value))
            elif isinstance(node, ast.FunctionDef) and node.name in {"_reason", "_unseen"}:
                found += [text(one.value) for one in ast.walk(node) if isinstance(one, ast.Return) and one.value]
    return sorted({one for one in found if one and " " in one})


REASONS = [*reasons(), why("nms"), why("cudnn_convolution"), why("bogus")]


def test_there_are_reasons_to_look_at():
    assert len(REASONS) > 50
    assert "NAME sums over it, and no weight could carry a gate" in REASONS
    assert "it has a single unit" in REASONS


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_has_a_remedy(reason):
    assert remedy_of(reason) is not None, reason


@pytest.mark.parametrize("one", REMEDIES, ids=lambda one: one.title)
def test_every_remedy_is_of_some_reason(one):
    assert any(remedy_of(reason) is one for reason in REASONS)
    assert re.fullmatch(r"[A-Z].*\.", one.change)


def test_an_unknown_reason_has_none():
    assert remedy_of("the moon is full") is None
