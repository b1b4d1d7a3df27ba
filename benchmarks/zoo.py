"""Cut half of every channel group of many networks and check everything that can be checked.

    python benchmarks/zoo.py [NAME...] [--others] [--formats NAME...] [--json FILE] [--timeout S] [--plain S]

Names as in _zoo_networks.py (tv: tvseg: tvdet: tvideo: timm: hf: own:); default: its list. Weights are random; every
network has a process and a time limit of its own. Times are seconds of one core. --json: every row as soon as it is
there; networks whose rows are there already are not run again. --plain: beside it torch-pruning's MetaPruner on the
same network, within so many seconds. A whole list goes to benchmarks/results/zoo.json; with --others, zoo_others.json.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune import cost
from deploy_prune.search.gated_network import gates_of
from deploy_prune.types import Keep, Structure

FIGURES: Final = ("groups", "macs", "macs_left", "macs_unused", "macs_share", "form", "find_s", "settle_s", "cut_s",
                  "params_left", "difference", "precision", "unchanged", "json", "onnx", "litert", "executorch", "ncnn",
                  "openvino", "peak_mb")  # fmt: skip
MUST_RUN: Final = "onnx"
"""The format in which every network must run. Of others, it is noted which do."""
TRACE_S: Final = 60.0
sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))  # what torch counts
Rows = dict[str, dict[str, Any]]
Inputs = tuple[Tensor, ...]


def first(inputs: Inputs, n: int) -> Inputs:
    """The first n examples."""
    return tuple(x[:n] for x in inputs)


def half(structure: Structure, seed: int = 0) -> Keep:
    """A random half of every group."""
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.randperm(g.channels, generator=generator) < max(1, g.channels // 2) for g in structure.groups}


def macs_share(structure: Structure) -> float:
    """The share of MACs in layers with channels that can be cut on either side."""
    dense, mine, total = structure.dense_counts, 0, 0
    for layer in structure.layers:
        macs = layer.positions * layer.taps * prod(width.at(dense) for width in layer.widths)
        total += macs
        mine += macs if any(width.per_unit for width in layer.widths) else 0
    return mine / max(1, total)


def counted(network: nn.Module, slim: nn.Module, structure: Structure, keep: Keep, inputs: Inputs) -> dict[str, float]:
    """MACs of the dense network and the slim one's share: the same by layer, by operator and by torch's own counter.

    ``macs_unused``: what the network computes beside that, and no output depends on; it is in no artifact.
    """
    from flops import real_macs

    from deploy_prune.latency.ops import list_ops
    from deploy_prune.networks.copies import copied
    from deploy_prune.surgery.trace import trace

    one, model = first(inputs, 1), cost.macs(structure)
    dense, kept = structure.dense_counts, {name: int(mask.sum()) for name, mask in keep.items()}
    programs = [trace(copied(each), one, TRACE_S) for each in (network, slim)]
    real = [real_macs(program.module(), *one) for program in programs]
    by_layer = [model(dense), model(kept)]
    assert by_layer == real, f"torch counts {real} MACs, dense and slim, and not {by_layer}"
    by_operator = sum(op.macs() for op in list_ops(programs[0]))
    assert by_operator == real[0], f"torch counts {real[0]} MACs, and not {by_operator}"
    predicted, held = cost.params(structure, network)(kept), count(slim)
    assert predicted == held, f"the slim network has {held} parameters, and not {predicted:.0f}"
    unused = real_macs(copied(network), *one) - real[0]
    return {"macs": real[0], "macs_left": round(real[1] / real[0], 3), "macs_unused": unused}


def check(name: str, row: dict[str, Any], formats: Sequence[str] = (MUST_RUN,)) -> None:
    """Everything about one network, into ``row``; raises at the first thing that fails, but for formats' refusals."""
    import _zoo_networks

    from deploy_prune.recipe.parts import PrunePart
    from deploy_prune.surgery.cut import cut
    from deploy_prune.surgery.groups import find_groups
    from deploy_prune.surgery.try_groups import keep_cuttable
    from deploy_prune.surgery.verify import verify

    row["stage"] = "build"
    network, inputs = _zoo_networks.make(name)
    as_given = contents(network)
    row["stage"], started = "find", time.process_time()
    found = find_groups(network, first(inputs, 1), PrunePart())
    row["find_s"] = round(time.process_time() - started, 2)
    row["stage"], started = "settle", time.process_time()
    structure = keep_cuttable(network, found, first(inputs, 2), gates_of, PrunePart())
    row["settle_s"] = round(time.process_time() - started, 2)
    row["form"] = "module" if structure.blueprint is None else "graph"
    row["groups"], row["found"] = len(structure.groups), len(found.groups)
    row["macs_share"] = round(macs_share(structure), 4)
    row["whole"] = [[w.name, w.channels, without_folders(w.reason)] for w in structure.whole]
    if not structure.groups:
        message = "no group can be cut"
        raise RuntimeError(message)
    keep = half(structure)
    row["stage"], started = "cut", time.process_time()
    slim = cut(network, structure, keep)
    row["cut_s"] = round(time.process_time() - started, 2)
    row["stage"] = "count"
    row |= counted(network, slim, structure, keep, inputs)
    row["params_left"] = round(count(slim) / count(network), 3)
    row["stage"] = "verify"
    proof = verify(network, slim, structure, keep, inputs, gates_of(structure))
    row["difference"], row["precision"] = proof.difference, proof.precision
    row["stage"] = "unchanged"
    row["unchanged"] = contents(network) == as_given
    assert row["unchanged"], "the network given has changed"
    for stage, step in (("train", train), ("json", round_trip)):
        row["stage"] = stage
        row[stage] = step(name, network, slim, keep, inputs)
    for format in formats:
        row["stage"] = format
        try:
            row[format] = exported(format, network, slim, inputs)
        except Exception as error:
            if format == MUST_RUN:
                raise
            row[format] = f"{type(error).__name__}: {without_folders(''.join(str(error).splitlines()[:1]))[:200]}"
    row["stage"] = "done"


