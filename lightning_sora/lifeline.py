"""Processes that end with the one that they work for, also where that is killed and can tell them nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

#: Names the process that starts others, to those.
STARTER = "LIGHTNING_SORA_STARTER"
LOOK_SECONDS = 1.0
PATIENCE_SECONDS = 10.0


def end_with_parent() -> None:
    """Ends this process of ``multiprocessing`` once the one that made it is dead.

    torch's own watch looks at the parent in the system's sense, which is the fork server: it lives as long as one of
    its children does, and they as long as it.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), name="lifeline", daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()  # a pipe of which the other end is there alone
    os._exit(1)


def end_with_starter() -> None:
    """Ends this process once the one that started it is dead, if that had called this too: a rank with the first.

    Ranks are started by lightning as processes of the same command line.
    """
    starter = os.environ.get(STARTER)
    os.environ[STARTER] = str(os.getpid())
    if "LOCAL_RANK" in os.environ and starter == str(os.getppid()):
        threading.Thread(target=_watch, args=(int(starter),), name="lifeline", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE_SECONDS)  # what hangs in a collective does not hear it
    os._exit(1)


def guard(process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """Ends a process that leads a group, and the group, once this process is dead or closes the guard's input."""
    command = [sys.executable, "-I", "-S", __file__, str(process.pid)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def end_group(leader: int, seconds: float = PATIENCE_SECONDS) -> None:
    """Ends all processes of a group, by force those that do not end when they are asked."""
    deadline = time.monotonic() + seconds
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGTERM)
        while time.monotonic() < deadline:
            time.sleep(0.1)
            os.killpg(leader, 0)
        os.killpg(leader, signal.SIGKILL)


if __name__ == "__main__":
    sys.stdin.buffer.read()  # ends when no process holds the other end
    end_group(int(sys.argv[1]))
