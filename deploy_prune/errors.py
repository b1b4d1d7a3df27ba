"""Every error a user can meet: one class, one exit code; the message names the cause and what to change."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches
from os.path import commonprefix

from deploy_prune.text import MAX_MESSAGE, printable


class DeployPruneError(Exception):
    """Base of all errors that are reported as one sentence, without a traceback.

    The message may quote what a file or a device says: it is cut, and made printable, here.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message, MAX_MESSAGE))


class RecipeError(DeployPruneError):
    """The recipe can't be read: unknown key, wrong type, bad value. The message has file and line."""

    exit_code = 10


class ModelError(DeployPruneError):
    """The network can't be built: unknown source or name, or its builder raised."""

    exit_code = 11


class WeightsError(DeployPruneError):
    """The weights file is missing, unsafe (pickled code), truncated, or does not fit the network."""

    exit_code = 12


class DataError(DeployPruneError):
    """The data set is missing, empty, or too small for what the recipe asks."""

    exit_code = 13


class TargetError(DeployPruneError):
    """The target is unknown or its description in edge_targets/ is wrong."""

    exit_code = 14


class BudgetError(DeployPruneError):
    """The budget can't be read, can't be met by any allowed choice of channels, or is missed by what was made."""

    exit_code = 15


class SurgeryError(DeployPruneError):
    """The network can't be traced or cut."""

    exit_code = 16


class ArchitectureError(DeployPruneError):
    """architecture.json is damaged, hostile, or does not fit the network's definition."""

    exit_code = 17


class VerificationError(DeployPruneError):
    """The cut network differs from the masked one, or the comparison would prove nothing."""

    exit_code = 18


class TrainingError(DeployPruneError):
    """Training can't go on: the loss is not finite."""

    exit_code = 19


class ExportError(DeployPruneError):
    """The artifact can't be written."""

    exit_code = 20


class ParityError(DeployPruneError):
    """The artifact's output differs from the network's."""

    exit_code = 21


class MeasurementError(DeployPruneError):
    """The artifact can't be run or timed on the target."""

    exit_code = 22


class MissingDependencyError(DeployPruneError):
    """An optional package is not installed. The message has the pip command."""

    exit_code = 23


class RunFolderError(DeployPruneError):
    """A folder or file of results is missing, damaged, in use by another process, or can't be written."""

    exit_code = 24


class CommandError(DeployPruneError):
    """An external command failed or timed out. The message has its standard error."""

    exit_code = 25


class BundleError(DeployPruneError):
    """The bundle is damaged, edited after it was made, unsafe to unpack, or not there."""

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
