"""Targets: the shipped files, and strict reading of a user's own."""

import math
import os
import re
from pathlib import Path

import pytest

from deploy_prune.device import RUNNERS, RUNTIMES
from deploy_prune.device.targets import list_targets, load_target, targets_folder
from deploy_prune.errors import TargetError
from deploy_prune.export import FORMATS
from deploy_prune.latency.ops import Op
from deploy_prune.latency.predict import predict
from deploy_prune.recipe.parts import EXPORT_FORMATS

OWN = """\
name: mine
title: My board
format: onnx
precision: fp32
runtime: onnxruntime
granularity:
  value: 8
  source: measured
runner: none
threads: 2
roofline:
  gmacs_per_s: {value: 10, source: a}
  depthwise_gmacs_per_s: {value: 5, source: b}
  gbytes_per_s: {value: 4, source: c}
  layer_overhead_ms: {value: 0, source: d}
  network_overhead_ms: {value: 0.5, source: e}
"""


@pytest.mark.parametrize("path", sorted(targets_folder().glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_file(path):
    target = load_target(path.stem)
    assert target.name == path.stem
    assert target == load_target(str(path))
    if target.runner is None:
        assert target.roofline is not None
        assert target.granularity is not None
        assert "redicted, never measured" in target.notes
        rates = [v for v in vars(target.roofline).values() if isinstance(v, int | float)]
        assert len(rates) == 7 + (target.roofline.gfunctions_per_s is not None)
        assert all(math.isfinite(v) and v >= 0 for v in rates)
        assert target.error is not None
        assert 0 < target.error.low <= 1 <= target.error.high
        assert ("unverified" in target.error.source) == (target.error.networks == 0)
    else:
        assert target.runner in RUNNERS
        assert target.runtime in RUNTIMES


ACCELERATORS = {"litert-npu": "litert"}
"""Runtimes on accelerators, which the payload of their format's runtime doesn't start."""


@pytest.mark.parametrize("target", list_targets(), ids=lambda t: t.name)
def test_every_shipped_target_can_be_written_for_and_run_where_it_is_attached(target):
    kind = FORMATS[target.format]
    own = kind.runtime or target.format
    assert target.precision in kind.precisions
    assert own in RUNTIMES
    assert (target.runtime if target.runtime in RUNTIMES else ACCELERATORS[target.runtime]) == own


def test_a_target_may_have_any_format_that_can_be_written():
    assert {name: kind.runtime or name for name, kind in FORMATS.items()} == EXPORT_FORMATS


NAMED = """
host jetson-nano jetson-xavier-nx jetson-agx-xavier jetson-orin-nano jetson-orin-nx jetson-agx-orin raspberry-pi-4
raspberry-pi-5 pixel-6 pixel-8 galaxy-s23 galaxy-s24 iphone-12 iphone-15 x86-avx2 x86-avx512-vnni
"""


def test_list_has_the_named_devices():
    assert set(NAMED.split()) <= {t.name for t in list_targets()}
    host = load_target("host")
    assert (host.granularity, host.runner, host.threads) == (None, "local", 1)


def test_own_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(OWN)
    target = load_target(str(path))
    assert (target.granularity, target.runner, target.threads) == (8, None, 2)
    assert target.roofline.gmacs_per_s == 10
    assert "gbytes_per_s: c." in target.roofline.source
    assert (target.roofline.winograd, target.error) == (2.0, None)


def test_transcendental_functions_take_time_on_cpus_and_none_on_accelerators(tmp_path):
    predicted = [t for t in list_targets() if t.roofline is not None]
    slow = {t.name for t in predicted if t.roofline.gfunctions_per_s is not None}
    assert slow == {t.name for t in predicted if re.match("raspberry|pixel|x86", t.name)}
    assert all(t.roofline.gfunctions_per_s < t.roofline.gmacs_per_s / 10 for t in predicted if t.name in slow)
    path = tmp_path / "mine.yaml"
    path.write_text(OWN + "  gfunctions_per_s: {value: 0.25, source: f}\n")
    assert load_target(str(path)).roofline.gfunctions_per_s == 0.25


def test_one_target_may_have_several_devices(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(OWN.replace("runner: none", "runner: [ssh://pi@a, ssh://pi@b:2222]"))
    target = load_target(str(path))
    assert (target.runner, target.alike) == ("ssh://pi@a", ("ssh://pi@b:2222",))
    assert target.devices == ("ssh://pi@a", "ssh://pi@b:2222")
    moved = target.on("local")
    assert (moved.runner, moved.alike, moved.devices) == ("local", (), ("local",))
    assert load_target("jetson-nano").devices == ()


def test_own_file_with_error_and_without_winograd(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        OWN
        + """\
  winograd: {value: 1, source: f}
error: {median: 0.2, low: 0.8, high: 1.3, networks: 7, source: g}
"""
    )
    target = load_target(str(path))
    assert target.roofline.winograd == 1.0
    assert (target.error.median, target.error.low, target.error.high, target.error.networks) == (0.2, 0.8, 1.3, 7)


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("threads: 2", "thread: 2", 10, "unknown key 'thread'. Perhaps you meant 'threads'?"),
        (
            "  gbytes_per_s: {value: 4, source: c}",
            "  gbyte_per_s: {value: 4, source: c}",
            14,
            "Perhaps you meant 'gbytes_per_s'?",
        ),
        (
            "{value: 4, source: c}",
            "{value: 4, sauce: c}",
            14,
            "unknown key 'roofline.gbytes_per_s.sauce'. Perhaps you meant 'source'?",
        ),
        ("{value: 4,", "{value: .nan,", 14, "'roofline.gbytes_per_s.value' is nan"),
        ("{value: 4,", "{value: -4,", 14, "greater than 0"),
        ("format: onnx", "format: onyx", 3, "'format' is 'onyx': there is no format 'onyx'; known: onnx"),
        ("runner: none", "runner: [ssh://a, none]", 9, "'none' can't stand beside devices"),
        ("runner: none", "runner: [ssh://a, ssh://b, ssh://a]", 9, "a device is named twice"),
        ("runner: none", "runner: [ssh://a, telnet://b]", 9, "'runner' is ['ssh://a', 'telnet://b']"),
        ("runner: none", "runner: []", 9, "'runner' is []"),
        ("precision: fp32", "precision: fp8", 4, "'precision' is 'fp8'"),
        ("  value: 8", "  value: some", 7, "'granularity.value' is 'some'"),
        ("{value: 4, source: c}", "{value: 4}", 14, "'roofline.gbytes_per_s.source' is missing"),
        ("  source: measured\n", "", 6, "'granularity.source' is missing"),
        (
            "threads: 2",
            "threads: 2\nerror: {median: 0.1, low: 1.5, high: 2, networks: 6, source: f}",
            11,
            "'error.low' is 1.5",
        ),
        ("format: onnx", "format: onx", 3, "'format' is 'onx'"),
        ("name: mine", "name: mine\nname: other", 2, "the YAML can't be read"),
        ("name: mine", "name: [mine", 2, "the YAML can't be read"),
        ("name: mine", "name: ../mine", 1, "'name' is '../mine'"),
    ],
)
def test_wrong_files_name_line_and_key(tmp_path, old, new, line, words):
    path = tmp_path / "mine.yaml"
    assert old in OWN
    path.write_text(OWN.replace(old, new))
    with pytest.raises(TargetError) as caught:
        load_target(str(path))
    assert f"mine.yaml:{line}:" in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_predicted_target_needs_a_roofline(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(OWN[: OWN.index("roofline")])
    with pytest.raises(TargetError, match="needs a 'roofline:'"):
        load_target(str(path))


def test_unknown_names():
    with pytest.raises(TargetError, match="There is no target 'hots'. Perhaps you meant 'host'?"):
        load_target("hots")
    with pytest.raises(TargetError, match="Known: galaxy-s23, galaxy-s24, host, "):
        load_target("zzz")
    with pytest.raises(TargetError, match="There is no target file"):
        load_target("no/such.yaml")


def test_not_a_mapping(tmp_path):
    path: Path = tmp_path / "a.yaml"
    path.write_text("- 1\n")
    with pytest.raises(TargetError, match="a.yaml:1: a target is a mapping"):
        load_target(str(path))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("title: My board", "title: &a My board\nnotes: *a", "aliases"),
        ("title: My board", "title: !!python/name:os.system x", "tags"),
        ("title: My board", "title: 2001-12-14", "is a "),
        ("title: My board", "title: " + "[" * 60 + "]" * 60, "nested more than 50 deep"),
        ("title: My board", "title: [" + ", ".join(["x" * 100] * 100) + "]", "'title' is ["),
        ("title: My board", "title: My board\n1: 2", "has the key 1"),
        ("title: My board", "title: My board\n? [a, b]\n: 2", "which is no text"),
        ("title: My board", "title: 'My board\x07'", "is not allowed"),
        ("title: My board", "? '\\e[31m'\n: 2\ntitle: My board", "unknown key"),
        ("threads: 2", "threads: true", "'threads' is True"),
        ("threads: 2", "threads: " + "9" * 5000, "more than 40 characters"),
        ("threads: 2", "threads: " + "9" * 39, "'threads' is 9"),
    ],
    ids=lambda text: text[:30],
)
def test_hostile_files_are_one_short_sentence(tmp_path, old, new, words):
    path = tmp_path / "mine.yaml"
    assert old in OWN
    path.write_text(OWN.replace(old, new))
    with pytest.raises(TargetError, match=re.escape(words)) as caught:
        load_target(str(path))
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


