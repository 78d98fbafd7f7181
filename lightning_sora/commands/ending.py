"""What a training command says as it ends: where things are, the run, and what comes next."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lightning_sora.commands.following import tell_next
from lightning_sora.lab.training import Trained, short_path
from lightning_sora.redaction import redact

#: Options of a fit that do not belong to what follows it.
OWN = ("--ckpt_path", "--trainer.max_steps", "--trainer.max_epochs", "--trainer.max_time")


def tell(trained: Trained, arguments: Sequence[str]) -> None:
    """Says where the outputs of a command are, on the first rank alone.

    Args:
        trained: what the command has left.
        arguments: of it, from the command on.
    """
    if not trained.speaks or (trained.command not in ("fit", "test") and trained.asked is None):
        return
    if where := str(trained):
        sys.stderr.write(f"{redact(where)}\n")
    if trained.command == "fit" and trained.checkpoints is not None:
        tell_next("test", *_without(arguments[1:]), "--ckpt_path", "last")
    elif trained.command == "test" and trained.checkpoint is not None and hasattr(trained.model, "sample"):
        tell_next("sample", "--ckpt", str(short_path(trained.checkpoint)), "--prompt", "A PROMPT")


def _without(arguments: Sequence[str]) -> list[str]:
    """The flags that say what the model and the data are."""
    found: list[str] = []
    skip = False
    for argument in arguments:
        flag, equals, _ = argument.partition("=")
        if skip or flag in OWN:
            skip = not skip and not equals
            continue
        found.append(argument)
    return found
