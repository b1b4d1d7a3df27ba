"""How every command is started and how it fails, and the options that several have."""

from __future__ import annotations

import json
import sys
import traceback
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy_prune.commands.completion import target_names
from deploy_prune.errors import MAX_MESSAGE, DeployPruneError, RunFolderError, printable
from deploy_prune.system.outputs import require_outside_runs
from deploy_prune.system.shell import shown, write_text

if TYPE_CHECKING:
    from deploy_prune.recipe.parts import Recipe

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
UNEXPECTED = 1


class Commands(click.Group):
    """A group whose commands fail with one line on standard error and an exit code, never with a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; the one place where errors become text."""
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a terminal or a name may have another encoding
        try:
            found = super().invoke(ctx)
            sys.stdout.flush()
            return found
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            _stop("interrupted; run the same command again to resume", INTERRUPTED)
        except Exception as error:
            if ctx.params["debug"]:
                traceback.print_exc()
            if isinstance(error, DeployPruneError):
                _stop(f"error: {error}", error.exit_code)
            if (reason := of_the_system(error)) is not None:
                _stop(f"error: {reason}", RunFolderError.exit_code)
            kind = type(error).__name__
            _stop(f"error: unexpected {kind}: {error} (run again with deploy-prune --debug to see where)", UNEXPECTED)


def say(text: object, err: bool = False) -> None:
    """Print lines that may quote a file or a device, without control characters."""
    click.echo(printable(text, keep="\n"), err=err)


def say_first(doing: str, recipe: Recipe) -> None:
    """Say what the command does, before PyTorch is imported, which can take seconds."""
    say(
        f"{doing} {recipe.name}: {recipe.model.source} on {recipe.loaded_by}, {', '.join(recipe.all_budgets)} on "
        f"{', '.join(recipe.targets)}. Loading PyTorch ...",
        err=True,
    )


def of_the_system(error: Exception) -> str | None:
    """A sentence for errors of files and disks, which any command can have; None for faults of this program."""
    if isinstance(error, UnicodeEncodeError) and error.encoding == "utf-8":
        return f"{shown(error.object)[:200]!r} has characters that are no UTF-8; rename what has that name."
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # pathlib has no class of its own for it
        return "There is no home folder for ~: set HOME, or write the whole path."
    if not isinstance(error, OSError):
        return None
    place = f"{shown(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return f"{place}{error.strerror or error}."


def _stop(sentence: str, code: int) -> None:
    click.echo(f"deploy-prune: {printable(' '.join(sentence.split()), 2 * MAX_MESSAGE)}", err=True)
    with suppress(OSError):  # what can't be written now can't be written when Python ends, either
        sys.stdout.flush()
    raise click.exceptions.Exit(code)


settings = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a key, as in train.lr=0.1; repeatable."
)
network_inputs = click.option(
    "--input", "inputs", multiple=True, metavar="SIZES",
    help="The size of one example: 3x224x224 for a picture, 1x16000 for sound, int64:77 for tokens; repeat it for each "
    "input of the network. An architecture has its own.",
)  # fmt: skip
a_target = click.option(
    "--target", required=True, shell_complete=target_names,
    help="A target: a name that `deploy-prune targets` lists, or a file.",
)  # fmt: skip
run_folder = click.argument("run", type=click.Path(path_type=Path))
file_option = click.Path(dir_okay=False, path_type=Path)


class ResultFile(click.Path):
    """A file to write: not in a run folder, and no existing file of another kind."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, if it may be written."""
        path = Path(str(super().convert(value, param, ctx)))
        require_outside_runs(path)
        if path.is_file() and path.stat().st_size and not _is_json(path):
            message = f"{shown(path)} exists already and is not a result of this command; choose another file."
            raise RunFolderError(message)
        return path


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


result_file = ResultFile(dir_okay=False, path_type=Path)
json_file = click.option("--json", "json_file", type=result_file, help="Also write the results to this file.")


def write_json(path: Path | None, value: Any) -> None:
    """Write a result to the file, if there is one to write to."""
    if path:
        write_text(path, json.dumps(value, indent=2) + "\n")
