"""Secrets, kept out of all that is printed, logged, written or raised: one rule for every place.

What counts as a secret: the password in a URL, a signature or token in its query, the value of an option that is
named as a secret, and the value of an environment variable that is. A recipe should take it from the environment, as
``${oc.env:NAME}``, which is kept as such.
"""

from __future__ import annotations

import errno
import functools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

#: What stands in the place of a secret.
HIDDEN = "***"
#: Shorter values of the environment are words that occur elsewhere.
SECRET_LENGTH, INTERPOLATED_LENGTH = 6, 8

_NAMES = (
    r"password|passwd|passphrase|secret|api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key|account[_-]?key|"
    r"access[_-]?token|auth[_-]?token|session[_-]?token|security[_-]?token|hf[_-]?token|sas[_-]?token|client[_-]?secret|"
    r"connection[_-]?string"
)
# A password may hold a slash, as keys of stores do; "host:80/a@b" has none.
_USERINFO = re.compile(
    r"(:/{1,2}(?:\$\{[^}\s]*\}|[^\s/?#:@'\"$])*:)(?!\d{1,5}/)(?!\*\*\*@|\$\{[^}\s]*\}@)(?:[^\s/]{1,500}|\S{1,500}?)(?=@)"
)
_TOKEN_AS_USER = re.compile(r"((?:https?|ftp):/{1,2})(?!\*\*\*@)[^\s/?#:@'\"$]+(?=@)")
_QUERY = re.compile(r"([?&;]([\w.\-]{1,100})=)(?!\*\*\*|\$\{)[^&;\s#'\"]+")
_QUERY_NAME = re.compile(rf".*(?:signature|token|credential|{_NAMES})|sig|key|auth", re.IGNORECASE)
_QUOTED = re.compile(rf"((?:{_NAMES})['\"]?\s*[=:]\s*(?P<quote>['\"]))(?!\$\{{)(?:(?!(?P=quote)).)+", re.I)
_FLAG = re.compile(r"((?<![\w\-])--([\w.\-]{1,200})(?:=|\s+))(?![-'\"]|\$\{|\*\*\*)\S+")
# A line of YAML, also in a comment, and not an annotation in code.
_LINE = re.compile(
    rf"^([ \t]*(?:#[^\n:]{{0,100}}?)?[\w.\-]{{0,80}}(?:{_NAMES})[ \t]*:[ \t]+)"
    r"(?!['\"|>&\[{]|\$\{|null[ \t]*$|\*\*\*|.*(?: = |,[ \t]*$))\S.*$",
    re.IGNORECASE | re.MULTILINE,
)
_SECRET_KEY = re.compile(rf"(?:.*[._\-])?(?:\w*(?:{_NAMES})|token)", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(
    r"PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN(?![A-Z])|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CONNECTION_STRING", re.I
)
_INTERPOLATION = re.compile(r"\$\{\s*oc\.env:\s*([A-Za-z_]\w*)")
_WHOLE = re.compile(r"\$\{oc\.env:([A-Za-z_]\w*)\}")
_interpolated: set[str] = set()
_literal: set[str] = set()


def redact(text: str) -> str:
    """The text with every secret in it replaced: by ``***``, or by the interpolation that it came from."""
    text = _USERINFO.sub(rf"\1{HIDDEN}", text)
    text = _TOKEN_AS_USER.sub(rf"\1{HIDDEN}", text)
    text = _QUERY.sub(lambda found: _named(found, _QUERY_NAME), text)
    text = _QUOTED.sub(rf"\1{HIDDEN}", text)
    text = _FLAG.sub(lambda found: _named(found, _SECRET_KEY), text)
    text = _LINE.sub(rf"\1'{HIDDEN}'", text)
    for secret in _literal:
        text = text.replace(secret, HIDDEN)
    for pattern, replacement in _known(tuple(_variables())):
        text = pattern.sub(lambda _, replacement=replacement: replacement, text)  # type: ignore[misc]
    return text


def _named(found: re.Match[str], names: re.Pattern[str]) -> str:
    return f"{found[1]}{HIDDEN}" if names.fullmatch(found[2]) else found[0]


def redacted(value: Any) -> Any:
    """Nested mappings and sequences with every secret in their texts replaced, also by the names of keys."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redacted(key): _of_key(str(key), item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(redacted(item) for item in value)
    return value


def _of_key(key: str, value: Any) -> Any:
    secret = isinstance(value, str) and value and not _INTERPOLATION.match(value) and _SECRET_KEY.fullmatch(key)
    return HIDDEN if secret else redacted(value)


def remember_interpolations(texts: Iterable[str]) -> None:
    """Takes note of the environment variables that recipes name, whose values then are shown by that name."""
    for text in texts:
        _interpolated.update(_INTERPOLATION.findall(text))


def remember_secrets(value: Any) -> None:
    """Takes note of what nested mappings call a secret: it is replaced from now on wherever it occurs."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if _of_key(str(key), item) == HIDDEN and len(item) >= SECRET_LENGTH:
                _literal.add(item)
            remember_secrets(item)
    elif isinstance(value, list):
        for item in value:
            remember_secrets(item)


def from_environment(value: Any) -> Any:
    """Nested mappings and sequences with the variables that ``redacted`` named replaced by their values.

    Raises:
        KeyError: a variable is not set.
    """
    if isinstance(value, str):
        return _WHOLE.sub(lambda found: os.environ[found[1]], value)
    if isinstance(value, Mapping):
        return {key: from_environment(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(from_environment(item) for item in value)
    return value


def in_environment(value: Any, name: str = "LIGHTNING_SORA_SECRET") -> Any:
    """A recipe for processes that this one starts: secrets are left in the environment, and named.

    Args:
        value: nested mappings and sequences; every text that holds a secret becomes ``${oc.env:NAME_n}``, and is set
            as that variable of this process, which its children inherit.
        name: of the variables, before their number.
    """
    if isinstance(value, str):
        return _left(value, name) if redact(value) != value else value
    if isinstance(value, Mapping):
        return {
            key: _left(item, name)
            if isinstance(item, str) and _of_key(str(key), item) != item
            else in_environment(item, name)
            for key, item in value.items()
        }
    if type(value) in (list, tuple):
        return type(value)(in_environment(item, name) for item in value)
    return value


def _left(text: str, name: str) -> str:
    number = 0
    while os.environ.get(f"{name}_{number}", text) != text:
        number += 1
    os.environ[f"{name}_{number}"] = text
    _interpolated.add(f"{name}_{number}")
    return f"${{oc.env:{name}_{number}}}"


class RedactedStream:
    """A text stream that replaces secrets in what is written to another one, and what that one cannot print: names of
    files need not be text.

    What is written once the terminal behind it is closed is lost, and no error: a training goes on, or is kept.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        with _terminal_may_be_gone():
            self._stream.write(redact(text).encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with _terminal_may_be_gone():
            self._stream.flush()

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _terminal_may_be_gone() -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        if problem.errno != errno.EIO:
            raise


def _variables() -> Iterable[tuple[str, str, bool]]:
    """(name, value, whether the name says that it is a secret) of what may not be shown."""
    for name, value in os.environ.items():
        secret = _names_a_secret(name)
        if len(value) >= (SECRET_LENGTH if secret else INTERPOLATED_LENGTH) and (secret or name in _interpolated):
            yield name, value, secret


@functools.lru_cache(maxsize=1024)
def _names_a_secret(variable: str) -> bool:
    return _SECRET_VARIABLE.search(variable) is not None


@functools.lru_cache(maxsize=8)
def _known(variables: tuple[tuple[str, str, bool], ...]) -> list[tuple[re.Pattern[str], str]]:
    found = []
    for name, value, secret in sorted(variables, key=lambda variable: -len(variable[1])):
        if os.path.exists(value):  # the path of a file of secrets is none
            continue
        replacement = f"${{oc.env:{name}}}" if name in _interpolated else HIDDEN
        pattern = re.escape(value)
        if not secret:  # a whole word of its own, such as a path: not a part of another
            pattern = rf"(?<![\w.\-/]){pattern}(?![\w.\-/])"
        found.append((re.compile(pattern), replacement))
    return found
