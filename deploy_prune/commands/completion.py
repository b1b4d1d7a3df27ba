"""Names that a shell completes. Click brings the scripts for bash, zsh and fish, which call the command itself."""

from __future__ import annotations

from typing import Literal

import click
from click.shell_completion import CompletionItem

from deploy_prune.system.shipped import shipped_files


def recipe_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Recipes that are shipped; files too, for a recipe may be a path."""
    return _names("recipes", incomplete)


def target_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Targets that are shipped; files too, for a target may be a path."""
    return _names("edge_targets", incomplete)


def _names(kind: Literal["recipes", "edge_targets"], incomplete: str) -> list[CompletionItem]:
    """Files come first: bash forgets the names that came before them."""
    found = [CompletionItem(name) for name in shipped_files(kind) if name.startswith(incomplete)]
    return [CompletionItem(incomplete, type="file"), *found]
