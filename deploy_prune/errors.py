"""Every error that a user can meet: one class and one exit code each.

A message names the cause and what to change. A class's docstring says what happened, then what to do: the errors page
of the documentation is made from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches
from os.path import commonprefix
from typing import Final

MAX_MESSAGE: Final = 2000
"""Characters of an error's message: a screen of them; the rest of a longer one is cut."""


def printable(text: object, limit: int | None = None, keep: str = "") -> str:
    """The text without control characters: line ends and tabs become spaces, all others "?".

    That covers what moves the cursor or the writing direction, and halves of characters, which no terminal can be
    told. ``limit``: characters, beyond which "..." stands for the rest. ``keep``: characters that are left as they are.
    """
    told = str(text)
    short = told if limit is None else told[:limit]
    clean = "".join(c if c.isprintable() or c in keep else " " if c.isspace() else "?" for c in short)
    return clean + ("..." if len(short) < len(told) else "")


class DeployPruneError(Exception):
    """Base of all errors that are reported as one sentence, without a traceback.

    The message may quote what a file or a device says: it is cut, and made printable, here.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message, MAX_MESSAGE))


class RecipeError(DeployPruneError):
    """The recipe can't be read: an unknown key, a wrong type or a bad value.

    Change the line that the message names. `deploy-prune schema` lists every key.
    """

    exit_code = 10


class ModelError(DeployPruneError):
    """The network can't be built: its source or name is unknown, or the function that builds it failed.

    Check `model.source` and `model.args`.
    """

    exit_code = 11


class WeightsError(DeployPruneError):
    """The weights file is missing, damaged, contains code, or doesn't fit the network.

    Check `model.weights`; `model.weights_key` chooses an entry, `model.head: new` gives new class layers.
    """

    exit_code = 12


class DataError(DeployPruneError):
    """The data is missing, damaged, empty, or too small for what the recipe asks.

    Check `data.root`, the classes and `data.shots`; `data.unreadable: skip` leaves damaged images out.
    """

    exit_code = 13


class TargetError(DeployPruneError):
    """The target is unknown, or its file is wrong.

    `deploy-prune targets` lists the known ones; change the line that the message names in a file of your own.
    """

    exit_code = 14


class BudgetError(DeployPruneError):
    """The budget can't be read or met, or the finished artifact misses it.

    Ask for a larger budget or another metric. `deploy-prune check` shows the smallest that can be reached.
    """

    exit_code = 15


class SurgeryError(DeployPruneError):
    """The network can't be traced, or its channels can't be removed.

    Leave out the part that the message names with `prune.skip`, or raise `prune.trace_timeout_s`.
    """

    exit_code = 16


class ArchitectureError(DeployPruneError):
    """architecture.json is damaged, unsafe, or doesn't fit the network's code.

    Take it from the run again, with the same version of the code; `--trust` allows code of your own.
    """

    exit_code = 17


class VerificationError(DeployPruneError):
    """The slim network computes something else than the masked one, or the comparison proves nothing.

    Leave out the part that the message names with `prune.skip`, and please report it.
    """

    exit_code = 18


class TrainingError(DeployPruneError):
    """Training can't go on: the loss is not finite, the device isn't there, or a process of several has ended.

    Lower the learning rate that the message names, or change `device` or `processes`.
    """

    exit_code = 19


class ExportError(DeployPruneError):
    """The artifact can't be written.

    Change the format, precision or `export` setting that the message names.
    """

    exit_code = 20


class ParityError(DeployPruneError):
    """The artifact's output differs from the network's by more than its format may.

    Use a higher precision: fp16 instead of int8, or fp32.
    """

    exit_code = 21


class MeasurementError(DeployPruneError):
    """The artifact can't be run or timed on the target.

    Check that the device is reachable and idle, and that the runtime the message names works there.
    """

    exit_code = 22


class MissingDependencyError(DeployPruneError):
    """An optional package is not installed.

    Run the pip command in the message.
    """

    exit_code = 23


class RunFolderError(DeployPruneError):
    """A folder or file of results is missing, damaged, in use by another process, or can't be written.

    Check the path; `--fresh` does a damaged run again, `--wait` waits for the other process.
    """

    exit_code = 24


class CommandError(DeployPruneError):
    """An external command failed or took too long.

    The message has what it printed.
    """

    exit_code = 25


class BundleError(DeployPruneError):
    """The bundle is missing, damaged, changed after it was made, or unsafe to unpack.

    Get it again from the one who made it.
    """

    exit_code = 26


def kind_of(error: DeployPruneError) -> str:
    """The name of the class of this module that the error is of."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == __name__)


def of_kind(name: str | None) -> type[DeployPruneError]:
    """The class of this name, as ``kind_of`` has it; that of measuring where no cause was recorded."""
    return next((kind for kind in DeployPruneError.__subclasses__() if kind.__name__ == name), MeasurementError)


def perhaps(word: str, known: Iterable[str]) -> str:
    """Return " Perhaps you meant 'x'?" with the known word nearest to ``word``, or "" when none is near."""
    names = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), names, n=3)
    ratios = {name: SequenceMatcher(None, name, word.lower()).ratio() for name in near}
    best = max(near, key=lambda name: (ratios[name], len(commonprefix([name, word.lower()]))), default=None)
    return "" if best is None else f" Perhaps you meant {names[best]!r}?"
