"""The one kind of error a user should ever read: the value, the constraint, the remedy."""

import difflib
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from lightning_sora.names import shown
from lightning_sora.redaction import redact

_PACKAGE = str(Path(__file__).parent)
_OTHERS = ("site-packages", sysconfig.get_path("stdlib"))


class SoraError(ValueError):
    """A request that cannot be honoured.

    The command line prints it as one line and exits with status 2; everything else is a bug and
    keeps its traceback. Messages name the offending value, the constraint it breaks and what to
    do about it; passwords and other secrets in them are replaced, and
    names that are no text are told as text.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(redact(shown(part)) if isinstance(part, str) else part for part in args))


class WeightsMissing(SoraError):
    """A network that others trained, or an earlier run, is not where it is looked for; it may come there yet."""


def did_you_mean(word: str, known: Iterable[str], written: Callable[[str], str] = str) -> str:
    """Suggests what a word that is not known may have been meant for.

    Args:
        written: how a known word is to be written where it is not as it stands, such as ``repr``.

    Returns:
        "did you mean 'a' or 'b'? ", to stand in a message; empty where nothing is near.

    Example:
        >>> did_you_mean("atention", ["attention", "depth"])
        'did you mean attention? '
    """
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(written, near))}? " if near else ""


def some(words: Iterable[str], most: int = 3, between: str = ", ", written: Callable[[str], str] = str) -> str:
    """The first of some words, and how many more there are, to stand in a message.

    Args:
        most: that are shown.
        between: them.
        written: how each is to be written where it is not as it stands, such as ``repr``.

    Example:
        >>> some("abcde"), some("ab")
        ('a, b, c and 2 more', 'a, b')
    """
    known = list(words)
    more = len(known) - most
    return between.join(map(written, known[:most])) + (f" and {more} more" if more > 0 else "")


def first_line(problem: BaseException, most: int = 200) -> str:
    """What an error says in its first line, or its kind where it says nothing; cut to so many characters.

    Example:
        >>> first_line(ValueError("it failed\\nwhere?")), first_line(KeyError())
        ('it failed', 'KeyError')
    """
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0][:most]


def raised_in(problem: BaseException) -> str:
    """Says where in a user's own file an error arose that this package ran into.

    Returns:
        "block.py, line 14, in visible", of the innermost such place; empty where no file of a user's was called.
    """
    frames = traceback.extract_tb(problem.__traceback__)
    inside = [index for index, frame in enumerate(frames) if frame.filename.startswith(_PACKAGE)]
    called = frames[inside[0] :] if inside else []
    for frame in reversed(called):
        if not any(part in frame.filename for part in (_PACKAGE, *_OTHERS)) and not frame.filename.startswith("<"):
            return f"{frame.filename}, line {frame.lineno}, in {frame.name}"
    return ""
