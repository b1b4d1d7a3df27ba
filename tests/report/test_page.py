import json
import re
from xml.etree import ElementTree

import pytest
from html_pages import read

from deploy_prune.errors import RunFolderError
from deploy_prune.report.page import headline, read_rows, write_page


def edit(path, change) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture(scope="module")
def text(mobilenet) -> str:
    return read(mobilenet / "report.html")[0]


@pytest.fixture(scope="module")
def html(mobilenet) -> str:
    return (mobilenet / "report.html").read_text(encoding="utf-8")


def test_the_page_is_whole_and_alone(run):
    page = write_page(run)
    _, reader = read(page)
    assert page == run / "report.html"
    assert all(target.startswith("#") for target in reader.loads)
    assert "url(http" not in page.read_text(encoding="utf-8")
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


def test_the_headline_says_what_was_asked_and_what_came_out(text):
    assert "Asked for 75%, 50% and 35% of the dense latency on host and jetson-orin-nano." in text
    assert "5 of 6 networks passed every check." in text
    assert "The fastest, host 35%, is 2.82 times as fast as dense (95% interval 2.80–2.85): 0.879 ms, dense" in text
    assert "dense 2.48 ms in the same rounds (p50, measured on host); its accuracy is" in text
    assert "No device is attached for jetson-orin-nano: those latencies are predicted." in text
    assert "Failed: jetson-orin-nano 35%" in text


def test_the_headline_of_predictions_alone_claims_no_measurement(make_row):
    sentences = " ".join(headline([make_row("pixel-8", budget) for budget in ("dense", "50%")]))
    assert "predicted" in sentences
    assert "measured)" not in sentences
    assert "times as fast" not in sentences


def test_every_row_and_its_error_are_there(text, rows):
    for row in rows:
        assert row.target in text
    assert rows[-1].error in text
    assert "1.33x predicted 0.678 / 0.904 predicted" in text


def test_the_loop_shows_asked_predicted_and_measured_per_step(text):
    assert "1 1.24 ms 1.23 ms 1.41 ms 1.24 ms +14.0%" in text
    assert "3 ✓ 1.14 ms 1.13 ms 1.26 ms 1.24 ms +1.2%" in text
    assert "1 ✓ 0.685 ms 0.678 ms no device 0.685 ms -1.0%" in text
    assert "measured on host (AMD EPYC 7B13), 1 thread, 50 runs after 30 to warm up, interleaved with dense" in text


def test_charts_are_valid_svg_with_titles_and_real_text(html):
    drawings = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)]
    titles = [drawing.findtext("{http://www.w3.org/2000/svg}title") for drawing in drawings]
    assert titles.count("Accuracy against latency") == 2, "measured, and predicted"
    assert titles.count("Channels per group, kept of dense") == 5, "one for each network"
    assert titles.count("The search, step by step: loss") == 1
    assert all(drawing.get("role") == "img" and drawing.get("aria-label") for drawing in drawings)
    measured, predicted = (words_of(drawing) for drawing in drawings[:2])
    assert {"measured", "dense", "75%", "50%", "35%", "host"} <= measured
    assert {"predicted, no device attached", "dense", "75%", "50%", "jetson-orin-nano (predicted)"} <= predicted
    assert "35%" not in predicted, "it failed"


def words_of(drawing) -> set[str]:
    return {word.text for word in drawing.iter("{http://www.w3.org/2000/svg}text")}


def test_the_score_axis_says_its_ends_and_of_how_many_examples_and_is_the_same_for_all_charts(run):
    edit(run / "results.json", lambda rows: [row.update(test_examples=846) for row in rows])
    html = write_page(run).read_text(encoding="utf-8")
    charts = [svg for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL) if "against latency</title>" in svg]
    words = [words_of(ElementTree.fromstring(chart)) for chart in charts]
    lowest, highest = 0.983 - 0.06 * 0.65**2, 0.983
    room = 0.18 * (highest - lowest)
    ends = f"{100 * (lowest - room):.1f} to {100 * (highest + room):.1f}, n = 846"
    assert [ends in found and "accuracy, %" in found for found in words] == [True, True]


def test_tables_say_format_and_precision(run):
    edit(run / "results.json", lambda rows: [row.update(format="onnx", precision="int8") for row in rows])
    text, _ = read(write_page(run))
    assert "host 75% onnx int8 1.32x" in text


def test_the_page_says_what_to_take_and_how(text, mobilenet):
    assert "Take this one" in text
    assert "host · 35% 2.82x: the best score" not in text
    assert f"deploy-prune export {mobilenet} --target host --budget" in text
    assert "bundles/mobilenet-host-50pct.zip" in text


