"""What a training command says as it ends: where things are, the run, and what comes next."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_sora.redaction import redact

#: Options of a fit that do not belong to what follows it.
OWN = ("--ckpt_path", "--trainer.max_steps", "--trainer.max_epochs", "--trainer.max_time")


def tell(cli: Any, arguments: Sequence[str]) -> None:
    """Says where the outputs of a command are, on the first rank alone.

    Args:
        cli: the command line that has run.
        arguments: of it, from the command on.
    """
    trainer, command = cli.trainer, arguments[0]
    if not trainer.is_global_zero or trainer.fast_dev_run or command not in ("fit", "test"):
        return
    lines = []
    folder = next((Path(c.last_model_path).parent for c in trainer.checkpoint_callbacks if c.last_model_path), None)
    if command == "fit" and folder is not None:
        kept = sorted(path.name for path in folder.glob("*.ckpt"))
        lines.append(f"checkpoints: {_short(folder)}: {', '.join(kept)}")
    for tracker in (one for one in trainer.loggers if hasattr(one, "run_id") and hasattr(one, "uri")):
        lines.append(f"run: {tracker.run_name} in {tracker.uri}; `lightning-sora ui` shows it")
    if command == "fit" and folder is not None:
        lines.append(f"next: {shlex.join(['lightning-sora', 'test', *_without(arguments[1:]), '--ckpt_path', 'last'])}")
    elif command == "test" and cli.config_init["test"].get("ckpt_path") and hasattr(cli.model, "sample"):
        file = _short(Path(cli.config_init["test"]["ckpt_path"]))
        lines.append(f"next: lightning-sora sample --ckpt {shlex.quote(str(file))} --prompt 'TEXT'")
    sys.stderr.write("".join(f"{redact(line)}\n" for line in lines))


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


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
