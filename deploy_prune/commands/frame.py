"""How every command is started and how it fails, and the options that several have."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import click

from deploy_prune.errors import DeployPruneError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
UNEXPECTED = 1


class Commands(click.Group):
    """A group whose commands fail with one line on standard error and an exit code, never with a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; the one place where errors become text."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            _stop("interrupted; the same command goes on from the last finished stage", INTERRUPTED)
        except Exception as error:
            if ctx.params["debug"]:
                traceback.print_exc()
            if isinstance(error, DeployPruneError):
                _stop(f"error: {error}", error.exit_code)
            kind = type(error).__name__
            _stop(f"error: unexpected {kind}: {error} (run again with deploy-prune --debug to see where)", UNEXPECTED)


def _stop(sentence: str, code: int) -> None:
    click.echo(f"deploy-prune: {' '.join(sentence.split())}", err=True)
    raise click.exceptions.Exit(code)


settings = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a key, as in train.lr=0.1; repeatable."
)
run_folder = click.argument("run", type=click.Path(path_type=Path))
file_option = click.Path(dir_okay=False, path_type=Path)
