"""The command that follows one that has ended."""

from __future__ import annotations

import shlex
import sys

from lightning_sora.commands.one_line import PROGRAM
from lightning_sora.redaction import redact


def tell_next(*command: str) -> None:
    """Says on standard error which command comes next, as it is to be typed."""
    sys.stderr.write(f"next: {redact(shlex.join([PROGRAM, *command]))}\n")
