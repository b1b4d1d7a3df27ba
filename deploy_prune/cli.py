"""The command line: one function a command, which calls one function of the package and shows what it returns."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import click

from deploy_prune import __version__
from deploy_prune.commands.frame import Commands, file_option, result_file, run_folder, say, settings
from deploy_prune.commands.outcome import require_met, require_ok, show_rows, write_artifact, write_bundles
from deploy_prune.locks import hold
from deploy_prune.shell import write_text
from deploy_prune.types import silent


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="deploy-prune")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """From a network, a device and a latency budget to a slim, checked and measured artifact.

    Begin with `deploy-prune check quickstart`, then `deploy-prune recipe quickstart`.
    """


@main.command(epilog="Example: deploy-prune recipe mobilenet --set budgets=[50%] --out runs")
@click.argument("name")
@settings
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of runs.")
@click.option("--fresh", is_flag=True, help="Do every stage again, even those that are finished.")
@click.option("--wait", is_flag=True, help="Wait if another process is at work in this run's folder.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def recipe(name: str, settings: Sequence[str], out: Path, fresh: bool, wait: bool, quiet: bool) -> None:
    """Run a recipe: search, cut, retrain, export, measure.

    NAME is a shipped recipe or a path. A run that was stopped goes on from its last finished stage.
    """
    from deploy_prune.recipe_file import load

    parsed = load(name, settings)
    with hold(out / parsed.name, (lambda told: say(told, err=True)) if wait else None):
        from deploy_prune import pipeline
        from deploy_prune.console import output, rich_progress

        with nullcontext(silent) if quiet else rich_progress() as progress:
            tell = pipeline.untold if quiet else partial(say, err=True)
            run = pipeline.run(parsed, out, progress, fresh, tell)
    show_rows(run.rows)
    output().print(*run.summary, sep="\n", markup=False, highlight=False)
    output().print(f"{run.folder}", markup=False, highlight=False)
    require_ok(run.rows)


@main.command(epilog="Example: deploy-prune check mobilenet --set budgets=[20%]")
@click.argument("name")
@settings
@click.option("--quiet", is_flag=True, help="Show no progress.")
def check(name: str, settings: Sequence[str], quiet: bool) -> None:
    """Say without training what a recipe can reach: in seconds, or minutes where artifacts are written and timed.

    NAME is a shipped recipe or a path. Fails if a budget can't be met.
    """
    from deploy_prune.recipe_file import load

    parsed = load(name, settings)
    from deploy_prune import check as checking
    from deploy_prune.console import output, rich_progress
    from deploy_prune.report.table import check_tables

    with nullcontext(silent) if quiet else rich_progress() as progress:
        report = checking.check(parsed, progress)
    output().print(*check_tables(report), sep="\n")
    require_met(report)


@main.command(epilog="Example: deploy-prune bench runs/mobilenet --runs 1000 --json again.json")
@run_folder
@click.option("--runs", type=click.IntRange(min=10), default=300, show_default=True, help="Inferences per artifact.")
@click.option("--device", help="Measure there: local, ssh://USER@HOST[:PORT] or adb://SERIAL.")
@click.option("--trust", is_flag=True, help="Start the program that a target of the run names on its device.")
@click.option("--json", "json_file", type=result_file, help="Write the rows to this file too.")
def bench(run: Path, runs: int, device: str | None, trust: bool, json_file: Path | None) -> None:
    """Measure latency again, per target and budget of the run folder RUN.

    Shown are p50, p90 and p99, beside what was asked and predicted, and the share of dense latency with its 95%
    interval. Where latency fell less than the multiply-accumulates did, the layers that lost most, and why.

    \b
    deploy-prune bench runs/mobilenet
    deploy-prune bench runs/mobilenet --device ssh://pi@raspberrypi.local
    deploy-prune bench runs/mobilenet --device ssh://pi@10.0.0.7:2222/home/pi/env/bin/python3
    """  # noqa: D301  (click's mark of lines that are kept)
    from deploy_prune import benching
    from deploy_prune.console import output
    from deploy_prune.report.bench import bench_tables

    found = benching.bench(run, runs, device, trust)
    output().print(*bench_tables(found), sep="\n")
    if json_file:
        write_text(json_file, json.dumps([one.as_json() for one in found], indent=2) + "\n")
    require_ok([one.row for one in found])


@main.command(
    epilog="Example: deploy-prune export runs/mobilenet --target pixel-8 --budget 50% --out handover/mobilenet"
)
@click.argument("source", metavar="RUN_OR_ARCHITECTURE", type=click.Path(path_type=Path))
@click.option("--target", required=True, help="A device's name, see `deploy-prune targets`.")
@click.option("--budget", help="One of the run's, as in its recipe, or dense. Default: every one that came out well.")
@click.option("--out", type=click.Path(path_type=Path), help="The bundle, folder of bundles, or artifact to write.")
@click.option("--trust", is_flag=True, help="Run the code that an architecture of your own (module:callable) names.")
def export(source: Path, target: str, budget: str | None, out: Path | None, trust: bool) -> None:
    """Hand over a run: for each budget a bundle, to be put on the device and checked there.

    A bundle is a folder, and a zip beside it, with the artifact, what goes in and comes out, a sample, and programs
    that run and check it. With --budget, --out is its folder; without, --out is the folder of one bundle per budget.
    Default: bundles/RUN-TARGET-BUDGET.

    An architecture.json or a run's TARGET/BUDGET folder in the place of the run gives one artifact, --out, for any
    target, checked against the network.

    \b
    deploy-prune export runs/mobilenet --target host
    deploy-prune export runs/mobilenet --target host --budget 50% --out handover/mobilenet
    deploy-prune export runs/mobilenet/host/50% --target pixel-6 --out slim.tflite
    """  # noqa: D301  (click's mark of lines that are kept)
    from deploy_prune.runfolder import is_run

    if is_run(source):
        write_bundles(source, target, budget, out, trust)
    elif budget is not None or out is None:
        message = f"{source} is no run folder; the artifact of an architecture takes --out and no --budget"
        raise click.UsageError(message)
    else:
        write_artifact(source, target, out, trust)


@main.command(epilog="Example: deploy-prune verify mobilenet-pixel-8-50pct.zip")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--hashes-only", is_flag=True, help="Check the files alone, where the runtime isn't installed.")
def verify(bundle: Path, hashes_only: bool) -> None:
    """Check a bundle: its files, its preprocessing, and its artifact's outputs, in the artifact's own runtime.

    BUNDLE is a folder or a zip, and may come from anywhere: none of its code is run.
    """
    from deploy_prune.device.bundle import verify as check_bundle

    say("\n".join(check_bundle(bundle, hashes_only)))


@main.command(epilog="Example: deploy-prune transfer slim.json --data photos --shots 10 --out slim-photos")
@click.argument("source", metavar="ARCHITECTURE_OR_RUN_FOLDER", type=click.Path(path_type=Path))
@click.option("--data", "collection", help="A folder of folders of images, an .npz, or a data set. Default: the run's.")
@click.option("--shots", type=click.IntRange(min=1), help="Training examples of each class. Default: 10, or the run's.")
@click.option("--init", type=click.Choice(["inherit", "fresh"]), help="Begin with the weights that are there, or anew.")
@click.option("--episodes", type=click.IntRange(min=1), default=1, show_default=True, help="Draws of the examples.")
@click.option("--teacher", type=file_option, help="The dense network's weights. Default: the run's.")
@settings
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--trust", is_flag=True, help="Run the code that an architecture of your own (module:callable) names.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def transfer(source: Path, settings: Sequence[str], quiet: bool, **how: Any) -> None:
    """Adapt a slim architecture to new data, with a few examples of each class.

    An architecture.json alone learns from scratch. A run's TARGET/BUDGET folder begins with its weights, but for the
    classifier, and the run's dense network teaches it. Several episodes give the mean accuracy and its 95% interval;
    OUT has the first one's network. On a run's own data they tell how much of its accuracy is the draw's. --set takes
    a recipe's keys: data and retrain, seed, device, threads.

    \b
    deploy-prune transfer resnet20-slim.json --data cifar100 --set data.ways=10 --episodes 5 --out slim-cifar100
    deploy-prune transfer runs/mobilenet/host/50% --data photos --set data.augment=crop_flip --out slim-photos
    deploy-prune transfer runs/mobilenet/host/50% --episodes 5 --out how-sure
    deploy-prune export slim-photos --target pixel-6 --out slim-photos.tflite
    """  # noqa: D301  (click's mark of lines that are kept)
    from deploy_prune import transferring
    from deploy_prune.console import output, rich_progress
    from deploy_prune.report.transfer import transfer_table

    with nullcontext(silent) if quiet else rich_progress() as progress:
        given = transferring.as_settings(how.pop("collection"), how.pop("shots"), how.pop("init"))
        found = transferring.transfer(source, [*given, *settings], progress=progress, **how)
    output().print(transfer_table(found))


@main.command(epilog="Example: deploy-prune show runs/mobilenet/host/50% --target pixel-8")
@click.argument("source", metavar="ARCHITECTURE_OR_RUN_FOLDER", type=click.Path(path_type=Path))
@click.option("--target", help="Predict latency there too; a device's name, see `deploy-prune targets`.")
@click.option("--trust", is_flag=True, help="Run the code that an architecture of your own (module:callable) names.")
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
def show(source: Path, target: str | None, trust: bool, as_json: bool) -> None:
    """Draw an architecture layer by layer: channels kept, share of MACs and of latency.

    Reads an architecture.json, or that of a run's TARGET/BUDGET folder; weights are not needed. Latency is predicted by
    the device's roofline, or, on the device at hand (host), by a table that is measured unless it was before.

    \b
    deploy-prune show architecture.json
    deploy-prune show runs/mobilenet/host/50% --target host
    deploy-prune show my/architecture.json --trust --json
    """  # noqa: D301  (click's mark of lines that are kept)
    from deploy_prune.console import output
    from deploy_prune.overview import overview
    from deploy_prune.report.show import overview_tables

    found = overview(source, target, trust)
    if as_json:
        say(json.dumps(found.as_json(), indent=1))
    else:
        output().print(*overview_tables(found), sep="\n")


@main.command(epilog="Example: deploy-prune predict torchvision:resnet18 --target jetson-nano --input 3,224,224")
@click.argument("model")
@click.option("--target", required=True, help="A device's name, see `deploy-prune targets`.")
@click.option("--input", "shape", help="Channels, height and width, as in 3,224,224; an architecture knows its own.")
@click.option("--trust", is_flag=True, help="Run the code that an architecture of your own (module:callable) names.")
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
def predict(model: str, target: str, shape: str | None, trust: bool, as_json: bool) -> None:
    """Predict a network's latency on a device that is not attached, and how far off that may be.

    MODEL is torchvision:NAME, timm:NAME, an architecture.json or a run's TARGET/BUDGET folder.
    """
    from deploy_prune import predicting

    found = predicting.predicted(model, target, predicting.parse_shape(shape) if shape else None, trust)
    say(json.dumps(found.as_json(), indent=1) if as_json else str(found))


@main.command(epilog="Example: deploy-prune profile torchvision:mobilenet_v2 --target host --input 3,224,224")
@click.argument("model")
@click.option("--target", required=True, help="A device's name, see `deploy-prune targets`.")
@click.option("--device", help="Measure there: local, ssh://USER@HOST[:PORT] or adb://SERIAL.")
@click.option("--input", "shape", help="Channels, height and width, as in 3,224,224; an architecture knows its own.")
@click.option("--classes", type=click.IntRange(min=1), default=1000, show_default=True, help="Of a library's network.")
@click.option("--variants", type=click.IntRange(min=1), default=8, show_default=True, help="Networks to make it of.")
@click.option("--trust", is_flag=True, help="Run the code that an architecture of your own (module:callable) names.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--out", type=result_file, help="Write the JSON to this file too.")
def profile(model: str, shape: str | None, as_json: bool, out: Path | None, **how: Any) -> None:
    """Measure a network's latency table on a device, in minutes, and how well it predicts.

    Whole networks of random widths are measured there, layer by layer where the runtime tells, and as many others to
    check the table with. Recipes for the same network (its classes and input too) and device use it. MODEL is as for
    predict.

    \b
    deploy-prune profile torchvision:mobilenet_v2 --target host --input 3,224,224
    deploy-prune profile resnet20 --target ./my-pi.yaml --input 3,32,32 --classes 10 --out table.json
    deploy-prune profile runs/mobilenet/host/50% --target host --device ssh://pi@raspberrypi.local --json
    """  # noqa: D301  (click's mark of lines that are kept)
    from deploy_prune import profiling
    from deploy_prune.console import rich_progress
    from deploy_prune.predicting import parse_shape

    with rich_progress() as progress:
        found = profiling.profile(shape=parse_shape(shape) if shape else None, model=model, progress=progress, **how)
    text = json.dumps(found.as_json(), indent=1)
    if out:
        write_text(out, text + "\n")
    say(text if as_json else str(found))


@main.command(epilog="Example: deploy-prune report runs/mobilenet")
@run_folder
def report(run: Path) -> None:
    """Write report.html of the run folder RUN."""
    from deploy_prune.report.page import write_page
    from deploy_prune.runfolder import is_run

    with hold(run) if is_run(run) else nullcontext():
        say(write_page(run))


@main.group(invoke_without_command=True, epilog="Example: deploy-prune targets")
@click.pass_context
def targets(context: click.Context) -> None:
    """List the devices, and whether latency is measured or predicted there; or make a file for a new one."""
    if context.invoked_subcommand is None:
        from deploy_prune.console import output, targets_table
        from deploy_prune.latency.targets import list_targets

        output().print(targets_table(list_targets()))


@targets.command(epilog="Example: deploy-prune targets new my-pi --ssh pi@raspberrypi.local")
@click.argument("name")
@click.option("--ssh", "host", metavar="[USER@]HOST[:PORT]", help="Reach it by ssh; a path to its python3 may follow.")
@click.option("--adb", "serial", metavar="SERIAL", help="Reach it by adb; `adb devices` has serial numbers.")
@click.option("--program", type=file_option, help="A benchmark program to start there, if it has no Python.")
@click.option("--out", type=file_option, help="Write it to this file instead of NAME.yaml.")
def new(name: str, host: str | None, serial: str | None, program: Path | None, out: Path | None) -> None:
    """Ask a device what it is and write its target file, NAME.yaml: use it as a target's name in recipes.

    \b
    deploy-prune targets new my-pi --ssh pi@raspberrypi.local
    deploy-prune targets new my-phone --adb R58M12ABCDE --program ./benchmark_model
    deploy-prune recipe mobilenet --set targets=[./my-pi.yaml]
    """  # noqa: D301  (click's mark of lines that are kept)
    if (host is None) == (serial is None):
        message = "give either --ssh or --adb"
        raise click.UsageError(message)
    from deploy_prune.latency.probe import new_target

    device = f"adb://{serial}" if host is None else f"ssh://{host}"
    say(new_target(name, device, out or Path(f"{name}.yaml"), program))


@main.command(epilog="Example: deploy-prune schema --out recipe.schema.json")
@click.option("--out", type=result_file, help="Write it to this file instead of standard output.")
def schema(out: Path | None) -> None:
    """Print the JSON schema of recipes, for editors."""
    from deploy_prune.recipe import schema as recipe_schema

    text = json.dumps(recipe_schema(), indent=2)
    write_text(out, text + "\n") if out else say(text)


@main.command(epilog="Example: deploy-prune cache --clear latency")
@click.option("--clear", "kind", is_flag=False, flag_value="all", help="Remove everything, or one kind, as listed.")
def cache(kind: str | None) -> None:
    """List what was measured and found before, how large and how old it is; or remove it.

    Measured latencies are used for 30 days; `recipe --fresh` uses none of them.
    """
    from deploy_prune.commands.outcome import clear_cache, show_cache

    show_cache() if kind is None else clear_cache(kind)


if __name__ == "__main__":
    sys.exit(main())
