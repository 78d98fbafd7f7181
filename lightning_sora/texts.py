"""Text as files hold it, with or without byte-order mark; JSON of any depth; paths as systems and users write them."""

from __future__ import annotations

import codecs
import json
import os
import re
import reprlib
from pathlib import Path
from typing import Any

from lightning_sora.errors import SoraError

MARK = "\ufeff"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_HOME = re.compile(r"~[\w.\-]*(?:/|$)")
_BYTE = re.compile(rb"\\x([89a-f][0-9a-f])")


def decoded(content: bytes, place: object) -> str:
    """The text of a file without its byte-order marks: UTF-8, or UTF-16 where a mark says so.

    Files that were put together of several have marks inside too.

    Raises:
        SoraError: it is neither.
    """
    try:
        text = content.decode("utf-16" if content.startswith(_UTF16) else "utf-8")
    except UnicodeDecodeError as problem:
        raise SoraError(f"{place}: not UTF-8 text ({problem.reason}); save it as UTF-8") from problem
    return text.replace(MARK, "")


def read_text(path: Path) -> str:
    """A text file, as of :func:`decoded`.

    Raises:
        SoraError: it cannot be read, or is no text.
    """
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise SoraError(f"{path}: cannot be read ({problem.strerror}); give a text file in UTF-8") from problem
    return decoded(content, path)


def parsed_json(text: str, place: object, line: int | None = None) -> Any:
    """The value of a JSON text.

    Args:
        line: of the file, where the text is that line; None where it is the whole file.

    Raises:
        SoraError: it is none, or nested beyond reading.
    """
    where = f"{place}, line {line}" if line is not None else f"{place}"
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        where = where if line is not None else f"{place}, line {problem.lineno}"
        raise SoraError(f"{where}: not JSON ({problem.msg})") from problem
    except RecursionError:
        raise SoraError(f"{where}: its values are nested too deeply to be read; write them flat") from None
    except ValueError as problem:  # a number of thousands of digits
        raise SoraError(f"{where}: a value cannot be read ({str(problem).partition(';')[0]})") from problem


def brief(value: object) -> str:
    """A value for a message, whatever its length and depth."""
    return _BRIEF.repr(value)


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 120


def shown(name: str) -> str:
    r"""A file's name as text that can be printed and stored: bytes that are no UTF-8 as ``\xe9``."""
    if _is_text(name):
        return name
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # halves of pairs, which no system gives but JSON may hold
        return name.encode("utf-8", "backslashreplace").decode()


def named(text: str) -> str:
    r"""The name of a file that :func:`shown` tells as this text: ``\xe9`` becomes the byte."""
    if "\\x" not in text or not _is_text(text):
        return text
    return os.fsdecode(_BYTE.sub(lambda found: bytes([int(found[1], 16)]), text.encode()))


def at_home(text: str) -> str:
    """A path that begins with ``~/``, or with ``hf:~/``, with the home folder in its place, as a shell writes it; any
    other text as it is."""
    prefix = "hf:" if text.startswith("hf:") else ""
    path = text.removeprefix(prefix)
    return f"{prefix}{os.path.expanduser(path)}" if _HOME.match(path) else text


def local_path(path: str | Path) -> Path:
    """A path as a user writes it: from the home folder, or as :func:`shown`."""
    text = at_home(str(path))
    return Path(text if os.path.lexists(text) else named(text))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