def contents(network: nn.Module) -> dict[str, str]:
    """Every module's attributes and tensors, as text: digests of numbers, representations of the rest."""
    import hashlib

    def text(value: Any) -> str:
        if isinstance(value, Tensor):
            numbers = value.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
            flags = (type(value).__name__, value.requires_grad, value.grad is None, tuple(value.shape), value.stride())
            return f"{flags}{hashlib.sha256(numbers).hexdigest()}"
        if isinstance(value, dict):
            return str([(str(k), text(v)) for k, v in value.items()])
        if isinstance(value, list | tuple | set | frozenset):
            return str([text(v) for v in value])
        return "a module" if isinstance(value, nn.Module) else str(value)

    return {name: text(vars(module)) for name, module in network.named_modules()}


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def tensors(output: Any) -> list[Tensor]:
    from deploy_prune.networks.compare import tensors_of

    return tensors_of(output)


def train(name: str, network: nn.Module, slim: nn.Module, keep: Keep, inputs: Inputs) -> str:
    """Forward and backward in train mode: finite gradients reach the parameters."""
    import copy

    slim = copy.deepcopy(slim).train()
    made = slim(*inputs)
    parts = [made] if isinstance(made, Tensor) else list(made)
    sum(p.square().mean() for p in parts if isinstance(p, Tensor)).backward()
    grads = [p.grad for p in slim.parameters() if p.requires_grad]
    assert any(g is not None for g in grads), "no gradient"
    assert all(bool(g.isfinite().all()) for g in grads if g is not None), "a gradient is not finite"
    return "ok"


