"""The commands about one network: draw it, predict its latency, measure its latency table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from deploy_prune.commands.completion import target_names
from deploy_prune.commands.examples import examples
from deploy_prune.commands.frame import a_target, network_inputs, result_file, say
from deploy_prune.system.shell import write_text


@click.command(epilog=examples("show"))
@click.argument("source", metavar="ARCHITECTURE_OR_RUN_FOLDER", type=click.Path(path_type=Path))
@click.option(
    "--target", shell_complete=target_names, help="Predict latency on this target too, see `deploy-prune targets`."
)
@click.option(
    "--trust", is_flag=True, help="Allow code of your own (module:callable) that the architecture names to run."
)
@network_inputs
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
def show(source: Path, target: str | None, trust: bool, inputs: Sequence[str], as_json: bool) -> None:
    """Draw an architecture layer by layer: channels, MACs, latency.

    Reads an architecture.json, or that of a run's TARGET/BUDGET folder. Weights are not needed. MACs are
    multiply-accumulates. With --target, each layer's latency is predicted: on an attached device by a latency table,
    which is measured if there is none yet, else by the rates in the target's file.
    """
    from deploy_prune.commands.given_inputs import parse_inputs
    from deploy_prune.commands.show import overview
    from deploy_prune.report.show import overview_tables
    from deploy_prune.report.terminal import output

    found = overview(source, target, trust, parse_inputs(inputs))
    if as_json:
        say(json.dumps(found.as_json(), indent=1))
    else:
        output().print(*overview_tables(found), sep="\n")


@click.command(epilog=examples("predict"))
@click.argument("model")
@a_target
@network_inputs
@click.option(
    "--trust", is_flag=True, help="Allow code of your own (module:callable) that the architecture names to run."
)
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
def predict(model: str, target: str, inputs: Sequence[str], trust: bool, as_json: bool) -> None:
    """Predict a network's latency on a device that isn't attached.

    Shows the latency and how far off it may be. MODEL is torchvision:NAME, timm:NAME, ultralytics:NAME, an
    architecture.json or a run's TARGET/BUDGET folder; with --trust also module:callable, a function of your own that
    builds it. A detector is looked at without what only training or decoding needs.
    """
    from deploy_prune.commands import predict
    from deploy_prune.commands.given_inputs import parse_inputs

    found = predict.predicted(model, target, parse_inputs(inputs), trust)
    say(json.dumps(found.as_json(), indent=1) if as_json else str(found))


@click.command(epilog=examples("profile"))
@click.argument("model")
@a_target
@click.option("--device", help="Measure there: local, ssh://USER@HOST[:PORT] or adb://SERIAL.")
@network_inputs
@click.option(
    "--classes", type=click.IntRange(min=1), default=1000, show_default=True, help="Number of classes of the network."
)
@click.option(
    "--variants", type=click.IntRange(min=1), default=8, show_default=True, help="Networks that the table is made of."
)
@click.option(
    "--trust", is_flag=True, help="Allow code of your own (module:callable) that the architecture names to run."
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--out", type=result_file, help="Also write the JSON to this file.")
def profile(model: str, inputs: Sequence[str], as_json: bool, out: Path | None, **how: Any) -> None:
    """Measure a network's latency table on a device, and how good it is.

    Takes minutes. Networks of random widths are measured: some to make the table, as many others to check it. Recipes
    for the same network, classes, input size and device use the table. MODEL is as for predict.
    """
    from deploy_prune.commands import profile
    from deploy_prune.commands.given_inputs import parse_inputs
    from deploy_prune.report.terminal import rich_progress

    with rich_progress() as progress:
        found = profile.profile(inputs=parse_inputs(inputs), model=model, progress=progress, **how)
    text = json.dumps(found.as_json(), indent=1)
    if out:
        write_text(out, text + "\n")
    say(text if as_json else str(found))
