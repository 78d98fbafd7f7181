"""The command that follows one that has ended."""

from __future__ import annotations

import shlex
import sys

from lightning_sora.commands.one_line import PROGRAM
from lightning_sora.redaction import redact


def tell_next(*command: str) -> None:
    """Says on standard error which command comes next, as it is to be typed."""
    sys.stderr.write(f"next: {redact(' '.join(map(_word, [PROGRAM, *command])))}\n")


def _word(text: str) -> str:
    """A word of a shell; specs, which hold single quotes, stand readable between double ones."""
    plain = "'" in text and not set(text) & set('"$`\\!')
    return f'"{text}"' if plain else shlex.quote(text)