def round_trip(name: str, network: nn.Module, slim: nn.Module, keep: Keep, inputs: Inputs) -> int:
    """architecture.json and weights into a fresh network: the same output to the bit. Returns the file's bytes."""
    import _zoo_networks

    from deploy_prune.architecture import json_file

    part = _zoo_networks.part_of(name)
    text = json_file.dumps(
        json_file.describe(part, _zoo_networks.NUM_CLASSES, tuple(x[:1] for x in inputs), keep, network, slim)
    )
    fresh, _ = _zoo_networks.fresh(name, seed=1)
    told = json_file.loads(text)
    again = json_file.build_slim(told, fresh.eval(), example=first(inputs, 1))
    json_file.load_weights(again, slim.state_dict(), Path("weights.safetensors"))
    with torch.no_grad():
        pairs = list(zip(tensors(slim.eval()(*inputs)), tensors(again(*inputs)), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs), "reloaded network's output differs"
    return len(text)


def exported(format: str, network: nn.Module, slim: nn.Module, inputs: Inputs) -> float:
    """The artifact's relative difference in its own runtime.

    Raises:
        ExportError: it can't be written; said whether the dense network's can.
    """
    from deploy_prune.errors import ExportError
    from deploy_prune.export.inputs import as_given, called_in_order
    from deploy_prune.export.parity import check_parity

    with tempfile.TemporaryDirectory() as folder:
        try:
            artifact = write(format, slim, inputs, Path(folder) / "slim")
        except ExportError as error:
            try:
                write(format, network, inputs, Path(folder) / "dense")
            except ExportError as why:
                message = f"the dense network can't be written either: {why}"
                raise ExportError(message) from error
            raise
        given = as_given(inputs)
        return check_parity(called_in_order(slim, given), artifact, given).max_rel


def write(format: str, network: nn.Module, inputs: Inputs, path: Path) -> Any:
    """A network's artifact in fp32, under this name."""
    from deploy_prune.export import FORMATS, isolated
    from deploy_prune.export.inputs import as_given, called_in_order, require_inputs
    from deploy_prune.recipe.parts import ExportPart

    example = as_given(first(inputs, 1))
    require_inputs(format, example)
    network, path = called_in_order(network, example), path.with_suffix(FORMATS[format].suffix)
    return isolated.write(format, network, example, path, "fp32", ExportPart())


def plain(name: str, row: dict[str, Any]) -> None:
    """torch-pruning's own pruner: half of everything but the last linear layer, then a forward."""
    import _zoo_networks
    import torch_pruning as tp

    network, inputs = _zoo_networks.make(name)
    shapes = [t.shape for t in tensors(network(*inputs))]
    last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1:]
    started = time.process_time()
    pruner = tp.pruner.MetaPruner(
        network, first(inputs, 1), importance=tp.importance.RandomImportance(), pruning_ratio=0.5, ignored_layers=last
    )
    before = count(network)
    pruner.step()
    row["plain_s"] = round(time.process_time() - started, 2)
    assert [t.shape for t in tensors(network(*inputs))] == shapes, "the output's shape has changed"
    assert count(network) < before, "nothing was cut"


def alone(name: str, mode: str, timeout: float, formats: Sequence[str] = ()) -> dict[str, Any]:
    """Check one network in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.json"
        command = [sys.executable, __file__, "--child", mode, "--json", str(path), name, "--formats", *formats]
        try:
            done = subprocess.run(command, timeout=timeout, capture_output=True, text=True, check=False)
        except subprocess.TimeoutExpired:
            return {"error": f"no result in {timeout:g} s"}
        if not path.exists():
            return {"error": f"the process ended with {done.returncode}: {done.stderr.strip()[-200:]}"}
        row: dict[str, Any] = json.loads(path.read_text())
        return row


def without_folders(text: str) -> str:
    """The text with a package's files told from the package on, and other files by their names: the rest differs."""
    return re.sub(
        r"(?<![\w.:/])(?:/[\w.+-]+){2,}",
        lambda path: path[0].rpartition("site-packages/")[2] if "site-packages/" in path[0] else Path(path[0]).name,
        text,
    )


