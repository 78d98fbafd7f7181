"""Text as files hold it: UTF-8 with or without a byte-order mark, and JSON of any depth."""

from __future__ import annotations

import codecs
import json
import os
import reprlib
from pathlib import Path
from typing import Any

from lightning_sora.errors import SoraError

MARK = "\ufeff"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decoded(content: bytes, origin: object) -> str:
    """The text of a file without its byte-order marks: UTF-8, or UTF-16 where a mark says so.

    Files that were put together of several have marks inside too.

    Raises:
        SoraError: it is neither.
    """
    try:
        text = content.decode("utf-16" if content.startswith(_UTF16) else "utf-8")
    except UnicodeDecodeError as problem:
        raise SoraError(f"{origin}: not UTF-8 text ({problem.reason}); save it as UTF-8") from problem
    return text.replace(MARK, "")


def read_text(path: Path) -> str:
    """A text file, as of :func:`decoded`.

    Raises:
        SoraError: it cannot be read, or is no text.
    """
    if not os.path.isfile(path):  # a pipe would be waited for
        raise SoraError(f"{path}: no such file, or none that can be read as text")
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise SoraError(f"{path}: cannot be read ({problem.strerror}); give a text file in UTF-8") from problem
    return decoded(content, path)


def parsed_json(text: str, origin: object, line: int | None = None) -> Any:
    """The value of a JSON text.

    Args:
        line: of the file, where the text is that line; None where it is the whole file.

    Raises:
        SoraError: it is none, or nested beyond reading.
    """
    at = f"{origin}, line {line}" if line is not None else f"{origin}"
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        at = at if line is not None else f"{origin}, line {problem.lineno}"
        raise SoraError(f"{at}: not JSON ({problem.msg})") from problem
    except RecursionError:
        raise SoraError(f"{at}: its values are nested too deeply to be read; write them flat") from None
    except ValueError as problem:  # a number of thousands of digits
        raise SoraError(f"{at}: a value cannot be read ({str(problem).partition(';')[0]})") from problem


def brief(value: object) -> str:
    """A value for a message, whatever its length and depth."""
    return _BRIEF.repr(value)


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 120
