"""Reading recipes from YAML and writing them back."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy_prune.errors import RecipeError
from deploy_prune.recipe.file import dump, load_recipe, shipped
from deploy_prune.recipe.parts import Recipe

MINIMAL = "name: a\nmodel: {source: resnet20}\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def writer(text: str, name: str = "r.yaml") -> str:
        Path(name).write_text(text, encoding="utf-8")
        return name

    return writer


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml"])
def test_a_shipped_recipe_is_found_by_name(name, write):
    assert load_recipe(name).name == "quickstart"


def test_an_existing_path_wins_over_a_shipped_name(write):
    write(MINIMAL, "quickstart.yaml")
    assert load_recipe("quickstart.yaml").name == "a"
    assert load_recipe("quickstart").name == "quickstart"


def test_a_folder_of_that_name_does_not_hide_a_shipped_recipe(write):
    Path("quickstart").mkdir()
    assert load_recipe("quickstart").name == "quickstart"


def test_an_unknown_recipe_names_the_nearest(write):
    with pytest.raises(RecipeError, match="no recipe 'mobilenett'.*Perhaps you meant 'mobilenet'"):
        load_recipe("mobilenett")


def test_values_keep_their_types(write):
    text = MINIMAL + "train: {lr: 5e-4, steps: 1_000}\ndata: {shots: null}\nmeasure: {tolerance: .1}\n"
    recipe = load_recipe(write(text))
    assert (recipe.train.lr, recipe.train.steps, recipe.data.shots, recipe.measure.tolerance) == (5e-4, 1000, None, 0.1)


def test_a_byte_order_mark_is_no_error(write):
    assert load_recipe(write("\ufeff" + MINIMAL)).name == "a"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("train:\n  steps: 1\n  lr: x\n", "r.yaml:5: train.lr: "),
        ("train: {steps: 1,\n  lr: x}\n", "r.yaml:4: train.lr: "),
        ("budgets:\n  - 50%\n  - 0%\n", "r.yaml:5: budgets[1]: "),
        ("budgets: ['50%',\n\n  '0%']\n", "r.yaml:5: budgets[1]: "),
        ("data:\n  root: x\n  mean: [1]\n", "r.yaml:5: data.mean: "),
        ("# a comment\n\ntrain:\n\n  # another\n  lrr: 1\n", "r.yaml:8: train.lrr: "),
    ],
)
def test_an_error_has_the_line_of_its_key(write, text, where):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(MINIMAL + text))
    assert str(caught.value).startswith(where)


def test_a_missing_key_has_the_line_of_what_it_is_missing_from(write):
    with pytest.raises(RecipeError, match=r"^r\.yaml:2: model\.source: this key is missing\.$"):
        load_recipe(write("name: a\nmodel:\n  args: {}\n"))


def test_of_several_errors_the_first_line_is_told_and_the_others_are_counted(write):
    with pytest.raises(RecipeError, match=r"^r\.yaml:3: sed: .*\(2 more errors after this one\.\)$"):
        load_recipe(write(MINIMAL + "sed: 1\nthreads: 0\ntrain: {lr: x}\n"))


def test_a_mistyped_required_key_is_told_before_the_missing_one(write):
    with pytest.raises(RecipeError, match=r"^r\.yaml:2: modle: .*'model'\? \(1 more error after this one\.\)$"):
        load_recipe(write("name: a\nmodle: {source: resnet20}\n"))


def test_overrides_win_in_their_order(write):
    path = write(MINIMAL + "train: {lr: 0.1, steps: 3}\n")
    given = ["train.lr=1e-3", "train.lr=0.2", "budgets=[30%, 4 ms]", "data.shots=null", "model.args.width=2", "seed=7"]
    recipe = load_recipe(path, given)
    assert (recipe.train.lr, recipe.train.steps, recipe.data.shots, recipe.seed) == (0.2, 3, None, 7)
    assert (recipe.budgets, recipe.model.args) == (["30%", "4 ms"], {"width": 2})


def test_an_override_can_repair_a_value(write):
    assert load_recipe(write(MINIMAL + "seed: x\n"), ["seed=1"]).seed == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lrr=1", "--set train.lrr=1: train.lrr: this is not a key of train. Perhaps you meant 'lr'?"),
        ("trian.lr=1", "--set trian.lr=1: trian: this is not a key of a recipe. Perhaps you meant 'train'?"),
        ("train.lr=.nan", "--set train.lr=.nan: train.lr: it should be a finite number, not nan."),
        ("train.lr=nan", "--set train.lr=nan: train.lr: it should be a valid number, not 'nan'."),
        ("train={lr: -1}", "--set train={lr: -1}: train.lr: it should be greater than 0, not -1."),
        ("budgets=[50%", "--set budgets=[50%: the YAML can't be read: "),
        ("seed=*x", "--set seed=*x: "),
        ("name.x=1", "--set name.x=1: name has no keys of its own; set it as a whole."),
        ("budgets.x.y=1", "--set budgets.x.y=1: budgets has no keys of its own"),
        ("seed", "--set seed: write it as --set key=value"),
        ("=1", "--set =1: write it as --set key=value"),
        ("train..lr=1", "--set train..lr=1: write it as --set key=value"),
        ("seed=", "--set seed=: seed: it should be a valid integer, not empty."),
    ],
)
def test_a_wrong_override_is_told_as_it_was_given(write, override, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(MINIMAL + "train: {steps: 3}\nbudgets: [50%]\n"), [override])
    assert str(caught.value).startswith(message)


def test_an_override_does_not_take_the_blame_for_the_file(write):
    with pytest.raises(RecipeError, match=r"^r\.yaml:3: train\.steps: "):
        load_recipe(write(MINIMAL + "train: {steps: x}\n"), ["train.lr=1"])


def test_a_file_that_can_not_be_read_is_an_error_of_the_recipe(write, monkeypatch):
    def fail(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    path = write(MINIMAL)
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(RecipeError, match=r"^r\.yaml: the file can't be read: Permission denied\.$"):
        load_recipe(path)


@pytest.mark.parametrize("name", shipped())
def test_what_is_dumped_loads_back_equal(name, write):
    recipe = load_recipe(name)
    assert load_recipe(write(dump(recipe))) == recipe


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=5
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(args=st.dictionaries(st.text(), values, max_size=3), skip=st.lists(st.text(), max_size=3))
def test_any_recipe_survives_dump_and_load(write, args, skip):
    parts = {"model": {"source": "resnet20", "args": args}, "prune": {"skip": skip, "only": skip}}
    recipe = Recipe.model_validate({"name": "a"} | parts)
    assert load_recipe(write(dump(recipe))) == recipe