def test_colours_all_follow_the_page(html):
    assert not re.search(r"#[0-9a-f]{6}", "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)))


def test_predicted_points_are_hollow(html):
    chart = html[html.index("Accuracy against latency</title>") : html.index("Channels kept</h2>")]
    assert chart.count("fill: var(--card); stroke: var(--s1)") == 3, "dense, 75% and 50% of the predicted target"
    measured = chart[: chart.index("Accuracy against latency</title>")]
    assert "fill: var(--card)" not in measured


def test_channels_before_and_after_stand_beside_each_bar(text):
    assert "616 / 960" in text
    assert "96 / 96" in text


def test_versions_and_checksums_are_there(mobilenet, text):
    provenance = json.loads((mobilenet / "provenance.json").read_text(encoding="utf-8"))
    for path, digest in provenance["files"].items():
        assert path in text
        assert digest in text
    assert "deploy-prune recipe mobilenet.yaml" in text
    assert "torch-pruning 1.6.1" in text


def test_names_from_files_are_never_markup(run):
    evil = '<script>alert("$x^2$")</script>'
    edit(run / "results.json", lambda rows: [row.update(target=evil, error=evil) for row in rows])
    edit(run / "host" / "50%" / "architecture.json", lambda a: a["groups"].update({evil: a["groups"].popitem()[1]}))
    edit(run / "provenance.json", lambda p: p["versions"].update({evil: evil}))
    page = write_page(run)
    text, reader = read(page)
    assert "script" not in reader.loads
    assert evil in text


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("results.json", "No results so far"),
        ("search/trace.json", "No trace"),
        ("provenance.json", "No provenance"),
        ("recipe.yaml", "No recipe"),
        ("host/50%/loop.json", "No steps"),
    ],
)
def test_a_missing_file_is_said_to_be_missing(run, file, said):
    (run / file).unlink()
    text, _ = read(write_page(run))
    assert said in text
    assert file in text


def test_a_complete_folder_lacks_nothing(text):
    assert "is not in this run folder" not in text


def test_a_folder_that_is_no_run_is_an_error(tmp_path):
    (tmp_path / "photo.txt").write_text("", encoding="utf-8")
    with pytest.raises(RunFolderError, match="is not a run folder"):
        write_page(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_run_folder_that_has_only_begun_gives_a_page_that_says_so(tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: tiny\n", encoding="utf-8")
    text, _ = read(write_page(tmp_path))
    for file in ("results.json", "TARGET/BUDGET/architecture.json", "TARGET/BUDGET/loop.json", "search/trace.json"):
        assert file in text


def test_a_method_without_steps_is_not_a_missing_file(run):
    (run / "search" / "trace.json").write_text("[]", encoding="utf-8")
    text, _ = read(write_page(run))
    assert "without taking steps" in text
    assert "No trace" not in text


def test_a_trace_without_cost_has_one_panel(run):
    def loss_only(trace):
        for row in trace:
            del row["cost"], row["limit"]

    edit(run / "search" / "trace.json", loss_only)
    page = write_page(run).read_text(encoding="utf-8")
    assert "The search, step by step: loss" in page
    assert "cost, % of dense" not in page


def test_latencies_far_apart_get_a_logarithmic_axis(run):
    def slower(rows):
        for row in rows[5:6]:
            row["predicted_ms"] = row["predicted_ms"] / 100

    edit(run / "results.json", slower)
    text, _ = read(write_page(run))
    assert " 0.02 0.05 0.1 0.2 0.5 " in text


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("results.json", "[{"),
        ("results.json", '[{"target": "host"}]'),
        ("search/trace.json", "3"),
        ("host/50%/architecture.json", '{"groups": 3}'),
        ("host/50%/loop.json", '{"asked": 1.0}'),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(run, file, content):
    (run / file).write_text(content, encoding="utf-8")
    with pytest.raises(RunFolderError, match=rf"{re.escape(file)} is damaged"):
        write_page(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    "name", ["speedup", "speedup_low", "speedup_high", "dense_p50_ms", "measured_p50_ms", "predicted_dense_ms"]
)
@pytest.mark.parametrize("value", [0, -1.0])
def test_a_latency_or_speedup_that_no_measurement_gives_is_refused(run, name, value):
    edit(run / "results.json", lambda rows: rows[1].update({name: value}))
    with pytest.raises(RunFolderError, match=rf"results.json is damaged.*{name} is {float(value)}, which no"):
        write_page(run)


def test_no_run_folder_is_an_error(tmp_path):
    with pytest.raises(RunFolderError, match="There is no run folder"):
        write_page(tmp_path / "nothing")


def test_rows_are_read_back(run, rows):
    assert read_rows(run) == rows


def test_the_same_run_gives_the_same_page(run):
    first = write_page(run).read_bytes()
    assert write_page(run).read_bytes() == first