def test_aliases_are_counted_before_they_are_expanded(tmp_path):
    rows = ["  k0: {value: &a0 [" + "x," * 10 + "], source: s}"]
    rows += [f"  k{i}: {{value: &a{i} [" + f"*a{i - 1}," * 10 + "], source: s}" for i in range(1, 9)]
    (tmp_path / "x.yaml").write_text("hardware:\n" + "\n".join(rows) + "\n" + OWN)
    with pytest.raises(TargetError, match="aliases") as caught:
        load_target(str(tmp_path / "x.yaml"))
    assert len(str(caught.value)) < 600


def test_a_target_is_a_small_plain_file(tmp_path):
    (tmp_path / "large.yaml").write_text(OWN + "#" * 2**18)
    with pytest.raises(TargetError, match="larger than"):
        load_target(str(tmp_path / "large.yaml"))
    os.mkfifo(tmp_path / "fifo.yaml")
    with pytest.raises(TargetError, match="no target file"):
        load_target(str(tmp_path / "fifo.yaml"))
    with pytest.raises(TargetError, match="no target file"):
        load_target("x" * 5000 + ".yaml")


@pytest.mark.parametrize(("name", "precision"), [("pixel-8", "int8"), ("jetson-orin-nx", "fp16")])
def test_rates_of_another_precision_are_refused(tmp_path, name, precision):
    text = (targets_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    file = tmp_path / f"{name}.yaml"
    file.write_text(re.sub(r"^precision: .*$", f"precision: {precision}", text, flags=re.M), encoding="utf-8")
    with pytest.raises(TargetError, match=f"its precision is {precision}, and the rates under 'roofline:' are"):
        load_target(str(file))


# --- the same device with another format or precision -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("host@litert:int8", ("host-litert-int8", "litert", "int8", "litert")),
        ("host@fp16", ("host-fp16", "onnx", "fp16", "onnxruntime")),
        ("pixel-8@ncnn", ("pixel-8-ncnn", "ncnn", "fp32", "ncnn")),
        ("galaxy-s23@fp32", ("galaxy-s23-fp32", "litert", "fp32", "litert-npu")),
        ("galaxy-s23@onnx:fp32", ("galaxy-s23-onnx-fp32", "onnx", "fp32", "onnxruntime")),
    ],
)
def test_a_format_and_a_precision_follow_the_name(name, expected):
    target = load_target(name)
    assert (target.name, target.format, target.precision, target.runtime) == expected


