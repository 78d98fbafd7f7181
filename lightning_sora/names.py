"""Names of files as systems hold them and as users write them: neither need be text, nor whole."""

from __future__ import annotations

import os
import re
from pathlib import Path

_ON_A_HUB = re.compile(r"[\w.\-]+/[\w.\-]+")
_HOME = re.compile(r"((?:\w+:)?)~[\w.\-]*(?:/|$)")
_BYTE = re.compile(rb"\\x([89a-f][0-9a-f])")


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
    """A path that begins with ``~/``, or with a word and a colon before it as in ``hf:~/``, with the home folder in its
    place, as a shell writes it; any other text as it is."""
    found = _HOME.match(text)
    return f"{found[1]}{os.path.expanduser(text[found.end(1) :])}" if found else text


def is_hub_name(name: str) -> bool:
    """Whether a name can be one on a hub of models, OWNER/NAME.

    Example:
        >>> is_hub_name("owner/model"), is_hub_name("../model/vae")
        (True, False)
    """
    return _ON_A_HUB.fullmatch(name) is not None


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
