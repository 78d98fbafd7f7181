"""Cases that end in every way that a case on a device can."""

import os
import signal
import time
from collections.abc import Iterator

from benchmarks.gpu.part import Case, Row
from benchmarks.gpu.session import Session


def works() -> Iterator[Row]:
    yield {"value": 1.0}


def raises() -> Iterator[Row]:
    yield {"value": 2.0}
    raise RuntimeError("CUDA out of memory.\nTried to allocate 80 GiB")


def dies() -> Iterator[Row]:
    os.kill(os.getpid(), signal.SIGKILL)
    yield {"value": 3.0}


def hangs() -> Iterator[Row]:
    time.sleep(600)
    yield {"value": 4.0}


def cases(session: Session) -> list[Case]:
    """As the name of the session's folder says."""
    ways = session.folder.name.split("-")
    return [Case({"case": i, "way": way}, globals()[way]) for i, way in enumerate(ways)]
