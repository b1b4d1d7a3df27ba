"""Loading a slim network runs no code from its files: watched while it happens, and read off the source."""

from __future__ import annotations

import ast
import builtins
import io
import json
import marshal
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from surgery_networks import half

import deploy_prune
from deploy_prune.architecture import json_file
from deploy_prune.errors import ArchitectureError, DeployPruneError, ModelError, RunFolderError
from deploy_prune.networks import build
from deploy_prune.recipe.parts import ModelPart, PrunePart
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.groups import find_groups, with_blueprint
from deploy_prune.system.guard import scratch

PACKAGE = Path(deploy_prune.__file__).parent
FORMS = {"module": "torchvision:mobilenet_v3_small", "graph": "torchvision:shufflenet_v2_x0_5"}


def written(folder: Path, source: str, form: str) -> Path:
    """A budget's folder: architecture.json and weights.safetensors."""
    torch.manual_seed(0)
    network, x = build.build_network(ModelPart(source=source), 10), torch.zeros(1, 3, 32, 32)
    structure = (find_groups if form == "module" else with_blueprint)(network, (x,), PrunePart())
    keep = half(structure)
    slim = cut(network, structure, keep)
    described = json_file.describe(ModelPart(source=source), 10, (x,), keep, network, slim)
    (folder / "architecture.json").write_text(json_file.dumps(described))
    save_file({name: t.clone() for name, t in slim.state_dict().items()}, folder / "weights.safetensors")
    return folder


@pytest.fixture(scope="module", params=FORMS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp(request.param), FORMS[request.param], request.param)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("original"), "resnet20", "graph")


@pytest.fixture
def again(original: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(original, tmp_path / "again"))


WATCH: list[Callable[[str, tuple[Any, ...]], None]] = []
"""Called at every audit event while it holds something: hooks can't be taken out again."""
sys.addaudithook(lambda event, args: [watch(event, args) for watch in list(WATCH)] and None)

RUNNING = {
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pickle.find_class",
    "marshal.load", "marshal.loads", "ctypes.dlopen", "socket.connect", "urllib.Request", "shutil.copyfile",
}  # fmt: skip


@contextmanager
def watched(folder: Path) -> Iterator[list[tuple[str, Any]]]:
    """What runs, is unpickled, compiled from, imported from or written to the folder, meanwhile."""
    seen: list[tuple[str, Any]] = []

    def watch(event: str, args: tuple[Any, ...]) -> None:
        runs = event in RUNNING and not (event.startswith(("marshal", "ctypes")) and _importing())
        from_folder = event in {"compile", "import"} and str(folder) in str(args[:2])
        writes = event == "open" and str(args[0]).startswith(str(folder)) and _writes(args)
        if runs or from_folder or writes:
            seen.append((event, args))

    WATCH.append(watch)
    try:
        yield seen
    finally:
        WATCH.remove(watch)


def _writes(args: tuple[Any, ...]) -> bool:
    return bool((args[2] or 0) & (os.O_WRONLY | os.O_RDWR))


def _importing() -> bool:
    """Python itself reads compiled modules of installed libraries, and loads their extensions."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def forbidden(*args: Any, **kwargs: Any) -> None:
    message = "loading must not do this"
    raise AssertionError(message)


def test_the_watch_sees_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with watched(tmp_path) as seen:
        subprocess.run([sys.executable, "--version"], check=True, capture_output=True)
        pickle.loads(pickle.dumps(Path("x")))
        marshal.loads(marshal.dumps(1))
        compile("1", str(tmp_path / "x"), "eval")
        __import__("planted")
        (tmp_path / "new").write_text("")
    events = [event for event, _ in seen]
    assert {"subprocess.Popen", "pickle.find_class", "marshal.loads", "compile", "open"} <= set(events)


@pytest.mark.parametrize("part", ["", "architecture.json"])
def test_nothing_runs_from_the_files_while_loading(
    part: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With modules beside the files that would be found if anything looked there, and no groups remembered."""
    folder = Path(shutil.copytree(place, tmp_path / "place"))
    for name in ("torchvision", "timm", "torch", "architecture", "weights", "json", "sitecustomize"):
        (folder / f"{name}.py").write_text("raise SystemExit('run from the folder')")
    (folder / "weights.pth").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(tmp_path / "cache"))
    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, forbidden)
    with scratch():
        pass  # the process that cleans up after us stands by from the first such folder on
    with watched(folder) as seen:
        network = deploy_prune.load(folder / part)
    assert seen == []
    assert not network.training
    assert not (tmp_path / "ran").exists()
    with torch.no_grad():
        assert network(torch.randn(3, 3, 32, 32)).shape == (3, 10)


