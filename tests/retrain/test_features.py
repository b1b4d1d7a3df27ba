import pytest
import torch
from torch import nn

from deploy_prune.data.examples import Batch
from deploy_prune.recipe.parts import PrunePart
from deploy_prune.retrain.distill import taught
from deploy_prune.retrain.features import Match, Watch, feature_loss, match
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.groups import find_groups
from deploy_prune.tasks.classification import CLASSIFIER
from deploy_prune.types import Structure


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    ).eval()  # fmt: skip


def halved(dense, x):
    structure = find_groups(dense, (x[:1],), PrunePart())
    keep = {g.name: torch.arange(g.channels) % 2 == 0 for g in structure.groups}
    return cut(dense, structure, keep).eval(), structure, keep


NOTHING = Structure(groups=(), layers=(), whole=())
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_watch_sees_what_each_weight_reads():
    dense = network()
    with torch.no_grad(), Watch(dense, ["3.weight", "7.weight"]) as seen:
        dense(X)
    assert torch.equal(seen.read["3.weight"], dense[:3](X).movedim(1, -1))
    assert torch.equal(seen.read["7.weight"], dense[:7](X))


def test_a_watch_sees_into_an_exported_graph():
    dense = network()
    graph = torch.export.export(dense, (X,)).module()
    with torch.no_grad(), Watch(graph, ["3.weight"]) as seen:
        graph(X)
    assert torch.allclose(seen.read["3.weight"], dense[:3](X).movedim(1, -1))


def test_every_group_has_a_place_and_the_kept_channels():
    dense = network()
    _, structure, keep = halved(dense, X)
    found = match(structure, keep)
    assert set(found.kept) == {"3.weight", "7.weight"}
    assert found.kept["3.weight"].tolist() == [True, False] * 4


def test_groups_that_are_not_cut_are_compared_whole():
    _, structure, _ = halved(network(), X)
    assert all(bool(kept.all()) for kept in match(structure, {}).kept.values())


def test_a_cut_whose_lost_channels_did_nothing_has_no_distance():
    """Channels that are 0 for the next layer can go: what the slim network reads is what the teacher's channels are."""
    dense = network()
    with torch.no_grad():
        dense[3].weight[:, 1::2] = 0
    slim, structure, keep = halved(dense, X)
    found = match(structure, keep)
    with torch.no_grad(), Watch(dense, found.kept) as told, Watch(slim, found.kept) as seen:
        dense(X), slim(X)
    assert feature_loss(seen.read, told.read, found) < 1e-10
    assert seen.read["7.weight"].shape[1] == 6


def test_it_is_the_relative_distance():
    told = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    found = torch.tensor([[1.5, 3.0]])
    chosen = Match(
        structure=Structure(groups=(), layers=(), whole=()),
        keep={},
        kept={"w": torch.tensor([True, False, True, False])},
    )
    assert feature_loss({"w": found}, {"w": told}, chosen).item() == pytest.approx(0.25 / (1 + 9))


def test_places_that_only_one_network_has_are_left_out():
    chosen = Match(structure=NOTHING, keep={}, kept={"w": torch.tensor([True, True])})
    assert feature_loss({}, {"w": torch.ones(1, 2)}, chosen) == 0
    assert feature_loss({"w": torch.ones(1, 2)}, {}, chosen) == 0
    assert feature_loss({"w": torch.ones(1, 3)}, {"w": torch.ones(1, 3)}, chosen) == 0


def test_features_add_to_the_loss_and_teach():
    dense = network()
    slim, structure, keep = halved(dense, X)
    batch, found = Batch((X,), torch.tensor([0, 1, 2, 3])), match(structure, keep)
    plain = taught(CLASSIFIER, dense, 0.5, 2.0)(slim, batch)
    both = taught(CLASSIFIER, dense, 0.5, 2.0, features=3.0, match=found)
    with torch.no_grad(), Watch(dense, found.kept) as told, Watch(slim, found.kept) as seen:
        dense(X), slim(X)
    close = feature_loss(seen.read, told.read, found)
    assert both(slim, batch).item() == pytest.approx(plain.item() + 3 * close.item(), rel=1e-5)
    both(slim, batch).backward()
    assert slim[0].weight.grad is not None
    assert dense[0].weight.grad is None


def test_without_a_match_there_are_no_features():
    assert taught(CLASSIFIER, network(), 0.0, 2.0, features=1.0) == CLASSIFIER.batch_loss
