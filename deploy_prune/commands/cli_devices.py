"""The commands about devices and what is known of them, and for editors."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import click

from deploy_prune.commands.examples import examples
from deploy_prune.commands.frame import file_option, result_file, say
from deploy_prune.errors import MissingDependencyError
from deploy_prune.system.shell import write_text
from deploy_prune.types import silent


@click.group(
    invoke_without_command=True,
    epilog=examples("targets"),
)
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
@click.pass_context
def targets(context: click.Context, as_json: bool) -> None:
    """List the targets (devices), or describe a new one.

    The list says for each whether its latency is measured or predicted, and how far off predictions are.
    """
    if context.invoked_subcommand is None:
        from deploy_prune.device.targets import list_targets
        from deploy_prune.report.terminal import output, targets_table

        found = list_targets()
        if as_json:
            say(json.dumps([asdict(target) for target in found], indent=1))
        else:
            output().print(targets_table(found))


@targets.command(epilog=examples("targets new"))
@click.argument("name")
@click.option("--ssh", "host", metavar="[USER@]HOST[:PORT]", help="Reach it by ssh; a path to its python3 may follow.")
@click.option("--adb", "serial", metavar="SERIAL", help="Reach it by adb; `adb devices` lists serial numbers.")
@click.option("--program", type=file_option, help="A benchmark program to start there, if the device has no Python.")
@click.option("--out", type=file_option, help="Write it to this file instead of NAME.yaml.")
def new(name: str, host: str | None, serial: str | None, program: Path | None, out: Path | None) -> None:
    """Ask a device what it is, and write its target file.

    The file is NAME.yaml, or --out. Its path is used like a target's name.
    """
    if (host is None) == (serial is None):
        message = "give either --ssh or --adb"
        raise click.UsageError(message)
    from deploy_prune.device.new_target import new_target

    device = f"adb://{serial}" if host is None else f"ssh://{host}"
    say(new_target(name, device, out or Path(f"{name}.yaml"), program))


@click.command(epilog=examples("doctor"))
@click.option("--try", "attempt", is_flag=True, help="Also write and run a small network in each format.")
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
def doctor(attempt: bool, as_json: bool) -> None:
    """Look for what is missing or wrong on this machine.

    Lists packages, formats and their runtimes, ssh and adb with the phones that it sees, the GPU, what disturbs
    measurements here, and the folders that are written to; with what to do about it. Fails if something is wrong.
    """
    from deploy_prune.commands.doctor import findings
    from deploy_prune.report.doctor import doctor_tables
    from deploy_prune.report.terminal import output, rich_progress

    with nullcontext(silent) if as_json else rich_progress() as progress:
        found = list(findings(progress, attempt=attempt))
    if as_json:
        say(json.dumps([asdict(one) for one in found], indent=1))
    else:
        output().print(*doctor_tables(found), sep="\n")
    wrong = [one.name for one in found if one.state == "wrong"]
    if wrong:
        message = f"{len(wrong)} of {len(found)} are wrong: {', '.join(wrong)}."
        raise MissingDependencyError(message)


@click.command(epilog=examples("schema"))
@click.option("--out", type=result_file, help="Write it to this file instead of standard output.")
def schema(out: Path | None) -> None:
    """Print the recipe's JSON schema, for editors."""
    from deploy_prune.recipe.tasks import schema as recipe_schema

    text = json.dumps(recipe_schema(), indent=2)
    write_text(out, text + "\n") if out else say(text)


@click.command(epilog=examples("cache"))
@click.option(
    "--clear", "kind", is_flag=False, flag_value="all", help="Remove one kind, as listed; without KIND, everything."
)
def cache(kind: str | None) -> None:
    """List what was measured and found before, or remove it.

    Measured latencies are used for 30 days. `deploy-prune recipe --fresh` uses none of them.
    """
    from deploy_prune.commands.outcome import clear_cache, show_cache

    show_cache() if kind is None else clear_cache(kind)
