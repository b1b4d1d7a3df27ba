"""Every operator of torch's core set has a label rule, tried on a network, or a reason why it can have none."""

from __future__ import annotations

import pytest
import torch
from operator_examples import EXAMPLES, LEFT
from surgery_constructs import Net
from surgery_networks import cut_right, groups_of, tried

from deploy_prune.surgery import groups
from deploy_prune.surgery.rules import table
from deploy_prune.surgery.rules.no_rule import REASONS, why
from deploy_prune.surgery.rules.table import RULES, rule_for


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The operators that rules were looked up for."""
    names: set[str] = set()

    def spy(op, name):
        names.add(name)
        return rule_for(op, name)

    monkeypatch.setattr(groups, "rule_for", spy)
    return names


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("names", EXAMPLES)
def test_the_stem_is_cut_right_through(names: str, called: set[str]) -> None:
    network = EXAMPLES[names].eval()
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    structure = tried(network, x)
    assert set(names.split()) <= called
    stem = [g for g in structure.groups if any(a.tensor == "stem.weight" for a in g.members)]
    assert [g.channels for g in stem] == [8], structure.whole
    cut_right(network, structure, x)


def operators() -> dict[str, list[torch._ops.OpOverload]]:
    """Torch's operators, by name."""
    names = {n[6:].partition(".")[0] for n in torch._C._dispatch_get_all_op_names() if n.startswith("aten::")}
    packets = {n: getattr(torch.ops.aten, n, None) for n in sorted(names)}
    return {n: [getattr(p, o) for o in p.overloads()] for n, p in packets.items() if hasattr(p, "overloads")}


def explained(name: str) -> bool:
    return why(name) != f"there is no rule for the operator {name}" or "backward" in name


def test_every_core_operator_has_an_example_or_a_reason() -> None:
    core = {n.rstrip("_") for n, forms in operators().items() if any(torch.Tag.core in f.tags for f in forms)}
    shown = {name for names in EXAMPLES for name in names.split()}
    left = {name for names in LEFT.values() for name in names.split()}
    assert {name for name in core - shown - left if not explained(name)} == set()
    assert left <= core
    assert len(core) > 150


def test_every_other_operator_has_a_rule_or_a_reason() -> None:
    """Of those that take and return tensors and change none."""

    def of_tensors(form: torch._ops.OpOverload) -> bool:
        schema = form._schema
        takes = any("Tensor" in str(a.type) for a in schema.arguments)
        return takes and any("Tensor" in str(r.type) for r in schema.returns) and not schema.is_mutable

    public = {n: forms for n, forms in operators().items() if not n.startswith("_") and any(map(of_tensors, forms))}
    unknown = {n for n, forms in public.items() if all(rule_for(f, n) is table.unknown for f in forms)}
    assert {name for name in unknown if not explained(name)} == set()
    assert len(public) > 600


def test_no_operator_has_both_a_rule_and_a_reason() -> None:
    reasons = [name for names in REASONS.values() for name in names.split()]
    assert not set(reasons) & set(RULES)
    assert len(reasons) == len(set(reasons))


def test_the_reason_is_told() -> None:
    network = Net(lambda x: x.view(-1, 8, 8, 8).masked_scatter(x > 0, x.sin())).eval()
    (reason,) = {w.reason for w in groups_of(network, torch.randn(2, 3, 8, 8)).whole if w.name == "stem"}
    assert reason == "masked_scatter has no rule: it takes elements in order, whatever channel they are of"


def test_every_rule_has_an_example() -> None:
    shown = {RULES[n] for names in EXAMPLES for n in names.split() if n in RULES}
    whole = {table.recurrent, table.inner_product}
    assert {rule.__name__ for rule in set(RULES.values()) - shown - whole} == set()