def test_only_the_librarys_own_code_is_evaluated(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch writes its graphs as code and runs it; nothing of the package or of the files gets to eval and exec."""
    called: list[str] = []
    kept = {name: getattr(builtins, name) for name in ("eval", "exec")}

    def noting(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1)
            called.append(caller.f_code.co_filename)
            if len(args) == 1:
                args = (args[0], caller.f_globals, caller.f_locals)
            return kept[name](*args, **kwargs)

        return call

    deploy_prune.load(place)  # what libraries import at their first use is theirs
    for name in kept:
        monkeypatch.setattr(builtins, name, noting(name))
    monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(tmp_path))  # the groups have to be found again
    deploy_prune.load(place)
    assert called, "torch does so, else this looks in the wrong place"
    assert [file for file in called if file.startswith((str(PACKAGE), str(place)))] == []


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def torch_file(evil: Evil, legacy: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"conv1.weight": evil}, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy"])
def test_pickled_weights_are_refused(kind: str, again: Path, tmp_path: Path) -> None:
    evil = Evil(tmp_path / "ran")
    content = pickle.dumps(evil) if kind == "pickle" else torch_file(evil, kind == "legacy")
    (again / "weights.safetensors").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"weights\.safetensors is missing or damaged"):
        deploy_prune.load(again)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(evil))
    assert (tmp_path / "ran").exists(), "it would have run"


def header(entries: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
WEIGHTS: dict[str, bytes] = {
    "empty": b"",
    "text": b"weights",
    "huge header": (2**62).to_bytes(8, "little") + b"{}",
    "long header": (2**30).to_bytes(8, "little") + b"{}",
    "header no JSON": (4).to_bytes(8, "little") + b"\xff\xff\xff\xff",
    "huge shape": header({"a": {**ENTRY, "shape": [2**40, 2**40]}}, b"0000"),
    "overflowing shape": header({"a": {**ENTRY, "shape": [2**63, 2**63]}}, b"0000"),
    "offsets beyond": header({"a": {**ENTRY, "data_offsets": [0, 2**40]}}, b"0000"),
    "offsets backwards": header({"a": {**ENTRY, "data_offsets": [4, 0]}}, b"0000"),
    "offsets overlap": header({"a": ENTRY, "b": ENTRY}, b"0000"),
    "unknown dtype": header({"a": {**ENTRY, "dtype": "OBJECT"}}, b"0000"),
    "odd dtype": header({"a": {**ENTRY, "dtype": "F4", "shape": [8]}}, b"0000"),
    "negative shape": header({"a": {**ENTRY, "shape": [-1]}}, b"0000"),
    "NaN": header({"a": {**ENTRY, "shape": [float("nan")]}}, b"0000"),
    "nested": (2 * 50_000 + 5).to_bytes(8, "little") + b'{"a":' + b"[" * 50_000 + b"]" * 50_000,
    "path as name": header({"../../a": ENTRY}, b"0000"),
    "other names": header({"a": ENTRY}, b"0000"),
    "no tensors": header({}),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_hostile_weights_are_a_clear_error(name: str, again: Path) -> None:
    (again / "weights.safetensors").write_bytes(WEIGHTS[name])
    with pytest.raises((RunFolderError, ArchitectureError)) as caught:
        deploy_prune.load(again)
    assert str(again) in str(caught.value)
    assert len(str(caught.value)) < 600


def test_truncated_weights_are_a_clear_error(again: Path) -> None:
    path = again / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(RunFolderError, match="damaged"):
        deploy_prune.load(again)


@pytest.mark.parametrize("source", ["os:system", "subprocess:run", "builtins:exec", "pickle:loads", "again.evil:make"])
def test_code_that_a_file_names_is_not_even_imported(source: str, again: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(again.parent)
    (again / "evil.py").write_text("raise SystemExit('imported')")
    raw = json.loads((again / "architecture.json").read_text())
    raw["model"]["source"] = source
    (again / "architecture.json").write_text(json.dumps(raw))
    for path in (again, again / "architecture.json"):
        with watched(again) as seen, pytest.raises(ArchitectureError, match="trust=True"):
            deploy_prune.load(path)
        assert seen == []
    assert "again.evil" not in sys.modules


@pytest.mark.parametrize(
    ("source", "args"),
    [
        ("torchvision:../../evil", {}),
        ("torchvision:resnet18.__class__", {}),
        ("timm:hf_hub:someone/evil", {}),
        ("timm:hf-hub:someone/evil", {}),
        ("timm:local-dir:/tmp", {}),
        ("torchvision:resnet18", {"weights": "/tmp/evil.pth"}),
        ("timm:resnet18", {"checkpoint_path": "/tmp/evil.pth"}),
        ("timm:resnet18", {"pretrained": True}),
        ("timm:resnet18", {"pretrained_cfg": {"file": "/tmp/evil.pth"}}),
    ],
)
def test_a_library_is_not_asked_for_files(source: str, args: dict[str, Any], again: Path) -> None:
    raw = json.loads((again / "architecture.json").read_text())
    raw["model"].update(source=source, args=args)
    (again / "architecture.json").write_text(json.dumps(raw))
    with watched(again) as seen, pytest.raises((ArchitectureError, ModelError)):
        deploy_prune.load(again)
    assert seen == []


def test_a_hostile_cache_entry_runs_nothing(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(tmp_path / "cache"))
    wanted = deploy_prune.load(place).state_dict()
    for entry in (tmp_path / "cache").rglob("*.json"):
        entry.write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    found = deploy_prune.load(place).state_dict()
    assert not (tmp_path / "ran").exists()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_network_comes_back_as_it_was_saved(dtype: torch.dtype, place: Path, tmp_path: Path) -> None:
    """Precision, mode, weights and buffers, bit by bit; and it runs, evaluating and training."""
    folder = Path(shutil.copytree(place, tmp_path / "place"))
    saved = load_file(folder / "weights.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name, tensor in saved.items():
        if tensor.is_floating_point():
            saved[name] = torch.rand(tensor.shape, generator=generator).to(dtype)
        else:
            saved[name] = torch.tensor(7)  # batches that a norm has seen
    save_file(saved, folder / "weights.safetensors")
    network = deploy_prune.load(folder)
    found = network.state_dict()
    assert found.keys() == saved.keys()
    assert all(found[name].dtype == t.dtype and torch.equal(found[name], t) for name, t in saved.items())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert not any(module.training for module in network.modules())
    x = torch.randn(4, 3, 32, 32).to(dtype)
    assert network(x).dtype == dtype
    network.train()
    network(x).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


# --- the source -------------------------------------------------------------------------------------------------------


def load_path() -> list[Path]:
    """The package's modules that loading may reach: all that ``api.load`` imports, and what those import."""
    found: set[str] = set()
    todo = ["deploy_prune.api.load"]
    while todo:
        name = todo.pop()
        path = PACKAGE.parent / Path(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if str(path) in found or not path.is_file():
            continue
        found.add(str(path))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                todo += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                todo += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return sorted(map(Path, found))


UNPICKLING = {"pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}


def unsafe(tree: ast.AST) -> list[str]:
    """Ways to run a file's content: unpickling, evaluating, unsafe YAML; importing by name, but for plugins."""
    problems = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            options = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if name in {"eval", "exec", "compile", "__import__"}:
                problems.append(name)
            if name in {"torch.load", "torch.jit.load", "torch.export.load"} and options.get("weights_only") != "True":
                problems.append(name)
            if name in UNPICKLING or name.startswith(("marshal.", "dill.", "joblib.", "shelve.", "cloudpickle.")):
                problems.append(name)
            if name in {"YAML", "ruamel.yaml.YAML"} and options.get("typ") not in {"'rt'", "'safe'"}:
                problems.append(name)
            if name.endswith("load") and options.get("allow_pickle") == "True":
                problems.append(name)
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            problems += [m for m in imported if m in {"marshal", "dill", "joblib", "shelve", "cloudpickle", "yaml"}]
            if isinstance(node, ast.ImportFrom) and node.module == "pickle":
                problems.append("from pickle")
    return problems


@pytest.mark.parametrize("path", load_path(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_in_the_load_path_can_run_a_files_content(path: Path) -> None:
    assert unsafe(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "code",
    [
        "eval(x)", "exec(x)", "torch.load(p)", "torch.load(p, weights_only=False)", "pickle.loads(b)",
        "from pickle import loads", "YAML(typ='unsafe')", "YAML()", "yaml.load(f)", "numpy.load(p, allow_pickle=True)",
    ],
)  # fmt: skip
def test_the_reading_of_the_source_finds_what_it_should(code: str) -> None:
    assert unsafe(ast.parse(code))


def test_the_load_path_is_known() -> None:
    names = {str(path.relative_to(PACKAGE)) for path in load_path()}
    assert {
        "networks/build.py", "networks/weights.py", "architecture/json_file.py", "architecture/strict.py",
        "surgery/remembered.py", "system/cache.py", "run/folder.py",
    } <= names  # fmt: skip
    assert issubclass(ArchitectureError, DeployPruneError)
