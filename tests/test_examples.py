"""The examples run as they are shipped, but for fewer steps: each is a task of one's own."""

import importlib
import json
import wave
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from deploy_prune import load, run_recipe

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.ipynb"))
RIGHT = {
    "own_classifier": [
        "0.4 < half.slim_ms / half.dense_ms < 0.6 and half.is_measured",
        "slim_accuracy > 0.85 and abs(loaded_accuracy - slim_accuracy) < 0.01",
        "accuracy(network, test_data) == dense_accuracy",
    ],
    "own_detector": [
        "(slim.status, slim.error) == ('ok', None)",
        "slim.macs < 0.8 * dense.macs and slim.score > 0.05",
        "[one.partition(':')[0] for one in by_file] == [one.partition(':')[0] for one in by_network] != []",
    ],
}
"""What is true at each notebook's end, of its own names."""
SHORT = ["train.steps=3", "search.steps=3", "retrain.steps=2", "targets=[pixel-8]", "budgets=[70% macs]", "threads=1"]


@pytest.fixture
def recordings(tmp_path):
    """Two recordings of each digit, one to train on and one to judge by."""
    (tmp_path / "recordings").mkdir()
    for digit in range(10):
        for number in (1, 7):
            with wave.open(str(tmp_path / "recordings" / f"{digit}_someone_{number}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(8000)
                file.writeframes((np.sin(np.arange(3000) * (1 + digit) / 20) * 9000).astype(np.int16).tobytes())
    return tmp_path / "recordings"


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.yaml")))
def test_it_runs_and_its_artifact_is_checked(name, recordings, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    overrides = SHORT + ([f"data.root={recordings}"] if name == "spoken_digits" else [])
    done = run_recipe(str(EXAMPLES / f"{name}.yaml"), tmp_path, overrides=overrides)
    assert [(row.budget, row.error) for row in done.rows] == [("dense", None), ("70% macs", None)]
    assert all(row.score is not None and row.parity_max_abs is not None for row in done.rows)


def test_the_table_names_every_example():
    table = (EXAMPLES / "README.md").read_text()
    assert {path.name for path in EXAMPLES.glob("*.yaml")} == {
        word.partition(".yaml")[0].rpartition(" ")[2] + ".yaml" for word in table.split("`") if ".yaml" in word
    }
    assert "`python train_on.py " in table
    assert {path.name for path in NOTEBOOKS} == {f"{name}.ipynb" for name in RIGHT}
    assert all(f"](notebooks/{path.name})" in table for path in NOTEBOOKS)


def test_a_loop_of_ones_own_trains_a_slim_network_on(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    example, task = (importlib.import_module(name) for name in ("train_on", "super_resolution"))
    done = run_recipe(str(EXAMPLES / "super_resolution.yaml"), tmp_path, overrides=SHORT)
    place, out = next(done.folder.glob("pixel-8/*/architecture.json")).parent, tmp_path / "sharper"
    example.main(place, out, steps=30)
    small, large = example.batch_of(task.load(None, 0).target_train.dataset)
    before, after = (load(folder, trust=True) for folder in (place, out))
    with torch.inference_mode():
        worse, better = (task.loss(network(small), large) for network in (before, after))
        expected = after(small[:1])
    assert better < worse
    session = onnxruntime.InferenceSession(str(out.with_suffix(".onnx")))
    (written,) = session.run(None, {session.get_inputs()[0].name: small[:1].numpy()})
    assert np.allclose(written, expected, atol=1e-4)
    assert "it computes what the network computes" in capsys.readouterr().out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert [cell for cell in cells if cell["outputs"] or cell["execution_count"] is not None] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_results_are_right(path, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    book = nbformat.read(path, as_version=4)
    book.cells += [nbformat.v4.new_code_cell(f"assert {claim}, {claim!r}") for claim in RIGHT[path.stem]]
    client = NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
