"""The examples run as they are shipped, but for fewer steps: each is a task of one's own."""

import wave
from pathlib import Path

import numpy as np
import pytest

from deploy_prune import run_recipe

EXAMPLES = Path(__file__).parents[1] / "examples"
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
