"""The command line: one function for each command. It calls one function of the package and shows the result."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from deploy_prune.commands.cli_devices import cache, doctor, schema, targets
from deploy_prune.commands.cli_networks import predict, profile, show
from deploy_prune.commands.completion import recipe_names, target_names
from deploy_prune.commands.examples import examples
from deploy_prune.commands.frame import (
    Commands,
    a_target,
    file_option,
    json_file,
    network_inputs,
    run_folder,
    say,
    say_first,
    settings,
    write_json,
)
from deploy_prune.commands.outcome import (
    require_met,
    require_ok,
    show_advice,
    show_recipes,
    show_rows,
    write_artifact,
    write_bundles,
    write_folder_bundle,
)
from deploy_prune.system.launched import require_started_once
from deploy_prune.system.locks import hold
from deploy_prune.system.outputs import require_outside_runs
from deploy_prune.types import silent
from deploy_prune.version import __version__


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="deploy-prune")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Make a network smaller until it meets a latency budget on a device.

    Begin with `deploy-prune check quickstart`, then `deploy-prune recipe quickstart`.
    """


@main.command(epilog=examples("recipe"))
@click.argument("names", metavar="[NAME...]", nargs=-1, shell_complete=recipe_names)
@settings
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of run folders."
)
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Of one recipe, so many devices are measured on at once (default: 1). "
    "Of several, so many run at once (default: one on each of --devices)."
)  # fmt: skip
@click.option("--devices", help="Where recipes train in turn, one process each, as in cuda:0,cuda:1.")
@click.option("--fresh", is_flag=True, help="Do every stage again, measurements too.")
@click.option("--wait", is_flag=True, help="Wait while another process works in this run folder.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@json_file
def recipe(
    names: Sequence[str], settings: Sequence[str], out: Path, jobs: int | None, devices: str | None,
    json_file: Path | None, **flags: bool,
) -> None:  # fmt: skip
    """Run a recipe: search, cut, retrain, export, measure.

    NAME is a shipped recipe or a path; without it, shipped recipes are listed. Run the same command again to resume a
    run that was stopped.

    Several recipes run in a process each, and one that fails doesn't stop the others. A recipe with a list where a key
    takes one value, as in search.method: [dap, gate] or seed: [0, 1], stands for a recipe with each of them.
    """
    if not names:
        return show_recipes()
    require_started_once()
    fresh, wait, quiet = flags["fresh"], flags["wait"], flags["quiet"]
    from deploy_prune.recipe.sweep import load_recipes

    found = [(name, one) for name in names for one in load_recipes(name, settings)]
    if len(found) > 1 or devices:
        from deploy_prune.commands.many import run_recipes

        return run_recipes(found, out, jobs, devices, [*["--fresh"] * fresh, *["--wait"] * wait], quiet, json_file)
    parsed = found[0][1].recipe
    if not quiet:
        say_first("Run", parsed)
    with hold(out / parsed.name, (lambda told: say(told, err=True)) if wait else None):
        from deploy_prune.report.terminal import output, rich_progress
        from deploy_prune.run import pipeline

        with nullcontext(silent) if quiet else rich_progress() as progress:
            tell = pipeline.untold if quiet else partial(say, err=True)
            run = pipeline.run(parsed, out, progress, fresh, tell, tell_threads=tell, jobs=jobs or 1)
    show_rows(run.rows)
    write_json(json_file, [{"recipe": parsed.name, **asdict(row)} for row in run.rows])
    output().print(*run.summary, sep="\n", markup=False, highlight=False)
    show_advice(run.folder, run.rows)
    return require_ok(run.rows)


@main.command(epilog=examples("init"))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--model", help="The network: torchvision:NAME, timm:NAME, ultralytics:NAME or module:callable.")
@click.option("--weights", metavar="FILE", help="Its trained weights; or: default, hf://OWNER/NAME/FILE.safetensors.")
@click.option(
    "--target", "targets", multiple=True, shell_complete=target_names,
    help="A device, as `deploy-prune targets` lists; repeatable.",
)  # fmt: skip
@click.option("--budget", "budgets", multiple=True, help="As in '50%' or '4 ms'; repeatable. Default: what can be met.")
@click.option("--task", help="What the network is for, if the data fits several: detection, segmentation ...")
@click.option("--out", type=file_option, help="The file to write. Default: NAME.yaml.")
@click.option("--yes", is_flag=True, help="Ask nothing: take what is likeliest.")
def init(yes: bool, **said: Any) -> None:
    """Write a recipe for your data, network and device.

    DATA is a folder of images for each class, of pictures with boxes (YOLO, VOC, COCO) or with masks, or an .npz. What
    can be found out is: the kind of data, what in it is broken, the size of inputs, a batch size that fits into memory,
    and a budget that can be met. The rest is asked. Ends with what `check` says.
    """
    from deploy_prune.commands import init
    from deploy_prune.report.table import check_tables, left_whole
    from deploy_prune.report.terminal import output, rich_progress

    def ask(question: str, likely: str, answers: Sequence[str]) -> str:
        return likely if yes else click.prompt(question, default=likely, type=click.Choice(answers) if answers else str)

    wanted = init.answered(init.Wanted(**said), ask)
    with rich_progress() as progress:
        begun, report = init.begin(wanted, progress)
    init.write(begun)
    output().print(*left_whole(report), *check_tables(report)[-3:], sep="\n")
    say(f"{begun.path} is written. Run it: deploy-prune recipe {begun.path}")
    require_met(report)


@main.command(epilog=examples("check"))
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=recipe_names)
@settings
@click.option("--quiet", is_flag=True, help="Show no progress.")
@json_file
def check(names: Sequence[str], settings: Sequence[str], quiet: bool, json_file: Path | None) -> None:
    """Say without training whether a recipe's budgets can be met.

    NAME is a shipped recipe or a path. Takes seconds, or minutes if artifacts must be written and timed. Fails if a
    budget can't be met. Of a recipe with lists, as `recipe` takes them, each one is checked.
    """
    from deploy_prune.recipe.sweep import load_recipes

    recipes = [one.recipe for name in names for one in load_recipes(name, settings)]
    if not quiet:
        say_first("Check", recipes[0])
    from deploy_prune.commands import check as checking
    from deploy_prune.report.table import check_tables
    from deploy_prune.report.terminal import output, rich_progress

    reports = []
    for parsed in recipes:
        with nullcontext(silent) if quiet else rich_progress() as progress:
            reports.append(checking.check(parsed, progress))
        output().print(*check_tables(reports[-1]), sep="\n")
    write_json(json_file, [report.as_json() for report in reports])
    for report in reports:
        require_met(report)


