"""What each stage's key has: the table in ``keys`` is true, and every entry is there for a reason that is tried."""

import re
from dataclasses import replace
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import torch
from tiny_run import tiny_recipe

from deploy_prune.data import examples, splits
from deploy_prune.device.targets import list_targets, load_target
from deploy_prune.export import FORMATS
from deploy_prune.latency import granularity
from deploy_prune.recipe.parts import parse_budget
from deploy_prune.run import keys
from deploy_prune.types import Artifact, ChannelGroup, Structure

HOST, PIXEL = load_target("host"), load_target("pixel-8")
HALF, MACS = parse_budget("50%", "latency"), parse_budget("50% macs", "latency")
GROUPS = (ChannelGroup(name="a", channels=8, period=1, consumers=(), members=()),)
STRUCTURE = Structure(groups=GROUPS, layers=(), whole=())
RECIPE = tiny_recipe()
EXAMPLES = splits.load(RECIPE.data, RECIPE.seed)
BASIS = keys.Basis(recipe=RECIPE, data=EXAMPLES)


def artifact(tmp_path):
    return Artifact(path=tmp_path, format="onnx", precision="fp32", sha256="1", input_shape=(1,), versions={})


def all_keys(basis, target=HOST, budget=HALF):
    """Every stage's key."""
    one = Artifact(path=None, format="onnx", precision="fp32", sha256="1", input_shape=(1,), versions={})
    return {
        "dense": keys.dense(basis), "search": keys.search(basis, "d", STRUCTURE, (target, budget)),
        "adapt": keys.adapt(basis, "d"), "plan": keys.plan(basis, "f", STRUCTURE, target, budget),
        "retrain": keys.retrain(basis, "a", "f", "t"), "export": keys.export(basis, "n", target),
        "latency": keys.latency(basis, target, budget, [one]), "pictures": keys.pictures(basis, "n"),
    }  # fmt: skip


def of_branches(basis):
    """The keys of what there is only where branches may go, or the input may have several sizes."""
    depth = keys.depth(basis, "f", "d", STRUCTURE, HOST, HALF)
    return {"branches": keys.branches(basis, "d", STRUCTURE), "depth": depth, "size": keys.size([depth])}


def changed(after, target=HOST, budget=HALF):
    """The stages whose keys differ from those of the tiny run."""
    before = all_keys(BASIS, target if isinstance(after, keys.Basis) else HOST, budget)
    now = all_keys(after, target, budget) if isinstance(after, keys.Basis) else after
    return {name for name in before if before[name] != now[name]}


def with_recipe(**changes):
    return replace(BASIS, recipe=tiny_recipe(**changes))


def with_data(name, **changes):
    return replace(BASIS, data=replace(EXAMPLES, **{name: replace(getattr(EXAMPLES, name), **changes)}))


def table():
    """Stage -> what the table says that its key has."""
    rows = re.findall(r"^\| (\w+) \| ((?:.|\n  [^|])*)\n  \| ", keys.__doc__, flags=re.MULTILINE)
    return {stage: set(re.split(r",\s*", entries)) for stage, entries in rows}


def test_the_table_says_what_the_keys_have():
    assert table() == {stage: set(key) for stage, key in {**all_keys(BASIS), **of_branches(BASIS)}.items()}


def test_the_table_gives_a_reason_for_every_stage():
    body = keys.__doc__[keys.__doc__.index("|---|") :]
    assert len(re.findall(r"^  \| .{40,}", body, flags=re.MULTILINE)) == len(table())


TRAINS = {"dense", "search", "adapt", "retrain"}


