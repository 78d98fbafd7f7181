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
