"""A recipe for data, network and device: what is found out, what is asked, and that its file passes `check`."""

from pathlib import Path

import picture_sets as sets
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from deploy_prune.cli import main
from deploy_prune.commands import init
from deploy_prune.commands.check import check
from deploy_prune.errors import DataError, ModelError, RecipeError, RunFolderError
from deploy_prune.recipe.file import load_recipe


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two classes of ten images each, of one size."""
    for number, name in enumerate(("ant", "bee")):
        for i in range(10):
            sets.save(tmp_path / "photos" / name / f"{i}.png", sets.picture(10 * number + i, (32, 32))[0])
    return tmp_path / "photos"


class Answers:
    """Takes what is likeliest, or what is planted, and notes the questions."""

    def __init__(self, **planted):
        self.planted, self.asked = planted, []

    def __call__(self, question, likely, answers):
        self.asked.append(question)
        return next((value for key, value in self.planted.items() if key in question), likely)


def begun(ask=None, **said):
    wanted = init.Wanted(**{"targets": ("pixel-8",), "model": "resnet20"} | said)
    return init.begin(init.answered(wanted, ask or Answers()))


def test_the_recipe_s_file_passes_check(photos, tmp_path):
    found, report = begun(data=photos, out=tmp_path / "mine.yaml")
    init.write(found)
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    assert (recipe.task, recipe.data.source, recipe.data.root) == ("classification", "folder", str(photos))
    assert recipe.name == "photos-resnet20"
    assert recipe.train.batch_size == recipe.search.batch_size == recipe.retrain.batch_size == 16, "of 16 examples"
    assert report.budgets[0].met
    assert all(one.met for one in check(recipe).budgets)
    text = (tmp_path / "mine.yaml").read_text()
    assert "# Input: 3 x 32 x 32 pixels (size: " in text
    assert "# weights: my-network.safetensors" in text
    assert "a step takes about" in text
    assert max(map(len, text.splitlines())) < 200


def test_only_what_can_not_be_found_out_is_asked(photos):
    asks = Answers()
    begun(asks, data=photos)
    assert asks.asked == []
    asks = Answers(network="resnet20", devices="pixel-8, jetson-nano")
    found, _ = begun(asks, data=photos, model=None, targets=())
    assert asks.asked == ["Which network?", "Which devices?"]
    assert found.recipe.targets == ["pixel-8", "jetson-nano"]
    assert found.recipe.model.source == "resnet20"


def test_data_for_several_tasks_is_asked_about(tmp_path):
    sets.coco(tmp_path)
    asks = Answers(what="segmentation", What="segmentation")
    found, _ = begun(asks, data=tmp_path, model="unet")
    assert asks.asked == ["What is the network for?"]
    assert (found.recipe.task, found.recipe.data.source) == ("segmentation", "coco")
    asks = Answers()
    assert begun(asks, data=tmp_path, model="unet", task="segmentation")[0].recipe.task == "segmentation"
    assert asks.asked == []
    with pytest.raises(DataError, match="has nothing for classification: it has boxes in COCO"):
        begun(data=tmp_path, task="classification")


def test_broken_annotations_are_left_out_and_said(tmp_path):
    sets.voc(tmp_path)
    sets.write(tmp_path / "Annotations/p0.xml", sets.xml((96, 64), [("red", (5, 5, 5, 5)), ("red", (5, 5, 50, 50))]))
    found, _ = begun(data=tmp_path, model="grid_detector")
    assert found.recipe.data.broken == "skip"
    assert "broken: skip  # some annotations are broken" in init.text(found)
    sets.voc(tmp_path / "whole")
    assert begun(data=tmp_path / "whole", model="grid_detector")[0].recipe.data.broken == "fail"


def test_images_of_several_sizes_get_one_where_the_network_has_none(photos, tmp_path, monkeypatch):
    code = "from torch import nn\n\ndef make(num_classes):\n    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), "
    code += "nn.Conv2d(16, 8, 3, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))\n"
    (tmp_path / "of_no_size.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    own = begun(data=photos, model="of_no_size:make")[0]
    assert (own.recipe.data.image_size, "the images' own" in own.told[0]) == (None, True)
    sets.save(photos / "ant" / "wide.png", sets.picture(1, (64, 32))[0])
    found = begun(data=photos, model="of_no_size:make")[0]
    assert found.recipe.data.image_size == 224
    assert "image_size: 224  # in pixels; neither" in init.text(found)


def test_a_budget_that_can_not_be_met_is_raised_unless_it_was_asked_for(photos, monkeypatch):
    plain = init.check

    def hard(recipe, progress):
        report = plain(recipe, progress)
        (reach,) = report.targets
        share = float(recipe.budgets[0].rstrip("%")) / 100
        object.__setattr__(reach, "smallest", 0.62 * reach.dense)
        object.__setattr__(report.budgets[0], "met", share >= 0.62)
        return report

    monkeypatch.setattr(init, "check", hard)
    found, report = begun(data=photos)
    assert found.recipe.budgets == ["70%"]
    assert report.budgets[0].met
    assert "# the smallest that can be reached is 62%" in init.text(found)
    found, report = begun(data=photos, budgets=("55%",))
    assert found.recipe.budgets == ["55%"]
    assert not report.budgets[0].met


def test_the_batch_fits_into_the_memory(photos, monkeypatch):
    for gigabytes, size in ((64, 16), (0.02, 2)):
        monkeypatch.setattr(init, "_free_bytes", lambda device, g=gigabytes: g * 1e9)
        assert begun(data=photos)[0].recipe.train.batch_size == size


def test_what_a_step_keeps_is_what_its_layers_need():
    network = nn.Sequential(nn.Flatten(), nn.Linear(100, 50), nn.Tanh(), nn.Linear(50, 10))

    class Made:
        form = type("Form", (), {"network": network})

        @staticmethod
        def batch_loss(network, batch):
            return network(batch).square().sum()

    x = torch.randn(8, 100)
    assert init.kept_bytes(Made, x) == 4 * 8 * (100 + 50 + 10), "what the layers read, what tanh gave, what is squared"


@pytest.mark.parametrize("word", ["yes", "null", "1e3", "a: b", "ü", "12 ms", "#x", "plain-word"])
def test_values_are_written_so_that_yaml_reads_them_back(word, photos, tmp_path):
    found, _ = begun(data=photos)
    odd = init.replace(found, values={**found.values, "model": {"source": "resnet20", "args": {"note": word}}})
    odd = init.replace(odd, path=tmp_path / "odd.yaml")
    init.write(odd)
    assert load_recipe(str(odd.path)).model.args == {"note": word}


def test_a_file_is_never_replaced(photos, tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("x")
    monkeypatch.setattr(init.preprocessing, "resolve", lambda recipe: pytest.fail("work before the refusal"))
    with pytest.raises(RecipeError, match="is there already"):
        begun(data=photos, out=tmp_path / "mine.yaml")
    monkeypatch.undo()
    found, _ = begun(data=photos, out=tmp_path / "mine.yaml" / "x.yaml")
    with pytest.raises(RunFolderError, match="can't be written"):
        init.write(found)


def test_a_network_that_is_not_there_is_an_error(photos):
    with pytest.raises(ModelError, match="torchvision"):
        begun(data=photos, model="torchvision:resnet999")


def test_the_command_asks_writes_and_checks(photos, tmp_path):
    out = tmp_path / "mine.yaml"
    said = ["init", str(photos), "--target", "pixel-8", "--out", str(out)]
    result = CliRunner().invoke(main, said, input="resnet20\n")
    assert result.exit_code == 0, result.output
    assert "Which network? [torchvision:mobilenet_v2]: resnet20" in result.output
    assert "Budgets" in result.output
    assert f"deploy-prune recipe {out}" in result.output
    again = CliRunner().invoke(main, [*said, "--model", "resnet20", "--yes", "--budget", "1%"])
    assert again.exit_code == RecipeError.exit_code
    out.unlink()
    low = CliRunner().invoke(main, [*said, "--model", "resnet20", "--yes", "--budget", "1%"])
    assert low.exit_code != 0
    assert "'1%' can't be met" in low.stderr
    assert load_recipe(str(out)).budgets == ["1%"]
