"""The page's pictures: which, from where, in how many bytes, and in words."""

import io
import json

import pytest
from PIL import Image

from deploy_prune.errors import RunFolderError
from deploy_prune.report import pictures
from deploy_prune.report.page import read_rows, write_page


def jpeg(size=(32, 24), colour="red"):
    made = io.BytesIO()
    Image.new("RGB", size, colour).save(made, "JPEG")
    return made.getvalue()


def put(place, found=(("#e41a1c", "cat 0.87"),), num=2, content=None):
    """A place's pictures, in each of which the same is found."""
    (place / "pictures").mkdir(parents=True, exist_ok=True)
    told = []
    for number in range(1, num + 1):
        (place / "pictures" / f"{number}.jpg").write_bytes(content or jpeg())
        told.append({"file": f"pictures/{number}.jpg", "found": list(map(list, found))})
    (place / "pictures.json").write_text(json.dumps({"pictures": told}))
    return place


@pytest.fixture
def drawn(run):
    """A run with pictures of two examples: truth, the dense network, and every slim one."""
    for place in ("truth", "dense", "host/75%", "host/50%", "host/35%", "jetson-orin-nano/50%", "jetson-orin-nano/35%"):
        put(run / place)
    return run


def shown(run):
    return pictures.of_run(run, read_rows(run) or ())


def test_truth_and_networks_stand_side_by_side_for_each_example(drawn):
    found = shown(drawn)
    good = ["truth", "dense", "host 75%", "host 50%", "host 35%", "jetson-orin-nano 50%"]
    assert [list(example) for example in found.examples] == [good] * 2, "of jetson-orin-nano 35% failed"
    assert found.left_out == ()


def test_the_page_shows_them_with_words_for_those_who_do_not_see_them(drawn):
    before = len((write_page(drawn)).read_text())
    put(drawn / "host" / "50%", found=[("#e41a1c", f"<b>{i}</b>") for i in range(10)])
    put(drawn / "host" / "35%", found=[])
    html = write_page(drawn).read_text()
    assert html.count("<figure>") == html.count('src="data:image/jpeg;base64,/9j/') == 12
    assert 'alt="Example 2, dense: cat 0.87"' in html
    assert 'alt="Example 1, host 35%: nothing"' in html
    assert "&lt;b&gt;7&lt;/b&gt; and 2 more" in html
    assert "<b>" not in html
    assert 'style="--key: #e41a1c"' in html
    assert len(html) > before


def test_a_run_without_pictures_has_no_section_for_them(run):
    assert shown(run) is None
    assert "<figure" not in write_page(run).read_text()


def test_a_page_has_room_for_the_smallest_network_of_each_target_first(drawn, monkeypatch):
    one = 2 * len(jpeg())
    monkeypatch.setattr(pictures, "MOST_BYTES", 5 * one)
    found = shown(drawn)
    assert list(found.examples[0]) == ["truth", "dense", "host 50%", "host 35%", "jetson-orin-nano 50%"]
    assert found.left_out == ("host 75%",)
    assert "For host 75% there is no room here" in write_page(drawn).read_text()
    monkeypatch.setattr(pictures, "MOST_BYTES", 5 * one - 1)
    assert list(shown(drawn).examples[0]) == ["truth", "dense", "host 35%", "jetson-orin-nano 50%"]


def test_pictures_need_no_results(drawn):
    (drawn / "results.json").unlink()
    assert list(shown(drawn).examples[0]) == ["truth", "dense"]


def test_of_fewer_pictures_no_more_are_shown(drawn):
    put(drawn / "host" / "50%", num=1)
    assert len(shown(drawn).examples) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../../dense/pictures/1.jpg"},
        {"file": "pictures/9.jpg"},
        {"file": "pictures/1.jpg/"},
        {"found": [["red;background:url(x)", "cat"]]},
        {"found": [["#e41a1c"]]},
        {"found": "cat"},
    ],
    ids=str,
)
def test_what_this_program_does_not_write_is_refused(drawn, change):
    file = drawn / "host" / "50%" / "pictures.json"
    told = json.loads(file.read_text())
    told["pictures"][0] |= change
    file.write_text(json.dumps(told))
    with pytest.raises(RunFolderError, match=r"host/50%/pictures\.json is damaged"):
        shown(drawn)


@pytest.mark.parametrize("content", [b"root:x:0:0", b"", jpeg() + bytes(pictures.MOST_BYTES)], ids=len)
def test_what_is_no_picture_is_not_shown(drawn, content):
    (drawn / "host" / "50%" / "pictures" / "1.jpg").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"1\.jpg is no JPEG, or has more than \d+ bytes"):
        shown(drawn)
