"""The one kind of error a user should ever read: the value, the constraint, the remedy."""

from lightning_sora.names import shown
from lightning_sora.redaction import redact


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