@main.command(epilog=examples("bench"))
@run_folder
@click.option(
    "--runs", type=click.IntRange(min=10), default=300, show_default=True, help="Timed inferences per artifact."
)
@click.option("--device", help="Measure there: local, ssh://USER@HOST[:PORT] or adb://SERIAL.")
@click.option(
    "--trust", is_flag=True, help="Allow the program that a target of the run names to be started on its device."
)
@json_file
def bench(run: Path, runs: int, device: str | None, trust: bool, json_file: Path | None) -> None:
    """Measure a run's latency again.

    RUN is a run folder. For each target and budget, this shows how many times as fast as the dense network the slim one
    is, with a 95% interval, p50 beside the dense network's in the same rounds, p90 and p99, and what was asked and
    predicted. If latency fell less than the number of multiply-accumulates, the layers that lost the most time are
    named, with the reason.
    """
    from deploy_prune.commands import bench
    from deploy_prune.report.bench import bench_tables
    from deploy_prune.report.terminal import output

    found = bench.bench(run, runs, device, trust)
    output().print(*bench_tables(found), sep="\n")
    write_json(json_file, [one.as_json() for one in found])
    require_ok([one.row for one in found])


@main.command(epilog=examples("compare"))
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=file_option, help="The page to write. Default: compare.html beside the first run.")
@json_file
def compare(runs: Sequence[Path], out: Path | None, json_file: Path | None) -> None:
    """Compare runs: which networks are worth having on each device.

    RUN is a run folder. A network is worth having if no other one is as fast and as good: these are marked. A network's
    latency is its share of the dense network's, measured in the same rounds, times the median latency of that dense
    network over the runs. Also shown is in what the recipes differ. On the page, a click on a point leads to its
    network.
    """
    from deploy_prune.report.compare import compare as compared
    from deploy_prune.report.compare_page import write_compare_page
    from deploy_prune.report.compare_table import compare_tables
    from deploy_prune.report.terminal import output

    found, page = compared(runs), out or runs[0].resolve().parent / "compare.html"
    require_outside_runs(page)
    output().print(*compare_tables(found), sep="\n")
    write_json(json_file, found.as_json())
    say(write_compare_page(found, page))


