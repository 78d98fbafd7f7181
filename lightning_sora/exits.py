"""How what is run ends: the exit status of an error, and the signals that it hears."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lightning_sora.errors import SoraError
from lightning_sora.writing import full_disk

INTERRUPTED = 130
USER_ERROR = 2


def ending_of(problem: BaseException) -> tuple[int, str] | None:
    """The exit status that an error stands for, and what is said of it; None for a bug.

    Returns:
        2 for a mistake of the user or a full disk, 130 after Ctrl-C, else what the error says itself.
    """
    if isinstance(problem, SoraError):
        return USER_ERROR, f"error: {problem}"
    if isinstance(problem, KeyboardInterrupt):
        return INTERRUPTED, f"interrupted{f'; {problem}' if str(problem) else ''}"
    if isinstance(problem, SystemExit):
        return problem.code if isinstance(problem.code, int) else int(problem.code is not None), ""
    # By whatever library it is met: this is no bug.
    full = full_disk(problem) if isinstance(problem, OSError | RuntimeError) else None
    if full is None:
        return None
    return USER_ERROR, (
        f"error: {full.filename or 'a file, or what this prints to,'} cannot be written: {full.strerror}; make "
        "room there, in TMPDIR and where outputs go"
    )


@contextmanager
def own_signal_handlers() -> Iterator[None]:
    """Gives the handlers of signals back at the end, and takes the end of the terminal for SIGTERM."""
    # Lightning leaves Ctrl-C ignored after one; what is run next in this process must hear it. The end of the terminal
    # is SIGTERM to all, except where nohup has it ignored.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if before[signal.SIGHUP] is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
