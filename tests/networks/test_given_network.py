"""The network as the user gives it: the first row, with its own accuracy, wherever results are told."""

import io
import json

import pytest
import torch
from rich.console import Console
from tiny_run import network, tiny_recipe

from deploy_prune.commands.show import overview
from deploy_prune.data import splits
from deploy_prune.report.show import overview_tables
from deploy_prune.report.table import results_table
from deploy_prune.run import pipeline
from deploy_prune.run.folder import save_tensors
from deploy_prune.tasks.classification import CLASSIFIER
from deploy_prune.training.loop import Session, make_accelerator, network_score, train_network

SAME = tiny_recipe().data.model_dump() | {"target_classes": [0, 1, 2], "shots": None}
PLACE = "pixel-8/50% macs"


def printed(*parts):
    console = Console(width=200, file=io.StringIO())
    console.print(*parts)
    return " ".join(console.file.getvalue().split())


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A trained network's file, its accuracy, and the run that was made of it."""
    path = tmp_path_factory.mktemp("given")
    recipe = tiny_recipe(data=SAME)
    examples = splits.load(recipe.data, 0)
    torch.manual_seed(3)
    trained = network(3)
    session = Session(accelerator=make_accelerator("cpu"), seed=0)
    part = recipe.train.model_copy(update={"steps": 12})
    train_network(trained, examples.source_train, CLASSIFIER, part, session=session, work="train")
    save_tensors(path / "mine.safetensors", trained.state_dict())
    model = {"source": "tiny_run:network", "weights": str(path / "mine.safetensors")}
    return (
        network_score(trained, examples.target_test, CLASSIFIER),
        pipeline.run(tiny_recipe(data=SAME, model=model), path),
        examples,
    )


def test_the_dense_row_has_the_accuracy_of_the_weights_to_the_last_bit(given):
    score, run, examples = given
    assert 0.4 < score < 1
    dense, slim = json.loads((run.folder / "results.json").read_text())
    assert dense["score"] == dense["score_dense"] == dense["score_given"] == slim["score_dense"] == score
    assert not dense["dense_adapted"]
    counts = [dense[key] for key in ("train_examples", "train_examples_of", "test_examples")]
    assert counts == [len(examples.target_train)] * 2 + [len(examples.target_test)]


def test_table_page_and_drawing_have_it_too(given):
    score, run, examples = given
    shown = f"{score:.1%}"
    table = printed(results_table(run.rows))
    page = (run.folder / "report.html").read_text()
    drawing = printed(*overview_tables(overview(run.folder / PLACE, trust=True)))
    for text in (table, page, drawing):
        assert shown in text
        assert f"all {len(examples.target_train)} training examples" in text
        assert "the original network, unchanged" in text


def test_a_network_that_was_adapted_is_called_so_and_the_original_comes_first(given):
    rows = [
        row.__class__(**{**row.__dict__, "dense_adapted": True, "score_given": 0.987, "train_examples": 15})
        for row in given[1].rows
    ]
    table = printed(results_table(rows))
    assert table.index("original") < table.index("pixel-8 dense")
    assert "98.7% (source)" in table
    assert f"15 of {rows[0].train_examples_of} training examples" in table
    assert "adapted with the same examples" in table