def child(name: str, mode: str, path: Path, formats: Sequence[str]) -> None:
    """One network, in this process; the row goes to ``path``."""
    row: dict[str, Any] = {}
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        if mode == "plain":
            plain(name, row)
        else:
            check(name, row, formats)
    except ModuleNotFoundError as error:
        row["skipped"] = str(error)
    except Exception as error:  # noqa: BLE001  whatever goes wrong is the row's result
        words = (str(error).strip().splitlines() or [""])[0]
        row["error"] = f"{type(error).__name__}: {without_folders(words)[:300]}"
        import traceback

        row["traceback"] = traceback.format_exc().splitlines()[-6:]
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    path.write_text(json.dumps(row))


def line(name: str, row: dict[str, Any]) -> str:
    """One network in one line."""
    state = "skipped" if "skipped" in row else "FAILED " + row.get("stage", "") if "error" in row else "passed"
    figures = " ".join(
        f"{k} {row[k]:.2g}" if isinstance(row[k], float) else f"{k} {row[k]}" for k in FIGURES if k in row
    )
    reasons = "; ".join(f"{n}[{c}]: {r}" for n, c, r in row.get("whole", [])[:3])
    text = f"{name:44} {state:10} {figures}"
    text += f"\n    {row['error']}" if "error" in row else ""
    text += f"\n    whole: {reasons}" if reasons and row.get("macs_share", 1) < 0.9 else ""
    return text + (f"\n    plain torch-pruning: {row['plain']}" if "plain" in row else "")


def run(names: Sequence[str], options: argparse.Namespace) -> Rows:
    """The rows of these networks, each written to ``options.json`` as soon as it is there."""
    import _results

    path: Path | None = options.json
    under = _results.conditions(argparse.Namespace(formats=options.formats), set())
    rows: Rows = _results.kept(path, under) if path is not None else {}
    for name in names:
        row = rows.setdefault(name, {})
        if row.keys() <= {"plain"}:
            row.update(alone(name, "ours", options.timeout, options.formats))
        if options.plain is not None and "plain" not in row:
            other = alone(name, "plain", options.plain)
            row["plain"] = other.get("error", f"passed, {other.get('plain_s')} s")
        print(line(name, row), flush=True)
        if path is not None:
            _results.keep(path, under, rows)
    return rows


def compact(row: dict[str, Any]) -> dict[str, Any]:
    """What is published of a network."""
    made = {"passed": "error" not in row} | {k: row[k] for k in (*FIGURES, "error", "plain") if k in row}
    if row.get("macs_share", 1) < 0.9:
        made["whole"] = [f"{name} [{channels}]: {reason}" for name, channels, reason in row["whole"]]
    return made


def main() -> None:
    """Check the networks and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--timeout", type=float, default=300, help="seconds per network (default 300)")
    parser.add_argument("--plain", type=float, metavar="S")
    parser.add_argument("--formats", nargs="*", default=[MUST_RUN], help="each in its own runtime (default: onnx)")
    parser.add_argument("--others", action="store_true", help="its other list: networks that classify no pictures")
    parser.add_argument("--child", choices=["ours", "plain"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.names[0], arguments.child, arguments.json, arguments.formats)
        return
    import _results
    import _zoo_networks

    name, listed = ("zoo_others", _zoo_networks.OTHERS) if arguments.others else ("zoo", _zoo_networks.LISTED)
    rows = run(arguments.names or listed.split(), arguments)
    passed = [n for n, r in rows.items() if "error" not in r and "skipped" not in r]
    wide = [n for n in passed if rows[n]["macs_share"] >= 0.9]
    print(f"\n{len(passed)} of {len(rows)} passed, {len(wide)} of them with 90% of their MACs in groups.")
    for format in arguments.formats:
        count = sum(isinstance(rows[n].get(format), float) for n in passed)
        print(f"{count} of {len(rows)} run in {format}.")
    if not arguments.names:
        totals = {"networks": len(rows), "passed": len(passed), "with_90_percent_of_macs": len(wide)}
        _results.write(
            name, {**totals, "formats": arguments.formats, "rows": {n: compact(rows[n]) for n in listed.split()}}
        )


if __name__ == "__main__":
    main()