def test_of_a_device_that_is_attached_nothing_is_taken_for_granted(tmp_path):
    (tmp_path / "mine.yaml").write_text(OWN.replace("runner: none", "runner: ssh://board"))
    plain, other = (load_target(f"{tmp_path}/mine.yaml{setting}") for setting in ("", "@litert:int8"))
    assert (other.runner, other.threads) == (plain.runner, plain.threads) == ("ssh://board", 2)
    assert (plain.granularity, other.granularity, other.program) == (8, None, None)


def test_of_a_device_that_is_not_attached_latency_is_that_of_the_rates_which_it_has(tmp_path):
    plain, other = load_target("pixel-8"), load_target("pixel-8@litert:int8")
    assert (plain.rates_of, other.rates_of) == (None, "onnx in fp32")
    assert (other.error, other.roofline) == (None, plain.roofline)
    ops = (Op(name="a", kind="conv", tensor="w", anchor="w", taps=9, positions=900, inputs=64, outputs=64,
              reads=((None, 10**5),), writes=10**5, weights=10**5),)  # fmt: skip
    assert predict(ops, other).ms == predict(ops, plain).ms
    same = load_target("pixel-8@onnx:fp32")
    assert (same.rates_of, same.error) == (None, plain.error)


def test_a_path_may_have_a_setting_or_an_at_sign(tmp_path):
    text = (targets_folder() / "host.yaml").read_text()
    for name in ("mine.yaml", "me@home.yaml"):
        (tmp_path / name).write_text(text.replace("name: host", "name: mine"))
        assert load_target(str(tmp_path / name)).name == "mine"
        assert load_target(f"{tmp_path / name}@ncnn:fp16").name == "mine-ncnn-fp16"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("host@litter:int8", "Perhaps you meant 'litert'"),
        ("host@litert:int9", "Perhaps you meant 'int8'"),
        ("host@int9", "Perhaps you meant 'int8'"),
        ("host@litert:", "after @ stands a format"),
        ("host@", "There is no target"),
        ("hoost@litert", "Perhaps you meant 'host'"),
        ("nowhere/mine.yaml@litert", "There is no target file"),
    ],
)
def test_a_setting_that_there_is_not(name, words):
    with pytest.raises(TargetError, match=re.escape(words)):
        load_target(name)