def in_order(value):
    """A parameter's name: the same in every process, which a set's own text isn't."""
    return " ".join(sorted(value)) or "nothing" if isinstance(value, set) else str(value)


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"name": "other"}, set()),
        ({"threads": 2}, set()),
        ({"processes": "auto"}, set()),  # one on a CPU
        ({"processes": 2}, {"dense", "search", "adapt", "retrain"}),
        ({"track": ["tensorboard"]}, set()),
        ({"budgets": ["40%"]}, set()),
        ({"targets": ["host", "pixel-8"]}, set()),
        ({"train": {"steps": 11}}, {"dense"}),
        ({"search": {"steps": 7, "batch_size": 16}}, {"search"}),
        ({"search": {"steps": 6, "batch_size": 16, "method": "taylor"}}, {"search", "plan", "retrain"}),
        ({"prune": {"skip": ["0"]}}, {"search", "plan"}),
        ({"prune": {"trace_timeout_s": 7}}, set()),
        ({"retrain": {"steps": 6, "batch_size": 15}}, {"adapt", "retrain"}),
        ({"retrain": {"steps": 5, "batch_size": 15, "distill": 0.5}}, {"retrain"}),
        ({"retrain": {"steps": 5, "batch_size": 15, "repair": True}}, {"retrain"}),
        ({"measure": {"runs": 21, "warmup": 2}}, {"latency"}),
        ({"measure": {"runs": 20, "warmup": 2, "tolerance": 0.1}}, {"plan", "latency"}),
        ({"measure": {"runs": 20, "warmup": 2, "max_corrections": 1}}, {"plan"}),
        ({"export": {"calibration_examples": 5}}, set()),
        ({"export": {"timeout_s": 5}}, set()),
        ({"export": {"opset": 19}}, {"plan", "export"}),
        ({"seed": 1}, TRAINS),
        ({"mixed_precision": "bf16"}, TRAINS),
        ({"gradient_checkpointing": True}, TRAINS),
        ({"compile": True}, TRAINS),
        ({"model": {"source": "tiny_run:network", "args": {"width": 24}}}, TRAINS | {"plan", "export", "pictures"}),
        ({"model": {"source": "resnet20"}}, TRAINS | {"plan", "export", "pictures"}),
    ],
    ids=in_order,
)
def test_a_setting_changes_the_stages_that_it_matters_to(changes, stages):
    base = {"measure": {"runs": 20, "warmup": 2}} | changes
    assert changed(with_recipe(**base)) == stages


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("source_train", {"dense", "search"}),
        ("source_test", {"dense", "plan"}),
        ("target_train", {"adapt", "retrain"}),
        ("target_test", {"adapt", "retrain", "export", "pictures"}),
    ],
)
@pytest.mark.parametrize("how", ["image", "label", "normalised", "size"])
def test_the_content_of_data_changes_the_stages_that_read_it(name, stages, how):
    examples = getattr(EXAMPLES, name)
    images, labels = examples.images.clone(), examples.labels.clone()
    images[-1, 0, -1, -1] ^= 1
    labels[-1] = (labels[-1] + 1) % 3
    changes = {
        "image": {"images": images}, "label": {"labels": labels}, "normalised": {"mean": examples.mean + 1},
        "size": {"size": 8},
    }  # fmt: skip
    assert changed(with_data(name, **changes[how])) == stages
    assert changed(with_data(name, images=examples.images.clone())) == set(), "the same content elsewhere"


def test_calibration_examples_count_in_int8_only():
    int8 = replace(HOST, precision="int8")
    examples = EXAMPLES.source_train
    others = with_data("source_train", images=examples.images.flip(0))
    assert "export" in changed(with_recipe(export={"calibration_examples": 5}), int8)
    assert "export" in changed(others, int8)
    assert "export" not in changed(others)


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"title": "x", "notes": "a typo mended", "name": "other"}, set()),
        ({"error": None}, set()),
        ({"threads": 2}, {"search", "plan", "latency"}),
        ({"granularity": 16}, {"search", "plan"}),
        ({"precision": "int8"}, {"search", "plan", "export"}),
        ({"format": "ort"}, {"search", "plan", "export"}),
    ],
    ids=in_order,
)
def test_a_target_counts_by_what_changes_files_and_times(changes, stages):
    assert changed(all_keys(BASIS, replace(HOST, **changes))) == stages


