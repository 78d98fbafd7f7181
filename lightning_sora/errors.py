"""The one kind of error a user should ever read: the value, the constraint, the remedy."""


class SoraError(ValueError):
    """A request that cannot be honoured.

    The command line prints it as one line and exits with status 2; everything else is a bug and
    keeps its traceback. Messages name the offending value, the constraint it breaks and what to
    do about it.
    """
