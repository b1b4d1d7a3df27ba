"""What a browser shows of the pages on a phone, and on a wide screen: nothing is cut, nothing scrolls sideways."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy_prune.report.compare import compare
from deploy_prune.report.compare_page import write_compare_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-sync")
LOOK = """
const found = {wide: [], small: 1e9, texts: 0};
frame.onload = () => {
  const page = frame.contentDocument, width = page.documentElement.clientWidth;
  page.querySelectorAll("details").forEach(one => one.open = true);
  if (page.documentElement.scrollWidth > width) found.wide.push("the page");
  page.querySelectorAll("body *").forEach(one => {
    const box = one.getBoundingClientRect(), name = one.tagName + " " + one.textContent.trim().slice(0, 30);
    if (box.width && (box.right > width + 0.5 || box.left < -0.5)) found.wide.push(name);
    if (frame.contentWindow.getComputedStyle(one).overflowX != "visible" && one.scrollWidth > one.clientWidth + 1)
      found.wide.push("scrolls: " + name);
    const drawing = one.closest("svg"), edge = drawing && drawing.getBoundingClientRect();
    if (one.tagName == "text" && (box.right > edge.right + 1 || box.left < edge.left - 1
        || box.top < edge.top - 1 || box.bottom > edge.bottom + 1)) found.wide.push("cut: " + name);
  });
  page.querySelectorAll("svg text").forEach(one => {
    found.texts += 1;
    const size = parseFloat(frame.contentWindow.getComputedStyle(one).fontSize) * one.getScreenCTM().a;
    found.small = Math.min(found.small, size || 1e9);
  });
  document.getElementById("found").textContent = JSON.stringify(found);
};
"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="chromium is not installed: apt-get install chromium"),
]


def seen(page: str, width: int, folder: Path) -> dict:
    """What is too wide on a page in a window of so many pixels, and the size of the smallest text in its charts."""
    frame = (
        f'<iframe id="frame" style="border:0; width:{width}px; height:2000px" srcdoc="{html.escape(page)}"></iframe>'
    )
    around = folder / "around.html"
    around.write_text(f'<meta charset="utf-8">{frame}<pre id="found"></pre><script>{LOOK}</script>', encoding="utf-8")
    command = [BROWSER, *QUIET, f"--user-data-dir={folder / 'profile'}", "--window-size=1600,2000", "--dump-dom"]
    shown = subprocess.run([*command, around.as_uri()], check=True, timeout=120, capture_output=True, text=True).stdout
    return json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', shown, re.DOTALL)[1]))


@pytest.fixture(scope="module")
def pages(mobilenet, tmp_path_factory) -> dict[str, str]:
    """The page of a run, and that of a comparison."""
    out = tmp_path_factory.mktemp("compared") / "compare.html"
    run = shutil.copytree(mobilenet, out.parent / "mobilenet")
    (run / "recipe.yaml").write_text("name: mobilenet\nmodel: {source: resnet20}\nbudgets: [50%]\n", encoding="utf-8")
    write_compare_page(compare([run]), out)
    return {"run": (mobilenet / "report.html").read_text("utf-8"), "compare": out.read_text("utf-8")}


@pytest.mark.parametrize("name", ["run", "compare"])
@pytest.mark.parametrize("width", [420, 800, 1400])
def test_nothing_is_cut_and_charts_can_be_read(pages, name, width, tmp_path):
    found = seen(pages[name], width, tmp_path)
    assert found["wide"] == []
    assert found["texts"] > 40
    assert found["small"] >= (11 if width == 420 else 10.5)


def test_a_table_that_does_not_fit_is_seen(pages, tmp_path):
    found = seen(pages["run"].replace('class="stack"', ""), 420, tmp_path)
    assert any(name.startswith("TABLE target") for name in found["wide"])