@main.command(epilog=examples("export"))
@click.argument("source", metavar="RUN_OR_ARCHITECTURE", type=click.Path(path_type=Path))
@a_target
@click.option("--budget", help="One budget of the run, or dense. Default: every budget that was met.")
@click.option("--out", type=click.Path(path_type=Path), help="The bundle, folder of bundles, or artifact to write.")
@click.option(
    "--trust", is_flag=True, help="Allow code of your own (module:callable) that the architecture names to run."
)
@click.option("--bundle", is_flag=True, help="Of a folder with a network: its bundle, and not the artifact alone.")
@network_inputs
def export(
    source: Path, target: str, budget: str | None, out: Path | None, trust: bool, bundle: bool, inputs: Sequence[str]
) -> None:
    """Write a run's bundles: what is needed to use a network on a device.

    A bundle is a folder and a zip with the artifact (the file that the device loads), its preprocessing, a sample with
    the expected output, and programs that run and check it. One is written for each budget that was met, to
    bundles/RUN-TARGET-BUDGET or into the folder --out. With --budget, only one is written, and --out is its folder.

    With an architecture.json or a run's TARGET/BUDGET folder in place of the run, one artifact is written to --out, for
    any target, and compared with the network; with --input for inputs of another size. With --bundle, the folder's
    network (a run's, a transfer's, or one that deploy_prune.save wrote) gets a bundle: its artifact is checked and
    scored on the recipe's examples and, where the target is attached, measured.
    """
    from deploy_prune.run.folder import is_run

    if inputs and (bundle or is_run(source)):
        message = f"bundles are of a network's own inputs; --input is for the artifact of an architecture, not {source}"
        raise click.UsageError(message)
    if is_run(source):
        write_bundles(source, target, budget, out, trust)
    elif bundle and budget is None:
        write_folder_bundle(source, target, out, trust)
    elif budget is not None or out is None:
        message = f"{source} is no run folder; the artifact of an architecture takes --out and no --budget"
        raise click.UsageError(message)
    else:
        write_artifact(source, target, out, trust, inputs)


@main.command(epilog=examples("verify"))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--hashes-only", is_flag=True, help="Check only the files; the runtime isn't needed.")
def verify(bundle: Path, hashes_only: bool) -> None:
    """Check a bundle: its files, its preprocessing and its outputs.

    BUNDLE is a folder or a zip. It may come from anywhere: none of its code is run. Outputs are computed in the
    artifact's own runtime.
    """
    from deploy_prune.bundle.verify import verify as check_bundle

    say("\n".join(check_bundle(bundle, hashes_only)))


@main.command(epilog=examples("transfer"))
@click.argument("source", metavar="ARCHITECTURE_OR_RUN_FOLDER", type=click.Path(path_type=Path))
@click.option(
    "--data",
    "collection",
    help="A data set, as in data.source; of a classifier also a folder of images per class, or an .npz. Default: the "
    "run's.",
)
@click.option(
    "--shots",
    type=click.IntRange(min=1),
    help="Training examples (objects of a detector) of each class. Default: the run's, else 10.",
)
@click.option(
    "--init", type=click.Choice(["inherit", "fresh"]), help="Begin with the weights that are there, or with new ones."
)
@click.option(
    "--episodes", type=click.IntRange(min=1), default=1, show_default=True, help="How often examples are drawn."
)
@click.option(
    "--teacher", type=file_option, help="Weights of the network that teaches. Default: the run's dense network."
)
@settings
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option(
    "--trust", is_flag=True, help="Allow code of your own (module:callable) that the architecture names to run."
)
@click.option("--quiet", is_flag=True, help="Show no progress.")
def transfer(source: Path, settings: Sequence[str], quiet: bool, **how: Any) -> None:
    """Train a slim architecture on new data, with a few examples of each class.

    From an architecture.json alone, the network learns from scratch; --set task=detection says what it is for, if it
    is no classifier. From a run's TARGET/BUDGET folder, it begins with that network's weights, except the layers that
    depend on the number of classes, and the run's dense network teaches it.

    Each episode draws examples anew. Several episodes give the mean score and its 95% interval; the folder --out has
    the network of the first one. --set takes these keys of a recipe: task, data, retrain, seed, device, threads.
    """
    from deploy_prune.commands import transfer
    from deploy_prune.report.terminal import output, rich_progress
    from deploy_prune.report.transfer import transfer_table

    with nullcontext(silent) if quiet else rich_progress() as progress:
        given = transfer.as_settings(how.pop("collection"), how.pop("shots"), how.pop("init"))
        how["tell_threads"] = (lambda sentence: None) if quiet else partial(say, err=True)
        found = transfer.transfer(source, [*given, *settings], progress=progress, **how)
    output().print(transfer_table(found))


@main.command(epilog=examples("report"))
@run_folder
def report(run: Path) -> None:
    """Write report.html of the run folder RUN again."""
    from deploy_prune.report.page import write_page
    from deploy_prune.run.folder import is_run

    with hold(run) if is_run(run) else nullcontext():
        say(write_page(run))


for command in (show, predict, profile, targets, doctor, schema, cache):
    main.add_command(command)

if __name__ == "__main__":
    sys.exit(main())
