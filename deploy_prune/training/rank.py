"""A process of several that train together; started by ``processes``."""

from __future__ import annotations

import json
import logging
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist

from deploy_prune.system.shell import atomic
from deploy_prune.training.processes import LEFT, device_of_rank
from deploy_prune.training.ranks import DoneError, LeftError, Ranks

PATIENCE: Final = timedelta(days=30)
"""Who started us sees at once that one of us has ended; so nobody has to guess by time."""
Tell = Callable[..., None]


def main(told: Mapping[str, Any]) -> None:
    """Do the work; then wait until standard input ends, so that nobody leaves before the first one is done."""
    folder, rank = Path(told["folder"]), int(told["rank"])
    tell = _teller(told["pipe"]) if rank == 0 else _silent
    try:
        ranks = join(folder, rank, told["size"], told["device"])
        work, given = pickle.loads((folder / "work").read_bytes())  # noqa: S301
        try:
            work(ranks, tell, *given)
        except DoneError:
            pass
        else:
            assert rank == 0, "this work takes no steps"
        tell("done")
    except LeftError:
        _end(LEFT)
    except BaseException as error:
        with atomic(folder / f"error-{rank}") as temporary:
            temporary.write_bytes(_packed(error))
        _end(1)
    sys.stdin.read()
    dist.destroy_process_group()


def join(folder: Path, rank: int, size: int, device: str) -> Ranks:
    """Meet the others."""
    here = torch.device(device_of_rank(rank, device))
    if here.type == "cuda":
        torch.cuda.set_device(here)
    dist.init_process_group(
        "nccl" if here.type == "cuda" else "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank,
        world_size=size, timeout=PATIENCE,
    )  # fmt: skip
    return Ranks(rank=rank, size=size, device=here)


def _teller(pipe: int) -> Tell:
    """Tells over the pipe; warnings and what is logged, too."""
    out = os.fdopen(pipe, "w", encoding="utf-8")
    os.set_inheritable(pipe, False)

    def tell(*what: Any) -> None:
        out.write(json.dumps(what) + "\n")
        out.flush()

    class Telling(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tell("log", record.name, record.levelno, record.getMessage())

    logging.getLogger().addHandler(Telling())
    logging.captureWarnings(capture=True)
    return tell


def _silent(*what: Any) -> None:
    pass


def _packed(error: BaseException) -> bytes:
    """The error and its traceback; of one that can't be sent, its class's name and message."""
    text = "".join(traceback.format_exception(error))
    try:
        packed = pickle.dumps((error, text))
        pickle.loads(packed)  # noqa: S301
    except Exception:  # whatever the error's own code raises
        packed = pickle.dumps((RuntimeError(f"{type(error).__name__}: {error}"), text))
    return packed


def _end(code: int) -> None:
    """Now, without waiting for anybody; what we have started ends with us."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