def test_of_a_device_that_is_not_attached_the_rates_count_and_their_sources_do_not():
    other = replace(PIXEL, roofline=replace(PIXEL.roofline, source="elsewhere"))
    assert all_keys(BASIS, other) == all_keys(BASIS, PIXEL)
    faster = replace(PIXEL, roofline=replace(PIXEL.roofline, gmacs_per_s=1.0))
    assert keys.plan(BASIS, "f", STRUCTURE, faster, HALF) != keys.plan(BASIS, "f", STRUCTURE, PIXEL, HALF)


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"name": "other"}, set()),
        ({"seed": 1}, {"branches", "depth", "size"}),
        ({"prune": {"skip": ["0"]}}, {"branches", "depth", "size"}),
        ({"measure": {"tolerance": 0.1}}, {"depth", "size"}),
        ({"search": {"steps": 6, "batch_size": 32}}, {"branches", "depth", "size"}),
        ({"retrain": {"steps": 6}}, set()),
    ],
    ids=in_order,
)
def test_how_deep_to_cut_depends_on_what_is_tried(changes, stages):
    before, after = of_branches(BASIS), of_branches(with_recipe(**changes))
    assert {name for name in before if before[name] != after[name]} == stages


def test_at_a_smaller_size_the_dense_network_depends_on_what_trains_it_on():
    assert keys.dense(BASIS, "w") != keys.dense(BASIS)
    assert keys.dense(BASIS, "w") != keys.dense(BASIS, "v")
    assert keys.dense(BASIS, "w") != keys.dense(with_recipe(retrain={"steps": 6, "batch_size": 15}), "w")
    assert keys.dense(BASIS) == keys.dense(with_recipe(retrain={"steps": 6, "batch_size": 15}))


def test_a_budget_counts_however_it_is_written():
    same = parse_budget("50.0 %", "latency")
    assert all_keys(BASIS, HOST, same) == all_keys(BASIS, HOST, HALF)


@pytest.mark.parametrize("part", ["host", "cpu", "cores"])
def test_what_was_measured_holds_on_the_machine_where_it_was(monkeypatch, part):
    before = all_keys(BASIS)
    there = granularity._this_machine() | {part: "another"}
    monkeypatch.setattr(granularity, "_this_machine", lambda: there)
    after = all_keys(BASIS)
    assert {name for name in before if before[name] != after[name]} == {"plan", "latency"}
    macs = replace(HOST, granularity=8)
    monkeypatch.undo()
    plain = keys.plan(BASIS, "f", STRUCTURE, macs, MACS)
    monkeypatch.setattr(granularity, "_this_machine", lambda: there)
    assert keys.plan(BASIS, "f", STRUCTURE, macs, MACS) == plain, "nothing was measured for it"


def test_two_names_are_two_machines(monkeypatch):
    before = granularity.machine(HOST)
    monkeypatch.setattr(granularity.socket, "gethostname", lambda: "elsewhere")
    assert granularity.machine(HOST) != before


@pytest.mark.parametrize("target", [t for t in list_targets() if t.format in {"ncnn", "litert", "executorch", "onnx"}])
def test_every_runtimes_version_counts_where_it_measures(monkeypatch, target):
    """Not only ONNX Runtime's."""
    on = replace(target, runner="local")
    before = granularity.machine(on)
    monkeypatch.setattr(granularity, "version", lambda package: "0.0.1")
    assert granularity.machine(on) != before


def test_of_a_device_only_its_own_runtime_counts(monkeypatch):
    told = {"cpu": ["x"], "packages": {"onnxruntime": "1", "numpy": "1"}}
    monkeypatch.setattr(granularity, "_told", lambda device, program: told)
    on = replace(HOST, runner="ssh://pi@there")
    before = granularity.machine(on)
    told["packages"] = {"onnxruntime": "1", "numpy": "2"}
    assert granularity.machine(on) == before
    told["packages"] = {"onnxruntime": "2", "numpy": "2"}
    assert granularity.machine(on) != before


