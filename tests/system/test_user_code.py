"""The user's own code as one digest: it changes with every file that the code is made of, and with nothing else."""

import sys
import textwrap

import pytest

from deploy_prune.system.user_code import code_digest, files_of

FILES = {
    "mine/__init__.py": "",
    "mine/net.py": "from mine import blocks\nfrom . import shapes as s\ndef make(num_classes):\n    import lazy\n",
    "mine/blocks.py": "import torch\nfrom .parts.conv import Conv\n",
    "mine/parts/conv.py": "import deep.er.still\n",
    "mine/shapes.py": "",
    "mine/unused.py": "",
    "deep/er/still.py": "import mine.net\n",
    "lazy.py": "import json, deploy_prune.cost\n",
    "other.py": "import mine.unused\n",
}
USED = {"mine", "mine.net", "mine.blocks", "mine.parts.conv", "mine.shapes", "deep.er.still", "lazy"}


@pytest.fixture
def code(tmp_path, monkeypatch):
    for name, text in FILES.items():
        path = tmp_path / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path / "code")
    for name in [name for name in sys.modules if name.partition(".")[0] in {"mine", "deep", "lazy", "other"}]:
        monkeypatch.delitem(sys.modules, name)
    yield tmp_path / "code"
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def test_every_module_that_the_code_imports_is_found_and_no_other(code):
    assert set(files_of("mine.net")) == USED
    assert all(path.is_relative_to(code) for path in files_of("mine.net").values())


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_digest_changes_with_what_is_used(code, name):
    before = code_digest("mine.net:make")
    assert code_digest("mine.net:make") == before
    (code / name).touch()
    assert code_digest("mine.net:make") == before, "a file that was only touched is the same"
    with (code / name).open("a") as file:
        file.write("\nx = 1\n")
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert (code_digest("mine.net:make") != before) == (module in USED)


def test_another_folder_with_the_same_code_is_the_same_code(code, tmp_path, monkeypatch):
    before = code_digest("lazy:make")
    moved = code.rename(tmp_path / "moved")
    monkeypatch.syspath_prepend(moved)
    assert code_digest("lazy:make") == before


def test_code_that_can_not_be_parsed_counts_by_its_content(code):
    (code / "lazy.py").write_text("def broken(:\n")
    before = code_digest("mine.net:make")
    (code / "lazy.py").write_text("def broken(::\n")
    assert code_digest("mine.net:make") != before


def test_an_installed_module_is_not_followed():
    assert set(files_of("torch.nn.functional")) == {"torch.nn.functional"}
    assert code_digest("torch.nn.functional:relu") == code_digest("torch.nn.functional:gelu")


def test_code_without_a_file_is_never_the_same(monkeypatch):
    monkeypatch.setitem(sys.modules, "typed_in", type(sys)("typed_in"))
    assert code_digest("typed_in:make") != code_digest("typed_in:make")