@pytest.mark.parametrize("name", FORMATS)
def test_a_formats_packages_are_in_the_keys_of_what_is_written_in_it(monkeypatch, name):
    target = replace(HOST, format=name, precision="fp32")
    before = keys.export(BASIS, "n", target), keys.plan(BASIS, "f", STRUCTURE, target, MACS)
    assert len(FORMATS[name].packages) >= 2
    for package in FORMATS[name].packages:
        known = keys.installed
        monkeypatch.setattr(keys, "installed", lambda p, one=package, known=known: "0.0.1" if p == one else known(p))
        after = keys.export(BASIS, "n", target), keys.plan(BASIS, "f", STRUCTURE, target, MACS)
        assert all(a != b for a, b in zip(before, after, strict=True)), package
        monkeypatch.undo()


def test_torch_counts_where_it_trains(monkeypatch):
    monkeypatch.setattr(keys, "installed", lambda package: "0.0.1" if package == "torch" else version(package))
    assert changed(with_recipe()) >= TRAINS | {"export"}


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_librarys_version_counts_for_its_networks(monkeypatch, library):
    basis = with_recipe(model={"source": f"{library}:resnet18"})
    monkeypatch.setattr(keys, "installed", lambda package: "1")
    before = basis.common
    monkeypatch.setattr(keys, "installed", lambda package: "2" if package == library else "1")
    assert replace(basis, recipe=basis.recipe).common != before


def test_the_packages_own_code_counts(monkeypatch):
    monkeypatch.setattr(keys, "own_code", lambda: "another")
    assert changed(with_recipe()) == set(all_keys(BASIS))


def test_weights_count_by_content_wherever_they_lie(tmp_path):
    def given(path, content, **how):
        path.write_bytes(content)
        return keys.dense(with_recipe(model={"source": "tiny_run:network", "weights": str(path), **how}))

    first = given(tmp_path / "a.safetensors", b"1")
    assert given(tmp_path / "b.safetensors", b"1") == first
    assert given(tmp_path / "a.safetensors", b"2") != first
    assert given(tmp_path / "a.safetensors", b"1", weights_key="model_ema") != first
    assert given(tmp_path / "a.safetensors", b"1", head="new") != first


def test_a_benchmark_program_counts_by_content(tmp_path):
    def with_program(name, content):
        (tmp_path / name).write_bytes(content)
        one = SimpleNamespace(sha256="1")
        there = replace(PIXEL, program=str(tmp_path / name))
        return keys.latency(BASIS, there, HALF, [one])["target"]

    assert with_program("a", b"1") == with_program("b", b"1") != with_program("a", b"2")


def test_a_digest_of_examples_is_of_all_of_them():
    many = torch.zeros(3000, 1, 2, 2, dtype=torch.uint8)
    other = many.clone()
    other[-1] = 1
    one = examples.ClassExamples(images=many, labels=torch.zeros(3000).long(), mean=torch.zeros(1), std=torch.ones(1))
    assert one.digest != replace(one, images=other).digest
    assert one.digest == replace(one, images=many[:1].expand(3000, -1, -1, -1)).digest, "however it is stored"


def test_the_score_counts_where_networks_are_scored():
    one, other = (
        replace(BASIS, recipe=RECIPE.model_copy(update={"task": "detection", "score": score}))
        for score in ("mAP50-95", "mAP50")
    )
    before, after = all_keys(one), all_keys(other)
    assert {name for name in before if before[name] != after[name]} >= {"dense", "adapt", "retrain", "export"}


def test_of_processes_and_accumulated_batches_only_the_product_counts():
    splits_of_four = [{"accumulate": 4}, {"accumulate": 2, "processes": 2}, {"processes": 4}]
    first, *others = (all_keys(with_recipe(**changes)) for changes in splits_of_four)
    assert others == [first, first]


@pytest.mark.parametrize(
    ("changes", "repair"),
    [
        ({"search": {"method": "gate"}}, None),
        ({"search": {"method": "magnitude"}}, True),
        ({"search": {"method": "magnitude"}, "retrain": {"repair": False}}, False),
        ({"search": {"method": "magnitude"}, "retrain": {"init": "fresh"}}, None),
    ],
)
def test_what_no_search_has_trained_is_repaired(changes, repair):
    assert keys.retraining(tiny_recipe(**changes)).repair is repair
